package pages

import (
	"testing"

	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/simtest"
)

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
		}
		simtest.Canaries(t, name, 2000)
	}
	for name := range missing {
		t.Errorf("canary %s is in no scenario", name)
	}
}
