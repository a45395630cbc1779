package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

// completionPatience bounds how long a shell waits for names.
const completionPatience = 700 * time.Millisecond

// completeNames completes arguments with names that the cluster knows now.
func (a *app) completeNames(list func(context.Context, *api.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, got []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completionPatience)
		defer cancel()
		c, err := a.dial(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(got, n) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeVMs completes the names of VMs in any of the states; none means all.
func (a *app) completeVMs(states ...api.VMState) cobra.CompletionFunc {
	return a.completeNames(func(ctx context.Context, c *api.Client) ([]string, error) {
		vms, err := listVMs(ctx, c)
		if len(states) > 0 {
			vms = slices.DeleteFunc(vms, func(v *api.VM) bool { return !slices.Contains(states, v.GetState()) })
		}
		return view.Map(vms, (*api.VM).GetName), err
	})
}

func (a *app) completeCells() cobra.CompletionFunc {
	return a.completeNames(func(ctx context.Context, c *api.Client) ([]string, error) {
		cells, err := listCells(ctx, c)
		return view.Map(cells, (*api.Cell).GetName), err
	})
}

func (a *app) completeDisks() cobra.CompletionFunc {
	return a.completeNames(func(ctx context.Context, c *api.Client) ([]string, error) {
		disks, err := listDisks(ctx, c)
		return view.Map(disks, (*api.DiskInfo).GetName), err
	})
}
