package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
)

func (a *app) benchConsoleCmd() *cobra.Command {
	var set bench.ConsoleSettings
	cmd := &cobra.Command{
		Use:   "console",
		Short: "What the console costs before many VMs, and how fast it answers a key",
		Long: `Runs "top" in a terminal of its own before an API that streams VMs, all of which change with every update, and measures the CPU time of its process and
the time from a key to the first byte of its answer on the terminal. The API is served by the benchmark itself: no VM runs, no KVM is needed.`,
		Example: "  cellvisor bench console\n  cellvisor bench console --vms 1000 --seconds 30 -o json > console.json",
		Args:    args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error {
			if err := set.Check(); err != nil {
				return usageError{err}
			}
			return nil
		},
	}
	cmd.RunE = a.does(func(ctx context.Context, _ []string) error {
		p := a.progress()
		defer p.done()
		rep, err := bench.Console(ctx, "", set, func(what string) { p.say("%s", what) })
		p.done()
		if err != nil {
			return err
		}
		return a.printConsole(rep)
	})
	cmd.Flags().IntVar(&set.VMs, "vms", 200, "that the API tells of")
	cmd.Flags().IntVar(&set.Updates, "updates", 10, "that the API sends a second; each changes every VM")
	cmd.Flags().IntVar(&set.Seconds, "seconds", 15, "for which CPU time is measured, on each of two screens")
	cmd.Flags().IntVar(&set.Keys, "keys", 100, "that are pressed")
	return cmd
}

func (a *app) printConsole(r bench.ConsoleReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d VMs, %d updates a second\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.VMs, r.Settings.Updates)
	a.table([][]string{
		{"WHAT", "FIGURE", "BOUND"},
		{"CPU, overview", fmt.Sprintf("%.2f%% of a core", r.OverviewPercent), fmt.Sprintf("%.0f%%", r.BoundPercent)},
		{"CPU, list of VMs", fmt.Sprintf("%.2f%% of a core", r.VMsPercent), fmt.Sprintf("%.0f%%", r.BoundPercent)},
		{"a key, median", fmt.Sprintf("%.1f ms", r.KeyMedianMs), fmt.Sprintf("%.0f ms", r.BoundKeyMs)},
		{"a key, p99", fmt.Sprintf("%.1f ms", r.KeyP99Ms), fmt.Sprintf("%.0f ms", r.BoundKeyMs)},
		{"a key, worst", fmt.Sprintf("%.1f ms", r.KeyMaxMs), "-"},
	})
	return nil
}
