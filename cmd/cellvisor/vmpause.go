package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) vmPauseCmd() *cobra.Command {
	cmd := a.pauseCmd(true)
	cmd.Use, cmd.Short = "pause NAME…", "Let running VMs stand still"
	cmd.Long = `Let running VMs stand still until "vm resume". It returns when they do, on all of their servers. A paused guest keeps its memory and its place and
needs no slot; it does not see the time pass. It stays paused whatever happens to servers' processes; it can be moved, drained, protected, reset,
saved and stopped.`
	cmd.Example = "  cellvisor vm pause web\n  cellvisor vm pause web db --reason \"backup of the store\""
	cmd.ValidArgsFunction = a.completeVMs(api.VMState_VM_STATE_RUNNING)
	return cmd
}

func (a *app) vmResumeCmd() *cobra.Command {
	cmd := a.pauseCmd(false)
	cmd.Use, cmd.Short = "resume NAME…", "Let paused VMs go on"
	cmd.Long = `Let paused VMs go on from where they stand. One that is not paused is left alone.`
	cmd.Example = "  cellvisor vm resume web"
	cmd.ValidArgsFunction = a.completeVMs(api.VMState_VM_STATE_PAUSED)
	return cmd
}

func (a *app) pauseCmd(on bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Args: args(1, -1, "the name of at least one VM"),
		RunE: a.eachVM(func(ctx context.Context, svc api.CellvisorClient, name string) (*api.VM, error) {
			resp, err := svc.PauseVM(ctx, &api.PauseVMRequest{Name: name, On: on, Reason: reason})
			return resp.GetVm(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "words for the event")
	return cmd
}

// eachVM runs a verb that does something to one VM after the other, and prints them as they are then.
func (a *app) eachVM(do func(context.Context, api.CellvisorClient, string) (*api.VM, error)) func(*cobra.Command, []string) error {
	return a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
		var done []*api.VM
		err := a.each(ctx, names, func(name string) error {
			return c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
				vm, err := do(ctx, svc, name)
				if err == nil {
					done = append(done, vm)
				}
				return err
			})
		})
		if a.format == "json" {
			if jerr := a.json(view.Map(done, view.OfVM)); err == nil {
				err = jerr
			}
			return err
		}
		for _, v := range done {
			fmt.Fprintln(a.out, v.GetName())
		}
		return err
	})
}

// each does something with each name, also behind one with which it fails. It returns the first error; it has told the others.
func (a *app) each(ctx context.Context, names []string, do func(name string) error) error {
	var first error
	for _, name := range names {
		err := do(name)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case first == nil:
			first = err
		default:
			fmt.Fprintln(a.err, "cellvisor: "+api.Message(err))
		}
	}
	return first
}
