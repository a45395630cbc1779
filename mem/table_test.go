package mem

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// TestPageMapAgainstTwin: pageMap does what a Go map does.
func TestPageMapAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m pageMap[int]
		twin := make(map[ident.PageNo]int)
		page := rapid.Custom(func(t *rapid.T) ident.PageNo { return ident.PageNo(rapid.IntRange(0, 40).Draw(t, "page")) })
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				p, v := page.Draw(t, "page"), rapid.Int().Draw(t, "value")
				if m.get(p) == nil {
					m.put(p)
				}
				*m.get(p) = v
				twin[p] = v
			},
			"del": func(t *rapid.T) {
				p := page.Draw(t, "page")
				m.del(p)
				delete(twin, p)
			},
			"clear": func(t *rapid.T) {
				if rapid.IntRange(0, 20).Draw(t, "rarely") == 0 {
					m.clear()
					clear(twin)
				}
			},
			"": func(t *rapid.T) {
				for p := range ident.PageNo(41) {
					v, ok := twin[p]
					if got := m.get(p); (got != nil) != ok || ok && *got != v {
						t.Fatalf("page %d: %v, twin %d %t", p, got, v, ok)
					}
				}
				n := 0
				m.each(func(p ident.PageNo, v *int) bool {
					n++
					if twin[p] != *v {
						t.Fatalf("each: page %d is %d, twin %d", p, *v, twin[p])
					}
					return true
				})
				if n != len(twin) || m.n != n {
					t.Fatalf("%d values, counted %d, twin %d", n, m.n, len(twin))
				}
			},
		})
	})
}
