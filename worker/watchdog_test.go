package worker

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		name       string
		see        func(tick int) seen
		kick, zap  int
		fail       string
		afterTicks int
	}{
		{"a vCPU that computes and leaves when it is kicked", func(n int) seen {
			return seen{leased: true, inside: []uint64{uint64(1 + n/4)}, asking: []bool{false}}
		}, 25, 0, "", 100},
		{"one that never leaves", func(int) seen { return seen{leased: true, inside: []uint64{7}, asking: []bool{false}} }, 1, 1, "vCPU 0", failTicks + 1},
		{"one that waits for a page", func(n int) seen {
			return seen{leased: true, inside: []uint64{7}, asking: []bool{false}, wanted: []ident.PageNo{ident.PageNo(n / 15)}}
		}, 1, 0, "", 100},
		{"a page that never comes", func(int) seen {
			return seen{leased: true, inside: []uint64{7}, asking: []bool{false}, wanted: []ident.PageNo{3}}
		}, 1, 0, "page 0x3", waitTicks},
		{"a home that is silent", func(int) seen { return seen{leased: true, inside: []uint64{0}, asking: []bool{true}} }, 0, 0, "home", waitTicks},
		{"no lease: nothing is due", func(int) seen {
			return seen{inside: []uint64{7}, asking: []bool{true}, wanted: []ident.PageNo{3}}
		}, 0, 0, "", 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d watchdog
			kick, zap, fail, at := 0, 0, "", 0
			for n := range 100 {
				v := d.tick(c.see(n))
				kick, zap = kick+len(v.kick), zap+len(v.zap)
				if v.fail != "" {
					fail, at = v.fail, n+1
					break
				}
			}
			if kick != c.kick || zap != c.zap || c.fail == "" && fail != "" || !strings.Contains(fail, c.fail) || fail != "" && at != c.afterTicks {
				t.Errorf("%d kicks, %d zaps, %q after %d ticks", kick, zap, fail, at)
			}
		})
	}
}
