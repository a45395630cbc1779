package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// MigrateSettings say how moves are measured.
type MigrateSettings struct {
	Rounds    int `json:"rounds"`
	MemoryMiB int `json:"memory_mib"` // of the VM
}

// Check tells what is wrong with the settings.
func (s MigrateSettings) Check() error {
	switch {
	case s.Rounds < 1 || s.Rounds > 1000:
		return fmt.Errorf("rounds must be from 1 to 1000, not %d", s.Rounds)
	case s.MemoryMiB < 16 || s.MemoryMiB > 4096:
		return fmt.Errorf("memory must be from 16 to 4096 MiB, not %d", s.MemoryMiB)
	}
	return nil
}

// MigrateReport is what moves cost, by how far they go. Names of fields are an interface: see docs/json.md.
type MigrateReport struct {
	Benchmark string          `json:"benchmark"`
	Host      Host            `json:"host"`
	Settings  MigrateSettings `json:"settings"`

	SameServer MoveFigure `json:"same_server"` // a running thread goes to another CPU, as a vCPU's does from slot to slot
	SameCell   MoveFigure `json:"same_cell"`   // a vCPU goes to another server of its cell
	OtherCell  MoveFigure `json:"other_cell"`

	PartSameCell  MoveFigure `json:"part_same_cell"` // a whole part goes, with its memory
	PartOtherCell MoveFigure `json:"part_other_cell"`
}

// MoveFigure sums up moves.
type MoveFigure struct {
	Samples     int     `json:"samples"`
	PauseUs     float64 `json:"pause_us"` // median: so long nothing runs
	PauseP99Us  float64 `json:"pause_p99_us"`
	TotalMillis float64 `json:"total_ms"` // median, from the request to its end, copying included
}

// Migrate measures what moves cost on this machine.
func Migrate(ctx context.Context, exe string, set MigrateSettings, say func(string)) (rep MigrateReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = MigrateReport{Benchmark: "migrate", Host: ThisHost(), Settings: set}
	say("from slot to slot")
	if rep.SameServer, err = slotMoves(set.Rounds); err != nil {
		return rep, err
	}
	memory := ident.Bytes(set.MemoryMiB) * ident.MiB
	if err = migrateVCPUs(ctx, exe, set, say, &rep); err != nil {
		return rep, err
	}
	c, err := startShape(ctx, exe, local.Shape{Cells: 2, PerCell: 2, Slots: 2, Memory: 2*memory + 64*ident.MiB})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	spec := &api.VMSpec{Name: "moving", Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 1000", Vcpus: 1, MemoryBytes: uint64(memory), Span: nil}
	if _, err = c.start(ctx, spec); err != nil {
		return rep, err
	}
	var within, across moves
	for round := range set.Rounds {
		say(fmt.Sprintf("whole parts, round %d of %d", round+1, set.Rounds))
		for _, step := range []struct {
			to  string
			sum *moves
		}{{"a-1", nil}, {"a-2", &within}, {"b-1", &across}, {"b-2", &within}, {"a-1", &across}} {
			if err = c.move(ctx, spec.GetName(), step.to, step.sum); err != nil {
				return rep, err
			}
		}
	}
	rep.PartSameCell, rep.PartOtherCell = within.figure(), across.figure()
	return rep, nil
}

// moves collects what moves took.
type moves struct{ pauses, totals []float64 }

func (m *moves) figure() MoveFigure {
	slices.Sort(m.pauses)
	return MoveFigure{Samples: len(m.pauses), PauseUs: round3(middle(m.pauses)), PauseP99Us: m.pauses[min(len(m.pauses)-1, len(m.pauses)*99/100)], TotalMillis: round3(middle(m.totals))}
}

// move has a VM moved, unless it is there, and notes what that took.
func (c *cluster) move(ctx context.Context, name, to string, sum *moves) error {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	call := func(f func(context.Context, api.CellvisorClient) error) error { return c.client.Call(ctx, f) }
	home := ""
	err := call(func(ctx context.Context, svc api.CellvisorClient) error {
		r, err := svc.GetVM(ctx, &api.GetVMRequest{Name: name})
		home = r.GetVm().GetHome()
		return err
	})
	if err != nil || home == to {
		return err
	}
	req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: name, ToServer: to, MaxParallel: 1}
	return c.operate(ctx, req, sum)
}

// operate has a migration of one step done, and notes what it took.
func (c *cluster) operate(ctx context.Context, req *api.StartOperationRequest, sum *moves) error {
	call := func(f func(context.Context, api.CellvisorClient) error) error { return c.client.Call(ctx, f) }
	var op *api.Operation
	began := time.Now()
	err := call(func(ctx context.Context, svc api.CellvisorClient) error {
		r, err := svc.StartOperation(ctx, req)
		op = r.GetOperation()
		return err
	})
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for err == nil && op.GetState() == api.OperationState_OPERATION_STATE_RUNNING {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		err = call(func(ctx context.Context, svc api.CellvisorClient) error {
			r, err := svc.GetOperation(ctx, &api.GetOperationRequest{Id: op.GetId()})
			op = r.GetOperation()
			return err
		})
	}
	switch {
	case err != nil:
		return err
	case op.GetState() != api.OperationState_OPERATION_STATE_DONE || len(op.GetSteps()) != 1:
		return fmt.Errorf("the move to %s is %s: %s", req.GetToServer(), op.GetState().Word(), op.GetNote())
	case sum != nil:
		sum.pauses = append(sum.pauses, float64(op.GetSteps()[0].GetDownMicros()))
		sum.totals = append(sum.totals, float64(time.Since(began).Microseconds())/1000)
	}
	return nil
}

// slotMoves sends a running thread from CPU to CPU, as a worker does with a vCPU that gets another slot.
func slotMoves(rounds int) (MoveFigure, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return MoveFigure{}, err
	}
	var cpus []int
	for c := range len(all) * 64 {
		if all.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	if len(cpus) < 2 {
		return MoveFigure{}, errors.New("one CPU is not enough to move between slots")
	}
	defer unix.SchedSetaffinity(0, &all)
	var m moves
	for i := range 50 * rounds {
		var one unix.CPUSet
		one.Set(cpus[i%2])
		began := time.Now()
		if err := unix.SchedSetaffinity(0, &one); err != nil { // returns on the other CPU
			return MoveFigure{}, err
		}
		if took := float64(time.Since(began).Nanoseconds()) / 1000; i > 0 {
			m.pauses, m.totals = append(m.pauses, took), append(m.totals, took/1000)
		}
	}
	return m.figure(), nil
}
