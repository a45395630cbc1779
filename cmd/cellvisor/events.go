package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) eventsCmd() *cobra.Command {
	var tail bool
	var from, after uint64
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what happened to the cluster",
		Long: `Prints events, the oldest first; with --follow the stream goes on at another server when the one that answers dies, without repeating an event.
-o json prints one object a line. Its "seq" is a cursor: --after SEQ goes on behind an event that was seen, on any server, after any time.`,
		Example: "  cellvisor events\n  cellvisor events --follow -o json --after 1042\n  cellvisor events --follow -o json | jq 'select(.type==\"vm.lost\")'",
		Args:    args(0, 0, ""),
		RunE: a.follows(func(ctx context.Context, c *api.Client, _ []string) error {
			if after > 0 {
				if from > 0 {
					return usagef("--from and --after name the same place in two ways: give one of them")
				}
				from = after + 1
			}
			return c.FollowEvents(ctx, from, tail, a.printEvent)
		}),
	}
	cmd.Flags().BoolVarP(&tail, "follow", "f", false, "go on until Ctrl-C")
	cmd.Flags().Uint64Var(&from, "from", 0, "first sequence number wanted")
	cmd.Flags().Uint64Var(&after, "after", 0, "sequence number of the last event that was seen")
	return cmd
}

// printEvent prints one event: a line for people, an object for programs.
func (a *app) printEvent(e *api.Event) error {
	switch a.format {
	case "json":
		return a.jsonLine(view.OfEvent(e))
	case "name":
		fmt.Fprintln(a.out, e.GetType())
		return nil
	}
	line := fmt.Sprintf("%s  epoch %-3d  %-20s  %s", e.GetTime().AsTime().Local().Format("15:04:05.000"), e.GetEpoch(), e.GetType(), e.GetMessage())
	if e.GetStageMicros() > 0 {
		line += fmt.Sprintf("  (+%s)", (time.Duration(e.GetStageMicros()) * time.Microsecond).Round(100*time.Microsecond))
	}
	if a.format == "wide" {
		line = fmt.Sprintf("%6d  %s  by %s, log index %d", e.GetSeq(), line, e.GetRecordedBy(), e.GetLogIndex())
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}
