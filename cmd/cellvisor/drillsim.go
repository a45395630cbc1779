package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/rehearsal"
)

// drillSim runs a drill on the simulator, in the worlds of some seeds.
func (a *app) drillSim(ctx context.Context, p *drill.Program, f drillFlags) error {
	from, to, err := parseSeeds(f.seeds)
	if err != nil {
		return err
	}
	if f.jobs > 0 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(f.jobs))
	}
	opt := rehearsal.Options{Canary: f.canary, Shape: rehearsal.Shape{Cells: f.cells, PerCell: f.servers}, Tracing: f.trace}
	if from == to && !f.quiet {
		opt.Step = a.drillStep()
	}
	bar := a.progress()
	sum, err := rehearsal.Seeds(ctx, p, opt, from, to, f.keepGoing, func(done uint64) {
		if from < to {
			bar.say("%s: %d of %d seeds", p.Name, done, to-from+1)
		}
	})
	bar.done()
	if err != nil {
		return err
	}
	if err := a.drillFiles(sum.Report, f); err != nil {
		return err
	}
	switch a.format {
	case "json":
		err = a.json(sum)
	case "name":
	default:
		err = a.drillSummary(sum)
	}
	if err == nil && len(sum.Failed) > 0 {
		return exitStatus(api.ExitError)
	}
	return err
}

func (a *app) drillSummary(sum rehearsal.Summary) error {
	if sum.Report != nil {
		if err := sum.Report.Text(a.out, a.drillMark); err != nil || sum.From == sum.To {
			return err
		}
		fmt.Fprintln(a.out)
	}
	if len(sum.Failed) == 0 {
		_, err := fmt.Fprintf(a.out, "%s    %s: %d seeds, %.0f s of virtual time (%.1f s)\n", a.drillMark("ok"), sum.Drill, sum.Seeds, sum.Virtual, sum.Seconds)
		return err
	}
	_, err := fmt.Fprintf(a.out, "%s  %s: %d of %d seeds failed, the first is %d (%.1f s)\nreplay: %s\n", a.drillMark("FAIL"), sum.Drill, len(sum.Failed), sum.Seeds, sum.Failed[0], sum.Seconds, sum.Replay)
	return err
}

// drillSimFlags refuses what does not go together.
func (f *drillFlags) simFlags(seedSet bool) error {
	switch {
	case !f.sim && (f.seeds != "" || f.canary != "" || f.keepGoing || f.trace || f.jobs != 0):
		return usagef("--seeds, --canary, --keep-going, --trace and --jobs are of the simulator: add --sim")
	case f.sim && f.up:
		return usagef("--sim and --up exclude each other: the simulator needs no cluster")
	case f.sim && seedSet && f.seeds != "":
		return usagef("--seed and --seeds exclude each other")
	case f.jobs < 0:
		return usagef("-j %d is negative", f.jobs)
	}
	if f.sim && f.seeds == "" {
		f.seeds = "1..100"
		if seedSet {
			f.seeds = fmt.Sprint(f.seed)
		}
	}
	if f.sim {
		_, _, err := parseSeeds(f.seeds)
		return err
	}
	return nil
}
