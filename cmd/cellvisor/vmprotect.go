package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) vmProtectCmd() *cobra.Command {
	var checkpoint time.Duration
	cmd := &cobra.Command{
		Use:   "protect NAME none|replica|replica:K",
		Short: "Change how a running VM is protected against the loss of cells",
		Long: `Change how a running VM is protected against the loss of cells.

With replica, a server in another cell holds a copy of the VM that follows it checkpoint by checkpoint, and output of the VM leaves only
once the checkpoint after it is safe there. When a cell of the VM is lost, the VM goes on from the last checkpoint. The change takes
effect when the first full copy is there: "vm show" then says protection safe.`,
		Example: "  cellvisor vm protect web replica\n  cellvisor vm protect web replica:2 --checkpoint 50ms\n  cellvisor vm protect web none",
		Args:    args(2, 2, "the VM's name and none, replica or replica:K"),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			if !protectPattern.MatchString(words[1]) {
				return usagef("protection %q must be none, replica or replica:K", words[1])
			}
			var vm *api.VM
			err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
				resp, err := svc.ProtectVM(ctx, &api.ProtectVMRequest{Name: words[0], Protect: words[1], CheckpointMs: uint32(checkpoint.Milliseconds())})
				vm = resp.GetVm()
				return err
			})
			if err != nil {
				return err
			}
			a.noteFewCells(ctx, c, &api.VMSpec{Name: words[0], Protect: words[1], Span: vm.GetCells()})
			return show(a, []*api.VM{vm}, view.OfVM, (*api.VM).GetName, vmColumns)
		}),
	}
	cmd.Flags().DurationVar(&checkpoint, "checkpoint", 0, "time between checkpoints (default adaptive, 20ms to 200ms)")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, words []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(words) == 1 {
			return []string{"none", "replica"}, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeVMs()(cmd, words, start)
	}
	return cmd
}
