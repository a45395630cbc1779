package recover

import (
	"flag"
	"testing"

	"github.com/cellvisor/cellvisor/sim"
)

var seeds = flag.Uint64("seeds", 150, "seeds of the scenario to run")

func TestSeeds(t *testing.T) {
	s, _ := sim.Lookup("recover")
	n := *seeds
	if testing.Short() || raceBuild {
		n = min(n, 10)
	}
	_, failures := sim.RunSeeds(s, 1, n, "", 1, nil)
	for _, f := range failures {
		t.Fatal(f)
	}
}

// A checker that cannot fail proves nothing: every planted bug must be found.
func TestCanaries(t *testing.T) {
	if raceBuild {
		t.Skip("the race build finds races; planted bugs are found by the other one")
	}
	s, _ := sim.Lookup("recover")
	for _, canary := range s.Canaries {
		t.Run(canary, func(t *testing.T) {
			ran, failures := sim.RunSeeds(s, 1, 1000, canary, 1, nil)
			if len(failures) == 0 {
				t.Fatalf("planted bug %s was not found in %d seeds", canary, ran)
			}
			t.Logf("found by seed %d: %.200v", failures[0].Seed, failures[0].Err)
		})
	}
}
