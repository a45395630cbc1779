package recover

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

var scenarios = []string{"recover", "disks", "ondisk"}

func TestSeeds(t *testing.T) {
	for _, name := range scenarios {
		t.Run(name, func(t *testing.T) { simtest.Seeds(t, name, 150) })
	}
}

func TestCanaries(t *testing.T) {
	for _, name := range scenarios {
		t.Run(name, func(t *testing.T) { simtest.Canaries(t, name, 1000) })
	}
}
