package recover

import (
	"flag"
	"testing"

	"github.com/cellvisor/cellvisor/sim"
)

var seeds = flag.Uint64("seeds", 150, "seeds of the scenario to run")

func TestSeeds(t *testing.T) {
	for _, name := range []string{"recover", "disks", "ondisk"} {
		t.Run(name, func(t *testing.T) { testSeeds(t, name) })
	}
}

func testSeeds(t *testing.T, name string) {
	s, _ := sim.Lookup(name)
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
	for _, name := range []string{"recover", "disks", "ondisk"} {
		s, _ := sim.Lookup(name)
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
}
