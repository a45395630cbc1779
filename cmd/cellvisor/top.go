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
	var readOnly, ascii, mouse bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch and steer the cluster on the terminal",
		Long: `Shows cells, servers, VMs, events, recoveries, operations, the load tree and drills as they change; of a server also who ran when (t), of a VM who
holds which pages (m). enter drills down, esc goes back, / filters, : takes a command, ? helps. What changes the cluster shows what it will do and asks
first. Without a terminal it prints lines as "status --watch" does.`,
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
				Mouse: mouse, Program: a.self(),
			})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&readOnly, "readonly", false, "refuse everything that changes the cluster")
	cmd.Flags().BoolVar(&ascii, "ascii", false, "draw with US-ASCII characters only")
	cmd.Flags().BoolVar(&mouse, "mouse", false, "take clicks and the wheel; selecting text then needs shift")
	cmd.Flags().DurationVar(&every, "every", 0, "least time between two updates (default 100ms)")
	return cmd
}

// self is this program with the flags that say which cluster it talks to: for what the console leaves to the command line.
func (a *app) self() []string {
	path, err := os.Executable()
	if err != nil {
		return nil
	}
	own := []string{path}
	for _, f := range [][2]string{{"--addr", a.addr}, {"--context", a.context}, {"--ca", a.tls.CA}, {"--cert", a.tls.Cert}, {"--key", a.tls.Key}} {
		if f[1] != "" {
			own = append(own, f[0], f[1])
		}
	}
	return own
}
