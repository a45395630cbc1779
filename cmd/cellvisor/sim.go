package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/sim"
	_ "github.com/cellvisor/cellvisor/sim/agree"    // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/balance"  // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/contain"  // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/gang"     // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/handover" // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/lending"  // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/locality" // registers its scenario
	_ "github.com/cellvisor/cellvisor/sim/pages"    // registers its scenarios
	_ "github.com/cellvisor/cellvisor/sim/recover"  // likewise
)

// simFlags are the options of `sim`.
type simFlags struct {
	scenario, seeds, canary string
	list, canaries, goOn    bool
	threads                 int
}

// simResult is an entry of `sim -o json`.
type simResult struct {
	Scenario string   `json:"scenario"`
	Canary   string   `json:"canary,omitempty"`
	Seeds    uint64   `json:"seeds"`
	Seconds  float64  `json:"seconds"`
	Failed   []uint64 `json:"failed"`
	Replay   string   `json:"replay,omitempty"`
	Error    string   `json:"error,omitempty"`
}

func (a *app) simCmd() *cobra.Command {
	var f simFlags
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Run the decision code in simulated, faulty worlds",
		Long: `Runs the very code that decides in production in simulated worlds: networks that lose, repeat, reorder, delay and cut, servers that crash, pause and
return, in virtual time. One seed is one world. What fails is printed with the one command that replays it, and the exit code is 1.

With --canary NAME a known bug is planted, which the checks must find (exit code 1 then, as for any failure). With --canaries every known bug is
planted in turn, and it is a failure if one is not found within the seeds.`,
		Example: `  cellvisor sim --list
  cellvisor sim --seeds 1..1000
  cellvisor sim --scenario contain --seeds 17..17
  cellvisor sim --canaries --seeds 1..200`,
		Args: args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error {
			_, _, err := parseSeeds(f.seeds)
			if err == nil && f.threads < 0 {
				err = usagef("-j %d is negative", f.threads)
			}
			return err
		},
		RunE: a.does(func(ctx context.Context, _ []string) error { return a.sim(ctx, f) }),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.scenario, "scenario", "", "only this scenario (default: all)")
	fl.StringVar(&f.seeds, "seeds", "1..100", "seeds, FIRST..LAST")
	fl.StringVar(&f.canary, "canary", "", "plant this bug")
	fl.BoolVar(&f.canaries, "canaries", false, "plant every known bug in turn and demand that each is found")
	fl.BoolVar(&f.list, "list", false, "list the scenarios and their canaries")
	fl.BoolVar(&f.goOn, "keep-going", false, "do not stop at the first failure of a scenario")
	fl.IntVarP(&f.threads, "jobs", "j", 0, "worlds at a time (default: one for each CPU)")
	_ = cmd.RegisterFlagCompletionFunc("scenario", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, s := range sim.Scenarios() {
			names = append(names, s.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// parseSeeds reads "A..B", or "A" for a single one.
func parseSeeds(text string) (from, to uint64, err error) {
	first, last, ranged := strings.Cut(text, "..")
	if !ranged {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 64)
	to, err2 := strconv.ParseUint(last, 10, 64)
	if err1 != nil || err2 != nil || from > to || to == math.MaxUint64 {
		return 0, 0, usagef("--seeds %q must be FIRST..LAST, such as 1..1000", text)
	}
	return from, to, nil
}

func (a *app) sim(ctx context.Context, f simFlags) error {
	chosen := sim.Scenarios()
	if f.scenario != "" {
		s, ok := sim.Lookup(f.scenario)
		if !ok {
			return usagef("there is no scenario %q; `cellvisor sim --list` lists them", f.scenario)
		}
		chosen = []sim.Scenario{s}
	}
	if f.list {
		return a.listScenarios(chosen)
	}
	if f.threads > 0 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(f.threads))
	}
	from, to, err := parseSeeds(f.seeds)
	if err != nil {
		return err
	}
	var results []simResult
	bad, ran := 0, 0
	for _, s := range chosen {
		for _, canary := range f.plants(s) {
			r, err := a.simScenario(ctx, s, from, to, canary, f.goOn && !f.canaries)
			if err != nil {
				return err
			}
			ran++
			results = append(results, r)
			if (len(r.Failed) > 0) != f.canaries {
				bad++
			}
			a.reportSim(r, f.canaries)
		}
	}
	if ran == 0 && f.canary != "" {
		return usagef("no scenario has a canary %q; `cellvisor sim --list` lists them", f.canary)
	}
	if a.format == "json" {
		if err := a.json(results); err != nil {
			return err
		}
	}
	if f.canaries && bad > 0 {
		return fmt.Errorf("%d of %d canaries were not found", bad, ran)
	}
	if !f.canaries && f.failed(results) {
		return exitStatus(api.ExitError)
	}
	return nil
}

// failed tells whether a run without the demand for canaries had a failure.
func (f *simFlags) failed(results []simResult) bool {
	for _, r := range results {
		if len(r.Failed) > 0 {
			return true
		}
	}
	return false
}

// plants lists the bugs to plant in a scenario; the empty one is none.
func (f *simFlags) plants(s sim.Scenario) []string {
	switch {
	case f.canaries:
		return s.Canaries
	case f.canary == "":
		return []string{""}
	}
	for _, c := range s.Canaries {
		if c == f.canary {
			return []string{c}
		}
	}
	return nil
}

// simScenario runs the seeds in batches, so that Ctrl-C is heeded between them.
func (a *app) simScenario(ctx context.Context, s sim.Scenario, from, to uint64, canary string, goOn bool) (simResult, error) {
	r := simResult{Scenario: s.Name, Canary: canary, Failed: []uint64{}}
	what := s.Name
	if canary != "" {
		what += " with canary " + canary
	}
	batch := uint64(32 * runtime.GOMAXPROCS(0))
	stopAt := 1
	if goOn {
		stopAt = 0
	}
	p := a.progress()
	defer p.done()
	var done atomic.Uint64
	start := time.Now()
	for first := from; first <= to; first += batch {
		if ctx.Err() != nil {
			return r, errors.New("interrupted")
		}
		p.say("%s: %d of %d seeds", what, done.Load(), to-from+1)
		ran, failures := sim.RunSeeds(s, first, min(first+batch-1, to), canary, stopAt, func() { done.Add(1) })
		r.Seeds += ran
		for _, f := range failures {
			r.Failed = append(r.Failed, f.Seed)
			if r.Error == "" {
				r.Error, r.Replay = f.Err.Error(), f.Replay()
			}
		}
		if len(failures) > 0 && !goOn {
			break
		}
	}
	r.Seconds = math.Round(time.Since(start).Seconds()*1000) / 1000
	return r, nil
}

func (a *app) reportSim(r simResult, wantFound bool) {
	if a.format == "json" || a.format == "name" {
		return
	}
	paint := a.painter()
	what := r.Scenario
	if r.Canary != "" {
		what += ", canary " + r.Canary
	}
	switch {
	case len(r.Failed) == 0 && wantFound:
		fmt.Fprintf(a.out, "%s  %s: not found in %d seeds (%.1f s)\n", paint.red("FAIL"), what, r.Seeds, r.Seconds)
	case len(r.Failed) == 0:
		fmt.Fprintf(a.out, "%s    %s: %d seeds (%.1f s)\n", paint.green("ok"), what, r.Seeds, r.Seconds)
	case wantFound:
		fmt.Fprintf(a.out, "%s    %s: found at seed %d (%.1f s)\n", paint.green("ok"), what, r.Failed[0], r.Seconds)
	default:
		fmt.Fprintf(a.out, "%s  %s: %d of %d seeds failed, the first is %d\n%s\nreplay: %s\n", paint.red("FAIL"), what, len(r.Failed), r.Seeds, r.Failed[0], r.Error, r.Replay)
	}
}

func (a *app) listScenarios(all []sim.Scenario) error {
	return show(a, all,
		func(s sim.Scenario) map[string]any {
			canaries := s.Canaries
			if canaries == nil {
				canaries = []string{}
			}
			return map[string]any{"name": s.Name, "doc": s.Doc, "canaries": canaries}
		},
		func(s sim.Scenario) string { return s.Name },
		[]column[sim.Scenario]{
			{head: "SCENARIO", cell: func(s sim.Scenario) string { return s.Name }},
			{head: "CANARIES", cell: func(s sim.Scenario) string { return dash(strings.Join(s.Canaries, " ")) }},
			{head: "WHAT", cell: func(s sim.Scenario) string { return s.Doc }},
		})
}

// demoOnSimulator tells the demo's story where no VM can run.
func (a *app) demoOnSimulator(ctx context.Context) error {
	const name, seeds = "contain", 50
	s, ok := sim.Lookup(name)
	if !ok {
		return fmt.Errorf("this build has no scenario %q", name)
	}
	fmt.Fprintf(a.out, "\n== Cells that crash, pause and are cut off, VMs inside and across them: %d simulated clusters\n   %s\n", seeds, s.Doc)
	r, err := a.simScenario(ctx, s, 1, seeds, "", false)
	if err != nil {
		return err
	}
	a.reportSim(r, false)
	if len(r.Failed) > 0 {
		return exitStatus(api.ExitError)
	}
	fmt.Fprintf(a.out, "   In each of them the VMs that depended on a lost cell stopped, and no other VM was touched.\n")
	for _, canary := range s.Canaries {
		if r, err = a.simScenario(ctx, s, 1, 10*seeds, canary, false); err != nil {
			return err
		}
		a.reportSim(r, true)
	}
	return nil
}
