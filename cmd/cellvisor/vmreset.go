package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
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
		RunE: a.eachVM(func(ctx context.Context, svc api.CellvisorClient, name string) (*api.VM, error) {
			resp, err := svc.ResetVM(ctx, &api.ResetVMRequest{Name: name, Reason: reason})
			return resp.GetVm(), err
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
