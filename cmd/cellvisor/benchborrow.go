package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
)

func (a *app) benchBorrowCmd() *cobra.Command {
	var set bench.BorrowSettings
	cmd := &cobra.Command{
		Use:   "borrow",
		Short: "A database that has half its memory in other cells, beside one that has all of it here",
		Long: `Runs the payload rows, which reads and changes rows of a table as a database does, with a hot set of a tenth: once on a server that has room for all of it, once on
one that has room for half and borrows the other half from two other cells. Both VMs are there at the same time, and take turns of a tenth of a second: one is paused
while the other runs. Each ratio is of two neighbouring turns, so what else the machine does for a while meets both; told are the median of all pairs, and between which
two the median lies with 95% confidence. CPUs are kept awake for both. Some of the rows are drawn from all of the table: 0, 1, 10 and 100 in 10000; transactions stay
in memory, or are committed to a log on a disk. Needs two idle CPUs to mean anything.`,
		Example: "  cellvisor bench borrow\n  cellvisor bench borrow --rounds 3 --memory 128 -o json > borrow.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Borrow, a.printBorrow)
	cmd.Flags().IntVar(&set.Rounds, "rounds", 3, "in each of which both are started anew")
	cmd.Flags().IntVar(&set.MemoryMiB, "memory", 64, "of the VM, in MiB")
	cmd.Flags().IntVar(&set.HotPercent, "hot", 10, "percent of the table that are hot")
	cmd.Flags().IntVar(&set.Seconds, "seconds", 3, "that each share of cold rows is measured of both, in each round")
	return cmd
}

func (a *app) printBorrow(r bench.BorrowReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; a VM of %d MiB, %d%% of its table hot, %.0f%% borrowed, %d rounds\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel,
		r.Host.LoadBefore, r.Settings.MemoryMiB, r.Settings.HotPercent, r.BorrowedPercent, r.Settings.Rounds)
	lines := [][]string{{"COLD IN 10000", "COMMITS", "PAIRS", "LOCAL a second", "BORROWED a second", "TIME RATIO", "95%"}}
	for _, f := range r.Figures {
		commits := "no"
		if f.Commits {
			commits = "yes"
		}
		lines = append(lines, []string{fmt.Sprint(f.ColdIn10000), commits, fmt.Sprint(f.Pairs), fmt.Sprintf("%.0f", f.LocalPerSecond), fmt.Sprintf("%.0f", f.BorrowPerSecond),
			fmt.Sprintf("%.3f", f.TimeRatio), fmt.Sprintf("%.3f to %.3f", f.TimeRatioLow, f.TimeRatioHigh)})
	}
	a.table(lines)
	_, err := fmt.Fprintf(a.out, "\na database with one row in a thousand drawn from all of the table, and commits, takes %.3f of the time (%.3f to %.3f with 95%% confidence); a borrowed page comes in %.0f us, a raw round trip between two processes takes %.0f us\n",
		r.TimeRatio, r.TimeRatioLow, r.TimeRatioHigh, r.FetchUs, r.RoundTripUs)
	return err
}
