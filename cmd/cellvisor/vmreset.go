package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
	"github.com/cellvisor/cellvisor/cells"
)

func (a *app) vmResetCmd() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "reset NAME…",
		Short: "Restart the guests of running VMs in place",
		Long: `Restart the guests of running VMs in place, as the reset button of a machine does: memory is zero again, the payload is loaded anew, and every
vCPU begins at its start. The VM keeps its workers, its place, its console and its output.`,
		Example:           "  cellvisor vm reset web\n  cellvisor vm reset web --reason \"hung since noon\"",
		Args:              args(1, -1, "the name of at least one VM"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			var done []*api.VM
			for _, name := range names {
				err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
					resp, err := svc.ResetVM(ctx, &api.ResetVMRequest{Name: name, Reason: reason})
					if err == nil {
						done = append(done, resp.GetVm())
					}
					return err
				})
				if err != nil {
					return err
				}
			}
			if a.format == "json" {
				return a.json(view.Map(done, view.OfVM))
			}
			for _, v := range done {
				fmt.Fprintln(a.out, v.GetName())
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "words for the event")
	return cmd
}

// restartRule says what follows when the VM is lost.
func restartRule(v *api.VM) string {
	switch {
	case v.GetStartWanted():
		return "it starts again when there is room"
	case v.GetRestart() == cells.RestartAlways:
		return "started again"
	}
	return ""
}

// crashRule says what a crash of the guest leads to.
func crashRule(v *api.VM) string {
	switch {
	case !v.GetRebootOnCrash():
		return "a crash ends the VM"
	case v.GetCrashLimit() == 0:
		return "restarts after every crash"
	}
	return fmt.Sprintf("crash %d in a row ends the VM", v.GetCrashLimit())
}
