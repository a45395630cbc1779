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
