package main

import (
	"fmt"
	"strings"

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
that it is a guest. Last, it has a server of two slots schedule 100 VMs, 40 of which are busy, and measures what that costs. Needs two idle CPUs to mean anything.`,
		Example: "  cellvisor bench gang\n  cellvisor bench gang --rounds 5 -o json > gang.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Gang, a.printGang)
	cmd.Flags().IntVar(&set.Seconds, "seconds", 3, "how long one VM alone takes, about")
	cmd.Flags().IntVar(&set.Rounds, "rounds", 3, "repetitions of everything")
	cmd.Flags().StringVar(&set.Only, "only", "", "measure one part only ("+strings.Join(bench.GangParts, "|")+")")
	return cmd
}

func (a *app) printGang(r bench.GangReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d rounds\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Rounds)
	only := r.Settings.Only
	if only == "" || only == "locks" {
		a.table([][]string{
			{"WHAT", "INCREMENTS/s"},
			{"one VM alone", fmt.Sprintf("%.0f", r.AlonePerSecond)},
			{"two VMs, gang", fmt.Sprintf("%.0f", r.GangPerSecond)},
			{"two VMs, host", fmt.Sprintf("%.0f", r.HostPerSecond)},
		})
		fmt.Fprintf(a.out, "\ngang over host: %.2f; gang over one alone: %.2f; a slice costs serve %.1f us\n",
			r.SpeedupOverHost, r.ShareOfIdeal, r.Scheduling.MicrosPerSlice)
	}
	if only == "" || only == "skew" {
		fmt.Fprintf(a.out, "a gang on two servers begins within %d us (median), %d us (p99 of %d starts)\n", r.StartSkew.P50, r.StartSkew.P99, r.StartSkew.Samples)
	}
	if c := r.Crowd; only == "" || only == "crowd" {
		fmt.Fprintf(a.out, "a slice of %d VMs, %d of them busy, costs %.1f us: serve %.1f, orders in workers %.1f, turns of vCPUs %.1f\n",
			c.VMs, c.Busy, c.MicrosPerSlice, c.ServeMicros, c.OrderMicros, c.TurnMicros)
		fmt.Fprintf(a.out, "if it takes 10 ms, that is %.2f%% of one CPU, %.2f%% of each of the %d slots'; a bare thread's turn takes %.1f us here, of which a slice has %d\n",
			c.CostPercent, c.SlotPercent, c.Slots, c.BareTurnMicros, c.Slots)
	}
	return nil
}
