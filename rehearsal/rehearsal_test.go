package rehearsal

import (
	"flag"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/drills"
)

var seeds = flag.Uint64("seeds", 3, "seeds of each ready drill to run")

func load(t *testing.T, name string) *drill.Program {
	t.Helper()
	src, err := drills.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	p, err := drill.Load(name, src)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every ready drill passes on the simulator, unchanged.
func TestReadyDrills(t *testing.T) {
	for _, name := range drills.Names() {
		t.Run(name, func(t *testing.T) {
			p := load(t, name)
			for seed := range *seeds {
				rep, err := Run(t.Context(), p, Options{Seed: seed + 1})
				if err != nil {
					t.Fatal(err)
				}
				if rep.Verdict != drill.Passed {
					t.Errorf("%s: %s\nreplay: %s", rep.Verdict, rep.Why, rep.Replay)
				}
			}
		})
	}
}

// A drill that cannot fail proves nothing: planted bugs of the simulated workers are found, by a seed that replays.
func TestCanaries(t *testing.T) {
	p := load(t, "lose-the-home")
	for _, canary := range Canaries() {
		sum, err := Seeds(t.Context(), p, Options{Canary: canary}, 1, 300, false, func(uint64) {})
		if err != nil {
			t.Fatal(err)
		}
		if len(sum.Failed) == 0 {
			t.Errorf("planted bug %s was not found in %d seeds", canary, sum.Seeds)
			continue
		}
		again, err := Run(t.Context(), p, Options{Canary: canary, Seed: sum.Failed[0]})
		if err != nil || again.Why != sum.Report.Why || again.TookMs != sum.Report.TookMs {
			t.Errorf("%s: seed %d does not replay: %v, %q, then %q", canary, sum.Failed[0], err, sum.Report.Why, again.Why)
		}
		t.Logf("%s: %s", sum.Replay, sum.Report.Why)
	}
}

// A wrong expectation shows what happened instead, and how to see it again.
func TestWrongExpectation(t *testing.T) {
	p, err := drill.Load("wrong.star", []byte("def drill():\n    p = vm('p', payload = 'idle', span = ['b'])\n    kill('b')\n    expect(dead('b'), within = '1m')\n    expect(running(p), name = 'p survives')\n"))
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Run(t.Context(), p, Options{Seed: 7})
	if err != nil || rep.Verdict != drill.Failed || !rep.Healing.OK {
		t.Fatalf("%v %+v", err, rep)
	}
	for _, want := range []string{"p survives", "wrong.star:5", "VM p is lost (cell b lost in epoch"} {
		if !strings.Contains(rep.Why, want) {
			t.Errorf("%q lacks %q", rep.Why, want)
		}
	}
	if rep.Replay != "cellvisor drill run wrong.star --sim --seeds 7..7" {
		t.Error(rep.Replay)
	}
}
