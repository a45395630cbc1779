// Package simtest is what the tests of all scenarios have in common.
package simtest

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim"
)

// Seeds runs seeds 1 to n of a scenario, and a tenth of them with -short.
func Seeds(t *testing.T, scenario string, n uint64) {
	t.Helper()
	if testing.Short() {
		n = max(1, n/10)
	}
	if _, failures := sim.RunSeeds(lookUp(t, scenario), 1, n, "", 1, nil); len(failures) > 0 {
		t.Fatal(failures[0])
	}
}

// Canaries demands that each planted bug of a scenario is found within n seeds: a checker that cannot fail proves nothing.
func Canaries(t *testing.T, scenario string, n uint64) {
	t.Helper()
	s := lookUp(t, scenario)
	for _, canary := range s.Canaries {
		t.Run(canary, func(t *testing.T) {
			ran, failures := sim.RunSeeds(s, 1, n, canary, 1, nil)
			if len(failures) == 0 {
				t.Fatalf("planted bug %s was not found in %d seeds", canary, ran)
			}
			t.Logf("found by seed %d: %.200v", failures[0].Seed, failures[0].Err)
		})
	}
}

func lookUp(t *testing.T, scenario string) sim.Scenario {
	t.Helper()
	s, ok := sim.Lookup(scenario)
	if !ok {
		t.Fatalf("there is no scenario %s", scenario)
	}
	return s
}
