package contain

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestSeeds(t *testing.T)    { simtest.Seeds(t, "contain", 150) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "contain", 400) }
