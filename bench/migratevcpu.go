package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// vcpuRounds is how often a vCPU goes to and fro for each round of the benchmark: it takes milliseconds.
const vcpuRounds = 10

// migrateVCPUs hands one vCPU of a VM to and fro between its parts, on servers of one cell and of two.
func migrateVCPUs(ctx context.Context, exe string, set MigrateSettings, say func(string), rep *MigrateReport) (err error) {
	memory := ident.Bytes(set.MemoryMiB) * ident.MiB
	c, err := startShape(ctx, exe, local.Shape{Cells: 2, PerCell: 2, Slots: 2, Memory: 4*memory + 64*ident.MiB})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	for _, place := range []struct {
		what string
		span []string
		out  *MoveFigure
	}{{"within a cell", []string{"a"}, &rep.SameCell}, {"to another cell", []string{"a", "b"}, &rep.OtherCell}} {
		say("single vCPUs, " + place.what)
		// Three vCPUs, of which the first works, on servers of two slots: one of them has room for it.
		spec := &api.VMSpec{Name: "spread", Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 5000", Vcpus: 3, MemoryBytes: uint64(memory), Span: place.span}
		if err := c.handToAndFro(ctx, spec, vcpuRounds*set.Rounds, place.out); err != nil {
			return fmt.Errorf("%s: %w", place.what, err)
		}
	}
	return nil
}

// handToAndFro has the VM's vCPU 0 go to its other server and back.
func (c *cluster) handToAndFro(ctx context.Context, spec *api.VMSpec, times int, out *MoveFigure) error {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	v, err := c.start(ctx, spec)
	if err != nil {
		return err
	}
	if len(v.GetWorkers()) != 2 {
		return fmt.Errorf("the VM has %d parts, 2 are wanted", len(v.GetWorkers()))
	}
	from, to := v.GetWorkers()[0].GetServer(), v.GetWorkers()[1].GetServer()
	var sum moves
	id := uint32(0)
	for range times {
		req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: spec.GetName(), ToServer: to, MaxParallel: 1, Vcpu: &id}
		if err := c.operate(ctx, req, &sum); err != nil {
			return err
		}
		from, to = to, from
	}
	*out = sum.figure()
	return c.remove(ctx, spec.GetName())
}
