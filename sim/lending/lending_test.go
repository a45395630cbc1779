package lending

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim"
)

func TestSeeds(t *testing.T) {
	seeds := uint64(200)
	if testing.Short() {
		seeds = 20
	}
	s, _ := sim.Lookup("lending")
	if _, failures := sim.RunSeeds(s, 1, seeds, "", 3, nil); len(failures) > 0 {
		t.Fatal(failures[0])
	}
}

func TestCanariesAreFound(t *testing.T) {
	s, _ := sim.Lookup("lending")
	for _, canary := range s.Canaries {
		if _, failures := sim.RunSeeds(s, 1, 400, canary, 1, nil); len(failures) == 0 {
			t.Errorf("canary %s was not found", canary)
		}
	}
}
