package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/tui"
)

func (a *app) topCmd() *cobra.Command {
	var readOnly, ascii bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch and steer the cluster on the terminal",
		Long: `Shows cells, servers, VMs and events as they change; enter drills down, esc goes back, / filters, : takes a command, ? helps. Without a terminal it
prints lines as "status --watch" does.`,
		Example: "  cellvisor top\n  cellvisor top --readonly --ascii",
		Args:    args(0, 0, ""),
		RunE: a.does(func(ctx context.Context, _ []string) error {
			addr, err := a.address()
			if err != nil {
				return err
			}
			keys, err := a.clientTLS()
			if err != nil {
				return err
			}
			err = tui.Run(ctx, tui.Options{
				Addr: addr, TLS: keys, ReadOnly: readOnly, ASCII: ascii, NoColor: os.Getenv("NO_COLOR") != "", Interval: every, In: a.in, Out: a.out,
			})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&readOnly, "readonly", false, "refuse everything that changes the cluster")
	cmd.Flags().BoolVar(&ascii, "ascii", false, "draw with US-ASCII characters only")
	cmd.Flags().DurationVar(&every, "every", 0, "time between looks at the cluster (default 500ms)")
	return cmd
}
