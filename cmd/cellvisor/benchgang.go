package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
)

func (a *app) benchGangCmd() *cobra.Command {
	var set bench.GangSettings
	cmd := &cobra.Command{
		Use:   "gang",
		Short: "What it gains that the vCPUs of a VM run together",
		Long: `Runs two VMs of two vCPUs with the payload lock on two slots, gang-scheduled and left to Linux, and one of them alone; then two VMs that span two
servers of one slot each, and measures how far apart the vCPUs of a gang begin. Who waits for a lock spins and never idles, as in a kernel that does not know
that it is a guest. Last, it has a server of two slots schedule 100 VMs, most of which idle, and measures what that costs. Needs two idle CPUs to mean anything.`,
		Example: "  cellvisor bench gang\n  cellvisor bench gang --rounds 5 -o json > gang.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Gang, a.printGang)
	cmd.Flags().IntVar(&set.Seconds, "seconds", 3, "how long one VM alone takes, about")
	cmd.Flags().IntVar(&set.Rounds, "rounds", 3, "repetitions of everything")
	return cmd
}

func (a *app) printGang(r bench.GangReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d rounds\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Rounds)
	a.table([][]string{
		{"WHAT", "INCREMENTS/s"},
		{"one VM alone", fmt.Sprintf("%.0f", r.AlonePerSecond)},
		{"two VMs, gang", fmt.Sprintf("%.0f", r.GangPerSecond)},
		{"two VMs, host", fmt.Sprintf("%.0f", r.HostPerSecond)},
	})
	_, err := fmt.Fprintf(a.out, `
gang over host: %.2f; gang over one alone: %.2f
a gang on two servers begins within %d us (median), %d us (p99 of %d starts)
a slice costs serve %.1f us; with %d VMs, %d of them busy, it costs serve and workers %.1f us: %.2f%% of a CPU if a slice takes 10 ms
`, r.SpeedupOverHost, r.ShareOfIdeal, r.StartSkew.P50, r.StartSkew.P99, r.StartSkew.Samples, r.Scheduling.MicrosPerSlice,
		r.Crowd.VMs, r.Crowd.Busy, r.Crowd.MicrosPerSlice, r.Crowd.CostPercent)
	return err
}
