package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) statusCmd() *cobra.Command {
	var watch bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "How the cluster is: view, quorum, servers, VMs",
		Long: `Prints how the cluster is, as one of its servers sees it. It answers without a quorum too, and exits with 6 then.

With --watch a line is printed at every change, and at least every ten periods, until Ctrl-C.`,
		Example: "  cellvisor status\n  cellvisor status -o json\n  cellvisor status --watch --every 2s",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			if watch {
				return a.watchStatus(ctx, c, every)
			}
			st, err := getStatus(ctx, c)
			if err != nil {
				return err
			}
			if err := a.printStatus(st); err != nil {
				return err
			}
			if !st.GetQuorum() {
				return exitStatus(api.ExitNoQuorum)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until Ctrl-C")
	cmd.Flags().DurationVar(&every, "every", time.Second, "period of --watch")
	return cmd
}

func getStatus(ctx context.Context, c *api.Client) (st *api.StatusResponse, err error) {
	err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		st, err = svc.Status(ctx, &api.StatusRequest{})
		return err
	})
	return st, err
}

func (a *app) printStatus(st *api.StatusResponse) error {
	switch a.format {
	case "json":
		return a.json(view.OfStatus(st))
	case "name":
		fmt.Fprintln(a.out, st.GetClusterName())
		return nil
	}
	a.facts(
		"cluster", st.GetClusterName(),
		"epoch", fmt.Sprint(st.GetEpoch()),
		"quorum", yesNo(st.GetQuorum()),
		"leader", dash(st.GetLeader()),
		"cells", fmt.Sprintf("%d of %d live", st.GetCellsLive(), st.GetCellsTotal()),
		"servers", fmt.Sprintf("%d of %d live", st.GetServersLive(), st.GetServersTotal()),
		"VMs", fmt.Sprintf("%d running, %d listed", st.GetVmsRunning(), st.GetVmsTotal()),
	)
	if a.format == "wide" {
		a.facts("cluster ID", st.GetClusterId(), "answered by", st.GetServer(), "its state", st.GetServerState().Word(), "its version", st.GetVersion())
	}
	return nil
}

// watchStatus prints a line at every change. A cluster that does not answer is said and asked again.
func (a *app) watchStatus(ctx context.Context, c *api.Client, every time.Duration) error {
	if every < 50*time.Millisecond {
		return usagef("--every %v is shorter than 50ms", every)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	last, same := "", 0
	for {
		line := ""
		st, err := getStatus(ctx, c)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			line = "no answer: " + api.Message(err)
		default:
			line = statusLine(st)
		}
		if same++; line != last || same >= 10 {
			last, same = line, 0
			if a.format == "json" && err == nil {
				if jerr := a.jsonLine(view.OfStatus(st)); jerr != nil {
					return jerr
				}
			} else {
				fmt.Fprintf(a.out, "%s  %s\n", time.Now().Format("15:04:05"), line)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func statusLine(st *api.StatusResponse) string {
	return fmt.Sprintf("epoch %d  quorum %s  leader %s  cells %d/%d  servers %d/%d  VMs %d running, %d listed",
		st.GetEpoch(), yesNo(st.GetQuorum()), dash(st.GetLeader()), st.GetCellsLive(), st.GetCellsTotal(),
		st.GetServersLive(), st.GetServersTotal(), st.GetVmsRunning(), st.GetVmsTotal())
}
