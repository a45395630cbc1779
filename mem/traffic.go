package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

func (c *Core) note(t Traffic) {
	if c.cfg.Observe {
		c.traffic = append(c.traffic, t)
	}
}

// noteInstall notes that a page which somebody waits for has come.
func (c *Core) noteInstall(page ident.PageNo, r *request, e *pageEntry, got State) {
	t := Traffic{Page: page, Peer: r.source, By: r.by, Waited: c.now - r.since}
	switch {
	case r.flags&wire.FlagZero != 0:
		t.Kind = Zeroed
	case r.contents && got == Modified:
		t.Kind = CameWrite
	case r.contents:
		t.Kind = CameRead
	case e.state == Shared && got == Modified:
		t.Kind, t.Peer = Upgraded, c.cfg.Self
		if r.need != 0 {
			t.Peer = r.need.First()
		}
	default:
		return
	}
	c.note(t)
}

// noteAsked notes a request for a page that has no transaction under way.
func (c *Core) noteAsked(page ident.PageNo, e *dirEntry, from ident.Part, write bool) {
	if !c.cfg.Observe || !c.cfg.Rehome {
		return
	}
	region := c.regionOf(page)
	t := Traffic{Kind: Asked, At: c.cfg.Self, Peer: from, Holder: from, Page: ident.PageNo(region << c.shift), Moves: c.place(region).n}
	switch others := e.holders.Clear(from); {
	case e.state == Zero, e.holders.Has(from) && !write, others == 0:
	case others.Has(c.cfg.Self):
		t.Holder = c.cfg.Self
	default:
		t.Holder = others.First()
	}
	c.note(t)
}
