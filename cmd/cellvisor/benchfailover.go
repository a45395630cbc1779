package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/bench"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/vmm/probe"
)

// benchProtectCmds are the benchmarks of protection by replicas.
func (a *app) benchProtectCmds() []*cobra.Command {
	return []*cobra.Command{a.benchFailoverCmd(), a.benchCheckpointCmd()}
}

func (a *app) benchFailoverCmd() *cobra.Command {
	set := bench.FailoverSettings{Seed: uint64(time.Now().UnixNano())}
	memory := "64MiB"
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "How soon a protected VM goes on after the loss of a cell",
		Long: `Starts a cluster of three cells on this machine with a protected VM over two of them that emits 1,000 records a second, kills cells with kill -9 at random
moments, and measures how long it is until a client sees the first record that had not left before. Every record must come once and in order.`,
		Example: "  cellvisor bench failover\n  cellvisor bench failover --kills 100 -o json > failover.json\n  cellvisor bench failover --memory 1GiB",
		Args:    args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) (err error) {
			if set.MemoryBytes, err = config.ParseSize(memory); err == nil {
				err = set.Check()
			}
			if err != nil {
				return usageError{err}
			}
			return nil
		},
		RunE: a.does(func(ctx context.Context, _ []string) error {
			if err := probe.Err(probe.All(0)); err != nil {
				return err
			}
			p := a.progress()
			defer p.done()
			rep, err := bench.Failover(ctx, "", set, func(what string) { p.say("%s", what) })
			p.done()
			if err != nil {
				return err
			}
			return a.printFailover(rep)
		}),
	}
	cmd.Flags().IntVar(&set.Kills, "kills", 30, "cells to kill, one after another; two of three take part of the running VM with them")
	cmd.Flags().StringVar(&memory, "memory", memory, "of the VM, like 1GiB")
	cmd.Flags().Uint64Var(&set.Seed, "seed", set.Seed, "which cells, and when (default random)")
	return cmd
}

func (a *app) printFailover(r bench.FailoverReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d kills, %d records in order\n\n",
		r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Kills, r.Records)
	lines := [][]string{{"WHAT", "MEDIAN ms", "P99 ms", "MAX ms", "SAMPLES"}}
	for _, row := range []struct {
		name string
		f    bench.MillisFigure
	}{
		{"kill to first new record", r.Total},
		{"  detect, fence, agree", r.Agree},
		{"  re-map", r.Remap},
		{"  resume", r.Resume},
		{"  agreed to first new record", r.Output},
		{"kill of the standby only", r.Standby},
		{"cell restarted to safe again", r.Resync},
	} {
		lines = append(lines, []string{row.name, fmt.Sprintf("%.1f", row.f.Median), fmt.Sprintf("%.1f", row.f.P99), fmt.Sprintf("%.1f", row.f.Max), fmt.Sprint(row.f.Samples)})
	}
	a.table(lines)
	return nil
}

func (a *app) benchCheckpointCmd() *cobra.Command {
	var set bench.CheckpointSettings
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "What checkpoints cost a protected VM",
		Long: `Starts a cluster of two cells and a witness on this machine and runs two guests unprotected and under 5, 10, 20 and 40 checkpoints a second: dirty writes 1% of
memory over and over, lock increments shared counters on two vCPUs. The slowdown is against the unprotected runs of the same rounds, by the guests' own
clock, so that starting, copying memory for the first time and ending do not count.

A pause has three stages: stop (until every vCPU has left the guest and nothing is on its way to it), take (vCPU states, the log of dirty pages, copying
those), and letting go. On a quiet machine take is nearly all of it: 0.12 ms a vCPU and 0.5 to 1 us a page. On a busy one stop is: a vCPU that was preempted
has to get a CPU to leave the guest. Cutting thread and vCPUs are real-time threads as long as a cut lasts, but what else the worker does is not: a guest
that does nothing but port I/O, as dirty does, is often in the middle of that. lock is two vCPUs that wait for each other all the time, so whatever takes a CPU from
one stops both: its unprotected runs differ by 15% from one another on a quiet machine, and only the median of several rounds means anything.`,
		Example: "  cellvisor bench checkpoint\n  cellvisor bench checkpoint --rounds 3 -o json > checkpoint.json",
		Args:    args(0, 0, ""),
	}
	measures(a, cmd, &set, bench.Checkpoint, a.printCheckpoint)
	cmd.Flags().IntVar(&set.Rounds, "rounds", 2, "repetitions of everything")
	cmd.Flags().IntVar(&set.Seconds, "seconds", 4, "that dirty runs each time")
	return cmd
}

func (a *app) printCheckpoint(r bench.CheckpointReport) error {
	if a.format == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.out, "%s, %d CPUs, Linux %s, load before %.2f; %d rounds\n\n", r.Host.CPU, r.Host.CPUs, r.Host.Kernel, r.Host.LoadBefore, r.Settings.Rounds)
	lines := [][]string{{"CHECKPOINTS/s", "DIRTY slower", "LOCK slower", "MADE/s", "PAUSE us median", "p99", "DIRTY PAGES", "BYTES"}}
	for _, p := range r.Rates {
		lines = append(lines, []string{fmt.Sprint(p.PerSecond), fmt.Sprintf("%.1f%%", p.Dirty), fmt.Sprintf("%.1f%%", p.Lock),
			fmt.Sprintf("%.1f", p.MadePerSecond), fmt.Sprintf("%.0f", p.PauseMedianUs), fmt.Sprintf("%.0f", p.PauseP99Us), fmt.Sprintf("%.0f", p.DirtyPages),
			fmt.Sprintf("%.0f", p.CutBytes)})
	}
	a.table(lines)
	_, err := fmt.Fprintf(a.out, "\na cut pauses the guest for %.0f us plus %.2f us a dirty page\n", r.PauseUs, r.PausePerPageUs)
	return err
}
