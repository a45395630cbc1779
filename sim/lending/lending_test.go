package lending

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestSeeds(t *testing.T)    { simtest.Seeds(t, "lending", 200) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "lending", 400) }
