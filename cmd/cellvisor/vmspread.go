package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) vmSpreadCmd() *cobra.Command {
	var over []string
	cmd := a.arrangeCmd(func(workers []*api.Worker) ([]vcpuMove, error) {
		chosen, err := chooseWorkers(workers, over)
		if err != nil {
			return nil, err
		}
		return spreadPlan(workers, chosen), nil
	})
	cmd.Use, cmd.Short = "spread NAME [--over SERVER|CELL,…]", "Distribute a VM's vCPUs evenly over its servers"
	cmd.Long = `Distributes the vCPUs of a running VM that has parts on several servers evenly over these, or over those that --over names: one after the other, as
few as it takes, each as "vm migrate --vcpu" does. The VM runs on meanwhile. Which servers hold a part of a VM is decided by "vm run --span", and by "vm
migrate --vcpu", which makes one where there is none. vCPU 0 of a Linux machine stays at home.`
	cmd.Example = "  cellvisor vm spread big\n  cellvisor vm spread big --over a-1,c"
	cmd.Flags().StringSliceVar(&over, "over", nil, "servers or cells that run vCPUs afterwards (default: all that hold a part)")
	return cmd
}

func (a *app) vmGatherCmd() *cobra.Command {
	var to string
	cmd := a.arrangeCmd(func(workers []*api.Worker) ([]vcpuMove, error) {
		if to == "" {
			return nil, usagef("--to is missing: name the server or cell that all vCPUs are to go to")
		}
		chosen, err := chooseWorkers(workers, []string{to})
		if err != nil {
			return nil, err
		}
		return spreadPlan(workers, chosen[:1]), nil
	})
	cmd.Use, cmd.Short = "gather NAME --to SERVER|CELL", "Bring all of a VM's vCPUs to one of its servers"
	cmd.Long = `Brings all vCPUs of a running VM to one of the servers that hold a part of it, each as "vm migrate --vcpu" does. The other parts stay, with the memory
that nobody has asked for yet, so the VM still depends on their servers; "vm spread" distributes the vCPUs again.`
	cmd.Example = "  cellvisor vm gather big --to a-1"
	cmd.Flags().StringVar(&to, "to", "", "server or cell that they go to")
	return cmd
}

// vcpuMove takes one vCPU from server to server.
type vcpuMove struct {
	vcpu     uint32
	from, to string
}

// arrangeCmd is a command that moves single vCPUs as plan says.
func (a *app) arrangeCmd(plan func([]*api.Worker) ([]vcpuMove, error)) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			vm, err := getVM(ctx, c, words[0])
			if err != nil {
				return err
			}
			moves, err := plan(partsOf(vm))
			if err != nil {
				return err
			}
			if vm.GetLinux() != nil && slices.ContainsFunc(moves, func(m vcpuMove) bool { return m.vcpu == 0 }) {
				return fmt.Errorf("vCPU 0 of VM %s, which a Linux machine boots with, stays with its devices on %s", vm.GetName(), vm.GetHome())
			}
			return a.arrange(ctx, c, vm.GetName(), moves, dryRun)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say which vCPUs would go where")
	return cmd
}

// arrange carries the moves out, one after the other.
func (a *app) arrange(ctx context.Context, c *api.Client, name string, moves []vcpuMove, dryRun bool) error {
	ops := make([]*api.Operation, 0, len(moves))
	for _, m := range moves {
		if !dryRun {
			op, err := a.moveVCPU(ctx, c, name, m)
			if err != nil {
				return fmt.Errorf("vCPU %d from %s to %s: %w", m.vcpu, m.from, m.to, err)
			}
			ops = append(ops, op)
		}
		if a.format == "table" || a.format == "wide" {
			fmt.Fprintf(a.out, "vCPU %d: %s -> %s\n", m.vcpu, m.from, m.to)
		}
	}
	switch {
	case a.format == "json":
		return a.json(view.Map(ops, view.OfOperation))
	case a.format == "name":
		fmt.Fprintln(a.out, name)
	case len(moves) == 0:
		fmt.Fprintln(a.out, "all vCPUs are where they should be")
	}
	return nil
}

func (a *app) moveVCPU(ctx context.Context, c *api.Client, name string, m vcpuMove) (op *api.Operation, err error) {
	err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.StartOperation(ctx, &api.StartOperationRequest{
			Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: name, MaxParallel: 1, Vcpu: &m.vcpu, ToServer: m.to, By: operator(),
		})
		op = resp.GetOperation()
		return err
	})
	if err != nil {
		return nil, err
	}
	if op, err = a.awaitOperation(ctx, c, op); err != nil {
		return nil, err
	}
	return op, opError(op)
}

// partsOf are the parts that run a VM, or could, in the order of their servers.
func partsOf(vm *api.VM) []*api.Worker {
	var out []*api.Worker
	for _, w := range vm.GetWorkers() {
		if !w.GetStandby() && !w.GetLost() {
			out = append(out, w)
		}
	}
	slices.SortStableFunc(out, func(x, y *api.Worker) int { return strings.Compare(x.GetServer(), y.GetServer()) })
	return out
}

// chooseWorkers returns the parts on the named servers or cells, all if none is named.
func chooseWorkers(workers []*api.Worker, names []string) ([]*api.Worker, error) {
	if len(workers) == 0 {
		return nil, fmt.Errorf("the VM does not run: start it with `cellvisor vm run`")
	}
	if len(names) == 0 {
		return workers, nil
	}
	var out []*api.Worker
	for _, name := range names {
		before := len(out)
		for _, w := range workers {
			if (w.GetServer() == name || w.GetCell() == name) && !slices.Contains(out, w) {
				out = append(out, w)
			}
		}
		if len(out) == before {
			return nil, fmt.Errorf("the VM has no part on %s: it has parts on %s", name, serversOf(workers))
		}
	}
	return out, nil
}

func serversOf(workers []*api.Worker) string {
	var names []string
	for _, w := range workers {
		names = append(names, w.GetServer())
	}
	return strings.Join(names, ", ")
}

// spreadPlan says which vCPUs go where so that each of the chosen parts has as many as any other, or one more. What can stay does.
func spreadPlan(workers, chosen []*api.Worker) []vcpuMove {
	total := 0
	for _, w := range workers {
		total += len(w.GetVcpus())
	}
	// The larger shares go to who has most already.
	order := slices.Clone(chosen)
	slices.SortStableFunc(order, func(x, y *api.Worker) int { return len(y.GetVcpus()) - len(x.GetVcpus()) })
	share := map[*api.Worker]int{}
	for i, w := range order {
		share[w] = total / len(order)
		if i < total%len(order) {
			share[w]++
		}
	}
	var moves []vcpuMove
	for _, w := range workers {
		ids := slices.Sorted(slices.Values(w.GetVcpus()))
		for _, id := range ids[min(len(ids), share[w]):] {
			moves = append(moves, vcpuMove{vcpu: id, from: w.GetServer()})
		}
	}
	next := 0
	for _, w := range chosen {
		for free := share[w] - len(w.GetVcpus()); free > 0; free-- {
			moves[next].to = w.GetServer()
			next++
		}
	}
	return moves
}
