package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
)

func (a *app) benchLocalityCmd() *cobra.Command {
	var set bench.LocalitySettings
	cmd := &cobra.Command{
		Use:   "locality",
		Short: "Fetch a page, read around it, move the vCPU or the directory: fixed policies beside the one that chooses",
		Long: `Runs a guest of three vCPUs on two servers (--servers) of two slots each with the payload phases, whose vCPUs change again and again what they share: pages of their own, a
table that all read, a pipe, a lock. It runs once under each policy (--option locality=...): fetch, replicate, move and rehome always do the same, auto does what
has paid. Needs two idle CPUs to mean anything.`,
		Example: "  cellvisor bench locality\n  cellvisor bench locality --rounds 5 -o json > locality.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Locality, a.printLocality)
	cmd.Flags().IntVar(&set.Rounds, "rounds", 3, "repetitions of everything")
	cmd.Flags().IntVar(&set.Shifts, "shifts", 6, "how often a run changes who shares what")
	cmd.Flags().IntVar(&set.Servers, "servers", 2, "servers that the guest lies on, from 2 to 4, each in a cell of its own")
	cmd.Flags().IntVar(&set.Scale, "scale", 20, "work of each phase")
	return cmd
}

func (a *app) printLocality(r bench.LocalityReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d rounds, %d shifts\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Rounds, r.Settings.Shifts)
	head := []string{"POLICY"}
	for _, p := range r.Phases {
		head = append(head, strings.ToUpper(p)+" ms")
	}
	lines := [][]string{append(head, "MIX ms", "OVER BEST", "REMOTE PAGES", "MOVES", "HOMES")}
	for _, f := range r.Policies {
		line := []string{f.Policy}
		for _, ms := range f.PhaseMillis {
			line = append(line, fmt.Sprintf("%.1f", ms))
		}
		lines = append(lines, append(line, fmt.Sprintf("%.1f", f.MixMillis), fmt.Sprintf("%.2f", f.MixOverBest), fmt.Sprint(f.RemotePages), fmt.Sprint(f.VCPUMoves), fmt.Sprint(f.Homes)))
	}
	a.table(lines)
	_, err := fmt.Fprintf(a.out, "\nover the mix auto takes %.2f of the time of the best fixed policy, %s; in its worst phase %.2f of that phase's best\n",
		r.AutoOverBest, r.BestFixed, r.WorstOverBest)
	return err
}
