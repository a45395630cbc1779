package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
	"github.com/cellvisor/cellvisor/sim/balance"
)

// balanceReport is `bench balance -o json`.
type balanceReport struct {
	bench.BalanceReport
	Scale []balance.ScaleReport `json:"scale"`
}

func (a *app) benchBalanceCmd() *cobra.Command {
	var set bench.BalanceSettings
	cmd := &cobra.Command{
		Use:   "balance [FILE…]",
		Short: "Compare the balancer with Ganeti's hbal, and measure it on large clusters",
		Long: `Lets hbal (Debian: ganeti-htools-3.0) and two algorithms of ours work on the same clusters, in hbal's text format: "descent" minimizes hbal's own score,
"loadtree" is the balancer of Cellvisor's clusters, which minimizes the unevenness of vCPUs alone. Scores are computed here and by hbal itself. Times are
processor time from the cluster's text to that of the result; hbal's includes its start, which is printed beside it. Without hbal its columns stay empty.

Then: 1,000 servers with 10,000 VMs on a tenth of them; and simulated clusters of 16 to 1,024 servers, half of whose VMs fall idle at once: messages
of the load tree, and the time until the load is even.`,
		Example: "  cellvisor bench balance\n  cellvisor bench balance cluster.data --write out\n  cellvisor bench balance -o json > balance.json",
		Args:    args(0, -1, ""),
		RunE: a.does(func(ctx context.Context, files []string) error {
			set.Files = files
			if _, err := os.Stat(set.Hbal); errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintf(a.err, "%s is not there: left out\n", set.Hbal)
				set.Hbal = ""
			}
			p := a.progress()
			defer p.done()
			out := balanceReport{}
			var err error
			if out.BalanceReport, err = bench.Balance(ctx, set, func(what string) { p.say("%s", what) }); err != nil {
				return err
			}
			for _, n := range []int{16, 64, 256, 1024} {
				p.say("%d servers, simulated", n)
				r, err := balance.Scale(set.Seed, n, max(1, n/16), n*10_000/1024)
				if err != nil {
					return err
				}
				out.Scale = append(out.Scale, r)
			}
			p.done()
			return a.printBenchBalance(out)
		}),
	}
	cmd.Flags().StringVar(&set.Hbal, "hbal", bench.HbalPath, "the program hbal")
	cmd.Flags().StringVar(&set.Write, "write", "", "directory for the clusters before and after, in hbal's format")
	cmd.Flags().Uint64Var(&set.Seed, "seed", 1, "of the clusters that come with the benchmark")
	return cmd
}

func (a *app) printBenchBalance(r balanceReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	lines := [][]string{{"CLUSTER", "WHO", "SCORE", "BY HBAL", "MOVES", "SECONDS", "PLANNING"}}
	for _, c := range r.Clusters {
		lines = append(lines, []string{c.Name, "before", fmt.Sprintf("%.3f", c.Score), fmt.Sprintf("%.3f", c.ScoreHbal), "", "", ""})
		for _, t := range c.Results {
			lines = append(lines, []string{"", t.Who, fmt.Sprintf("%.3f", t.Score), fmt.Sprintf("%.3f", t.ScoreHbal), fmt.Sprint(t.Moves), fmt.Sprintf("%.5f", t.Seconds),
				fmt.Sprintf("%.5f", t.Planning)})
		}
	}
	a.table(lines)
	for _, c := range r.Clusters {
		if c.Speedup > 0 {
			fmt.Fprintf(a.out, "%s: %.0f times as fast as hbal; %.0f times without hbal's start of %.4f s and our reading and writing\n", c.Name, c.Speedup, c.Net, c.Startup)
		}
	}
	fmt.Fprintf(a.out, "\n%d servers, %d VMs on a tenth of them: %d moves planned in %.3f s, score %.0f before, %.3f after\n\n", r.Large.Servers, r.Large.VMs, r.Large.Moves,
		r.Large.Seconds, r.Large.ScoreBefore, r.Large.ScoreAfter)
	lines = [][]string{{"SERVERS", "CELLS", "VCPUS", "DEPTH", "MESSAGES/s", "MOST", "BYTES/s", "SEEN s", "EVEN s", "MOVES", "SCORE"}}
	for _, s := range r.Scale {
		lines = append(lines, []string{fmt.Sprint(s.Servers), fmt.Sprint(s.Cells), fmt.Sprint(s.VCPUs), fmt.Sprint(s.Depth), fmt.Sprintf("%.2f", s.MessagesPerServerSecond),
			fmt.Sprintf("%.1f", s.MostPerSecond), fmt.Sprintf("%.0f", s.BytesPerServerSecond), fmt.Sprintf("%.0f", s.SeenSeconds), fmt.Sprintf("%.0f", s.EvenSeconds),
			fmt.Sprint(s.Moves), fmt.Sprintf("%.1f -> %.1f", s.ScoreBefore, s.ScoreAfter)})
	}
	a.table(lines)
	return nil
}
