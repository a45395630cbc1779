package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// The shape of what scheduling many VMs is measured with: most of them idle, as most do, and so many are busy that slices take crowdSlice.
const (
	crowdVMs     = 100
	crowdBusy    = 40
	crowdIdle    = "60000000" // microseconds at a time
	crowdSeconds = 10
	crowdSlice   = 10 * ident.Millisecond // what the cost of a slice is put in relation to
)

// CrowdCost is what scheduling costs on a server with many VMs.
type CrowdCost struct {
	VMs            int     `json:"vms"`
	Busy           int     `json:"busy"` // of them; the others idle
	Slices         uint64  `json:"slices"`
	MicrosPerSlice float64 `json:"micros_per_slice"` // of a CPU, in serve and in all workers: the sum of the next three
	CostPercent    float64 `json:"cost_percent"`     // of one CPU, if a slice takes 10 ms, all slots together
	Slots          int     `json:"slots"`
	SlotPercent    float64 `json:"slot_percent"` // the same, of the CPU of each slot

	ServeMicros float64 `json:"serve_micros_per_slice"` // to decide and to tell
	OrderMicros float64 `json:"order_micros_per_slice"` // of the workers' threads that take orders in
	TurnMicros  float64 `json:"turn_micros_per_slice"`  // of the vCPUs' threads, one of each slot, which leave the guest in a slice, wait and begin

	BareTurnMicros float64 `json:"bare_turn_micros"` // of a thread that sleeps on the clock until its turn to compute, without a guest: the host's part of a turn
}

// crowd runs many VMs on one server of two slots, and then as many bare threads.
func (g *gangBench) crowd(ctx context.Context, out *CrowdCost) error {
	if err := g.crowdVMs(ctx, out); err != nil {
		return err
	}
	var err error
	out.BareTurnMicros, err = bareTurn(ctx)
	return err
}

func (g *gangBench) crowdVMs(ctx context.Context, out *CrowdCost) (err error) {
	c, err := startShape(ctx, g.exe, local.Shape{Cells: 1, PerCell: 1, Slots: gangSlots, Memory: (crowdVMs + 8) * gangMemory})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	var pids []uint32
	for i := range crowdVMs {
		spec := &api.VMSpec{Name: "vm-" + strconv.Itoa(i), Payload: &api.VMSpec_Builtin{Builtin: "idle"}, Args: crowdIdle, Vcpus: 1, MemoryBytes: uint64(gangMemory)}
		if i < crowdBusy {
			spec.Payload, spec.Args = &api.VMSpec_Builtin{Builtin: "lock"}, strconv.Itoa(1<<30)+" spin"
		}
		v, err := c.start(ctx, spec)
		if err != nil {
			return err
		}
		for _, p := range v.GetWorkers() {
			pids = append(pids, p.GetPid())
		}
	}
	before, err := g.scheduling(ctx, c, pids)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(crowdSeconds * time.Second):
	}
	after, err := g.scheduling(ctx, c, pids)
	if err != nil {
		return err
	}
	*out = CrowdCost{VMs: crowdVMs, Busy: crowdBusy, Slots: gangSlots, Slices: after.slices - before.slices}
	perSlice := func(after, before uint64) float64 { return quotient(float64(after-before), float64(out.Slices)) }
	out.ServeMicros, out.OrderMicros, out.TurnMicros = perSlice(after.serve, before.serve), perSlice(after.orders, before.orders), perSlice(after.turns, before.turns)
	out.MicrosPerSlice = out.ServeMicros + out.OrderMicros + out.TurnMicros
	out.CostPercent = quotient(100*out.MicrosPerSlice, float64(crowdSlice))
	out.SlotPercent = out.CostPercent / gangSlots
	if out.Slices == 0 {
		return errors.New("nothing was sliced")
	}
	return nil
}

// schedulingSum is what scheduling has cost so far, in microseconds of CPU time.
type schedulingSum struct {
	slices uint64
	serve  uint64
	orders uint64
	turns  uint64
}

// scheduling sums up what the scheduler's thread in serve has used, those in the workers that take its orders, and those of vCPUs to go from turn to turn.
func (g *gangBench) scheduling(ctx context.Context, c *cluster, pids []uint32) (s schedulingSum, err error) {
	n, err := c.counters(ctx)
	if err != nil {
		return s, err
	}
	s = schedulingSum{slices: n["gang.slices"], serve: n["gang.busy_micros"], turns: n["gang.turn_micros"]}
	for _, pid := range pids {
		micros, err := realTimeMicros(pid)
		if err != nil {
			return s, fmt.Errorf("worker %d: %w", pid, err)
		}
		s.orders += micros
	}
	return s, nil
}

// realTimeMicros is the CPU time of a process's threads that are real-time ones for life: in a worker, of that which carries out orders, and of that which does
// checkpoints. Those of vCPUs may be for moments.
func realTimeMicros(pid uint32) (sum uint64, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return 0, errors.Join(err, os.ErrNotExist)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return 0, err
		}
		a, err := unix.SchedGetAttr(tid, 0)
		if errors.Is(err, unix.ESRCH) || err == nil && (a.Policy != unix.SCHED_FIFO || a.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0) {
			continue
		}
		text, rerr := os.ReadFile(filepath.Join(task, "schedstat"))
		if err := errors.Join(err, rerr); err != nil {
			return 0, err
		}
		nanos, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseUint(nanos, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n / 1000
	}
	return sum, nil
}
