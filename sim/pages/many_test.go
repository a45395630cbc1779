package pages

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/sim"
)

// TestMany runs the seeds given as CELLVISOR_SEEDS=A..B, of every scenario here.
func TestMany(t *testing.T) {
	from, to, ok := strings.Cut(os.Getenv("CELLVISOR_SEEDS"), "..")
	if !ok {
		t.Skip("set CELLVISOR_SEEDS=A..B")
	}
	a, _ := strconv.ParseUint(from, 10, 64)
	b, _ := strconv.ParseUint(to, 10, 64)
	for _, name := range []string{"pages", "pages-crash", "reboot"} {
		s, _ := sim.Lookup(name)
		ran, failures := sim.RunSeeds(s, a, b, "", 1, nil)
		t.Logf("%s: %d seeds", name, ran)
		for _, f := range failures {
			t.Error(f)
		}
	}
}
