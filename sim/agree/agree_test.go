package agree

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestSeeds(t *testing.T)    { simtest.Seeds(t, "agree", 150) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "agree", 800) }
