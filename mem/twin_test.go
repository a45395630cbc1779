package mem

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// twin is the protocol without messages: what one program that sees everything would note of each page.
type twin map[ident.PageNo]map[int]State

func (w twin) access(part int, page ident.PageNo, write bool) {
	held := w[page]
	switch {
	case held[part].allows(accessOf(write)):
	case len(held) == 0, write:
		w[page] = map[int]State{part: Modified}
	default:
		for p := range held {
			held[p] = Shared
		}
		held[part] = Shared
	}
}

// TestAgainstTwin: after every access all parts hold what the twin says, and messages that arrive twice change nothing.
func TestAgainstTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const pages = 6
		parts := rapid.IntRange(1, 5).Draw(rt, "parts")
		c := newCluster(t, parts, Config{Pages: pages, RegionPages: 1})
		w := make(twin)
		for range rapid.IntRange(1, 60).Draw(rt, "accesses") {
			part, page := rapid.IntRange(0, parts-1).Draw(rt, "part"), ident.PageNo(rapid.IntRange(0, pages-1).Draw(rt, "page"))
			write := rapid.Bool().Draw(rt, "write")
			c.step(part, Event{Kind: EventFault, Page: page, Write: write})
			for i := 0; i < len(c.queue); i++ {
				ev := c.queue[i]
				c.step(int(ev.Msg.To), ev)
				if len(c.queue) < 200 && rapid.IntRange(0, 9).Draw(rt, "again") == 0 {
					c.queue = append(c.queue, ev)
				}
			}
			c.queue = c.queue[:0]
			if w.access(part, page, write); !c.agrees(rt, w) {
				rt.Fatalf("after part %d accessed page %d, write %t", part, page, write)
			}
		}
	})
}

func (c *cluster) agrees(t *rapid.T, w twin) bool {
	ok := true
	for i, core := range c.cores {
		if err := core.Check(); err != nil {
			t.Errorf("p%d: %v", i, err)
			ok = false
		}
		for page := range ident.PageNo(core.cfg.Pages) {
			if got := core.Page(page); got != w[page][i] {
				t.Errorf("p%d has page %d %v, the twin says %v", i, page, got, w[page][i])
				ok = false
			}
		}
		if core.Outstanding() != 0 || core.Transactions() != 0 {
			t.Errorf("p%d: %d requests, %d transactions left over", i, core.Outstanding(), core.Transactions())
			ok = false
		}
	}
	return ok
}
