package handover

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestSeeds(t *testing.T)    { simtest.Seeds(t, "handover", 300) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "handover", 400) }
