package gang

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestSeeds(t *testing.T)    { simtest.Seeds(t, "gang", 200) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "gang", 400) }
