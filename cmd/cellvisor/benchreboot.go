package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
)

func (a *app) benchRebootCmd() *cobra.Command {
	var set bench.RebootSettings
	cmd := &cobra.Command{
		Use:   "reboot",
		Short: "How soon a guest that was reset is back, with known blocks taken from memory and without",
		Long: `Starts a server on this machine with a guest that reads and verifies its whole disk before its first output, resets it again and again, and measures the
time to that output and the bytes that were read from the disk: once with the storage replica table, once with every block read anew. The disk is
slowed down to an ordinary one's speed.`,
		Example: "  cellvisor bench reboot\n  cellvisor bench reboot --disk-mib 256 --disk-speed 500 -o json > reboot.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Reboot, a.printReboot)
	cmd.Flags().IntVar(&set.Rounds, "rounds", 5, "restarts with and without")
	cmd.Flags().IntVar(&set.DiskMiB, "disk-mib", 64, "MiB that the guest reads at a boot")
	cmd.Flags().IntVar(&set.DiskMBps, "disk-speed", 100, "MB/s that the disk gives (0 = as it can)")
	return cmd
}

func (a *app) printReboot(r bench.RebootReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d restarts each\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Rounds)
	lines := [][]string{{"RESTART", "FIRST OUTPUT ms", "MAX ms", "FROM DISK", "FROM MEMORY"}}
	for _, row := range []struct {
		name string
		f    bench.RebootFigure
	}{{"without SRT", r.Without}, {"with SRT", r.With}} {
		lines = append(lines, []string{row.name, fmt.Sprintf("%.1f", row.f.FirstOutputMs), fmt.Sprintf("%.1f", row.f.FirstOutputMaxMs),
			human(uint64(row.f.DiskReadBytes)), human(uint64(row.f.DiskCachedBytes))})
	}
	a.table(lines)
	_, err := fmt.Fprintf(a.out, "\n%.2f %% of the bytes, %.1f times as fast\n", r.ReadPercent, r.Speedup)
	return err
}
