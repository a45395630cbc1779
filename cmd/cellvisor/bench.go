package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
	"github.com/cellvisor/cellvisor/vmm/probe"
)

func (a *app) benchCmd() *cobra.Command {
	echo := &cobra.Command{
		Use: bench.RawEchoArgs[1], Short: "Answer raw requests until standard input ends", Hidden: true, Args: args(0, 0, ""),
		RunE: a.does(func(context.Context, []string) error { return bench.ServeRawEcho(a.in, a.out) }),
	}
	cmd := a.noun("bench", "Measure, each figure beside its floor", a.benchFaultCmd(), a.benchGangCmd(), a.benchRebootCmd(), a.benchBalanceCmd(), a.benchMigrateCmd(), a.benchLocalityCmd(), a.benchBorrowCmd(), a.benchConsoleCmd(), echo)
	cmd.AddCommand(a.benchProtectCmds()...)
	return cmd
}

func (a *app) benchFaultCmd() *cobra.Command {
	var set bench.FaultSettings
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "What a page fault costs that another server must answer",
		Long: `Starts a cluster of four cells on this machine and measures, inside guests, the first touch of pages that another server's vCPU has written. The floor is
measured in the same run: a fault in a VM on one server, plus a raw request with a page for an answer over the same kind of socket.`,
		Example: "  cellvisor bench fault\n  cellvisor bench fault --rounds 10 -o json > fault.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Fault, a.printFault)
	cmd.Flags().IntVar(&set.Pages, "pages", 1000, "pages that each measuring vCPU touches in each series")
	cmd.Flags().IntVar(&set.Rounds, "rounds", 3, "repetitions of everything")
	cmd.Flags().BoolVar(&set.Plain, "plain-pages", false, "do not encrypt page traffic, to see what that costs")
	cmd.Flags().IntVar(&set.VCPUs, "vcpus", 4, "vCPUs that measure at once in the series with many")
	return cmd
}

// measures makes cmd run a benchmark on this machine: settings that make no sense are wrong usage, progress is told, the report is shown.
func measures[S interface{ Check() error }, R any](a *app, cmd *cobra.Command, set *S, run func(context.Context, string, S, func(string)) (R, error), show func(R) error) {
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if err := (*set).Check(); err != nil {
			return usageError{err}
		}
		return nil
	}
	cmd.RunE = a.does(func(ctx context.Context, _ []string) error {
		if err := probe.Err(probe.All(0)); err != nil {
			return err
		}
		p := a.progress()
		defer p.done()
		rep, err := run(ctx, "", *set, func(what string) { p.say("%s", what) })
		p.done()
		if err != nil {
			return err
		}
		return show(rep)
	})
}

func (a *app) printFault(r bench.FaultReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d pages a series, %d rounds\n\n",
		r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Pages, r.Settings.Rounds)
	lines := [][]string{{"WHAT", "MEDIAN us", "P99 us", "MEAN us", "FLOOR us", "RATIO", "SAMPLES"}}
	many := fmt.Sprintf(", %d vCPUs", r.Settings.VCPUs)
	for _, row := range []struct {
		name string
		f    bench.Figure
	}{
		{"local fault", r.LocalFault},
		{"raw request and page", r.RawRoundTrip},
		{"remote read", r.RemoteRead},
		{"remote write", r.RemoteWrite},
		{"remote write, 3 sharers", r.RemoteWriteSharers},
		{"remote read, sequential", r.RemoteReadSeq},
		{"remote write, sequential", r.RemoteWriteSeq},
		{"remote read" + many, r.RemoteReadMany},
		{"remote write" + many, r.RemoteWriteMany},
		{"remote read, sequential" + many, r.RemoteReadSeqMany},
		{"remote write, sequential" + many, r.RemoteWriteSeqMany},
	} {
		floor, ratio := "-", "-"
		if row.f.FloorUs > 0 {
			floor, ratio = fmt.Sprintf("%.1f", row.f.FloorUs), fmt.Sprintf("%.2f", row.f.Ratio)
		}
		lines = append(lines, []string{row.name, fmt.Sprintf("%.1f", row.f.MedianUs), fmt.Sprintf("%.1f", row.f.P99Us),
			fmt.Sprintf("%.1f", row.f.MeanUs), floor, ratio, fmt.Sprint(row.f.Samples)})
	}
	a.table(lines)
	_, err := fmt.Fprintf(a.out, "\nsequential reads are %.1f times as fast a page as random ones; p99 is %.1f times the median for reads, %.1f for writes\n",
		r.SequentialSpeedup, r.ReadP99OverMedian, r.WriteP99OverMedian)
	return err
}
