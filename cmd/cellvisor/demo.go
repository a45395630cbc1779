package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/demo"
	"github.com/cellvisor/cellvisor/vmm/probe"
)

func (a *app) demoCmd() *cobra.Command {
	var simulated bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See a cell die and what that does to whom, in half a minute",
		Long: `Starts three cells on this machine, a VM over two of them, a VM in the third and one protected by a replica, kills one cell with kill -9, and shows
what stopped, what went on, what survived, and how long each stage took. Everything is taken down at the end. On a machine that cannot run VMs the same story runs on the simulator.`,
		Example: "  cellvisor demo\n  cellvisor demo --sim",
		Args:    args(0, 0, ""),
		RunE: a.does(func(ctx context.Context, _ []string) error {
			paint := a.painter()
			if !simulated {
				if err := probe.Err(probe.All(0)); err != nil {
					fmt.Fprintf(a.out, "%v\nSo the story is told on the simulator: the same decision code, virtual time, no guests.\n", err)
					simulated = true
				}
			}
			if simulated {
				return a.demoOnSimulator(ctx)
			}
			d := &demo.Demo{Out: a.out, Style: demo.Style{Head: paint.bold, Good: paint.green, Bad: paint.red, Faint: paint.faint}}
			_, err := d.Run(ctx)
			return err
		}),
	}
	cmd.Flags().BoolVar(&simulated, "sim", false, "tell the story on the simulator")
	return cmd
}
