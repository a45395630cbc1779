package pages

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim"
)

func seeds(t *testing.T, name string, n uint64) {
	t.Helper()
	s, _ := sim.Lookup(name)
	if testing.Short() {
		n /= 4
	}
	_, failures := sim.RunSeeds(s, 1, n, "", 1, nil)
	for _, f := range failures {
		t.Fatal(f)
	}
}

func TestPages(t *testing.T)      { seeds(t, "pages", 200) }
func TestReboot(t *testing.T)     { seeds(t, "reboot", 300) }
func TestPagesCrash(t *testing.T) { seeds(t, "pages-crash", 200) }
