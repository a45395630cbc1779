package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
	"github.com/cellvisor/cellvisor/wire"
)

// Where all parts know how, directories go to where requests come from.
func TestPartsOfOneVersionPassDirectoriesOn(t *testing.T) {
	v := startVMWith(t, map[string]string{wire.OptionLocality: "rehome"}, "phases", "100000 10", 32*ident.MiB, 1, 1, 1)
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case s := <-v.parts[0].stats:
			if s.Locality != nil && s.Locality.Homes > 0 {
				return
			}
		case <-deadline:
			t.Fatalf("no directory has gone anywhere\n%s", v.logs())
		}
	}
}

// A VM one part of which is of an older program works, and no directory goes anywhere: the older part would not know what is said to it.
func TestOlderPartIsSpared(t *testing.T) {
	for _, older := range []string{"0", "1"} {
		t.Run("part "+older, func(t *testing.T) {
			v := startVMWith(t, map[string]string{wire.OptionLocality: "rehome", "older": older}, "phases", "2 2 1500", 32*ident.MiB, 1, 1, 1)
			v.mustExit(2 * time.Minute)
			for i, p := range v.parts {
				for len(p.stats) > 0 {
					if s := <-p.stats; s.Locality != nil && s.Locality.Homes > 0 {
						t.Errorf("part %d has given %d directories away", i, s.Locality.Homes)
					}
				}
			}
		})
	}
}

// The processors of a Linux machine stay where they are while a part does not know how to take one over with its local APIC.
func TestProcessorsAreNotHandedToAnOlderPart(t *testing.T) {
	v := startLinux(t, linuxtest.SMP(2000), 2, map[string]string{"older": "1"})
	if e := v.hand(1, 1, 1, 0); e.Moved || !strings.Contains(e.Why, "older version") {
		t.Errorf("%+v", e)
	}
}
