package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
)

func (a *app) benchMigrateCmd() *cobra.Command {
	var set bench.MigrateSettings
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "What a move costs: on the same server, in the same cell, to another cell",
		Long: `Starts a cluster of two cells with two servers each on this machine, has one vCPU of a running VM go to and fro between two servers, then moves a whole VM
round and round. The pause is for how long the vCPU, or the VM, stands still; the total counts from the request to the end, of a VM with the copying of
its memory. On the same server only a vCPU's thread goes to another CPU.`,
		Example: "  cellvisor bench migrate\n  cellvisor bench migrate --rounds 30 --memory 256 -o json > migrate.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Migrate, a.printMigrate)
	cmd.Flags().IntVar(&set.Rounds, "rounds", 10, "times around, four moves each")
	cmd.Flags().IntVar(&set.MemoryMiB, "memory", 16, "of the VM, in MiB")
	return cmd
}

func (a *app) printMigrate(r bench.MigrateReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; a VM of %d MiB, %d rounds\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.MemoryMiB, r.Settings.Rounds)
	lines := [][]string{{"MOVE", "PAUSE us", "P99 us", "IN ALL ms", "SAMPLES"}}
	for _, row := range []struct {
		name string
		f    bench.MoveFigure
	}{{"vCPU, same server", r.SameServer}, {"vCPU, same cell", r.SameCell}, {"vCPU, other cell", r.OtherCell},
		{"part, same cell", r.PartSameCell}, {"part, other cell", r.PartOtherCell}} {
		lines = append(lines, []string{row.name, fmt.Sprintf("%.1f", row.f.PauseUs), fmt.Sprintf("%.1f", row.f.PauseP99Us), fmt.Sprintf("%.2f", row.f.TotalMillis), fmt.Sprint(row.f.Samples)})
	}
	a.table(lines)
	return nil
}
