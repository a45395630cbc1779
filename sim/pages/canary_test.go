package pages

import (
	"testing"

	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/sim"
)

// canarySeeds is within how many seeds each planted bug must be found; CI runs more than that.
const canarySeeds = 2000

// TestCanaries proves that the checks can fail: each bug that mem can plant is found.
func TestCanaries(t *testing.T) {
	missing := make(map[string]bool)
	for _, name := range mem.Canaries() {
		missing[name] = true
	}
	for _, name := range []string{"pages", "pages-crash", "reboot"} {
		s, _ := sim.Lookup(name)
		for _, canary := range s.Canaries {
			delete(missing, canary)
			t.Run(canary, func(t *testing.T) {
				ran, failures := sim.RunSeeds(s, 1, canarySeeds, canary, 1, nil)
				if len(failures) == 0 {
					t.Fatalf("not found within %d seeds", ran)
				}
				t.Logf("found by seed %d: %.150s", failures[0].Seed, failures[0].Err.Error())
			})
		}
	}
	for name := range missing {
		t.Errorf("canary %s is in no scenario", name)
	}
}
