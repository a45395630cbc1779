package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// forwarded takes in Fwd or Inval: the directory wants this part to supply a page or to give it up.
func (c *Core) forwarded(m *wire.PageMsg) {
	e := c.entry(m.Page)
	switch {
	case m.Serial < e.serial && c.canary != canaryStaleSerial:
		c.counters.RefusedStale++
	case m.Serial == e.serial:
		c.repeat(m, e)
	case e.state == Invalid:
		c.supplyRetained(m, e)
	case c.mustKeep(m, e):
		c.deferMsg(m, e)
	default:
		c.yield(m, e)
	}
}

// repeat answers a Fwd or Inval that was answered before, the same way: the first answer may be lost. The contents given up are still in
// the memfd, and the requester drops what it has already.
func (c *Core) repeat(m *wire.PageMsg, e *pageEntry) {
	gaveUp := e.state == Invalid && e.grantee == m.Requester
	switch {
	case m.Kind == wire.KindInval && gaveUp:
		c.sendAck(m)
	case m.Kind == wire.KindFwdModified && gaveUp, m.Kind == wire.KindFwdShared && e.state != Invalid:
		c.sendData(m)
	default:
		c.counters.RefusedStale++
	}
}

// supplyRetained answers for a page of which the rebuilt directory found nothing better than the copy retained here.
func (c *Core) supplyRetained(m *wire.PageMsg, e *pageEntry) {
	if m.Flags&wire.FlagRetained == 0 || m.Kind == wire.KindInval || e.serial == 0 {
		c.counters.RefusedInvalid++
		return
	}
	e.serial = m.Serial
	if m.Kind == wire.KindFwdShared {
		c.setState(e, Shared) // not mapped before the guest asks
	} else {
		e.grantee = m.Requester
	}
	c.sendData(m)
}

// mustKeep tells whether a window or a pin forbids to do now what m asks for.
func (c *Core) mustKeep(m *wire.PageMsg, e *pageEntry) bool {
	if e.flags&flagHot == 0 && (e.flags&flagPinned == 0 || c.canary == canaryPinIgnored) {
		return false
	}
	if m.Kind != wire.KindFwdShared {
		return true
	}
	if e.state == Shared {
		return false // supplying a copy takes nothing away
	}
	return e.flags&flagHot != 0 || c.pinnedForWrite(m.Page)
}

func (c *Core) pinnedForWrite(page ident.PageNo) bool {
	for i := range c.pins {
		if p := &c.pins[i]; p.page == page && p.held && p.write {
			return true
		}
	}
	return false
}

// deferMsg holds m back. The directory has one transaction on a page at a time, so there is at most one such message, perhaps repeated.
func (c *Core) deferMsg(m *wire.PageMsg, e *pageEntry) {
	d := c.deferred.get(m.Page)
	if d == nil {
		d = c.deferred.put(m.Page)
		e.flags |= flagDeferred
		c.counters.Deferred++
	}
	if m.Serial >= d.Serial {
		*d = *m
	}
}

// releaseDeferred does what was held back for page if nothing forbids it any more.
func (c *Core) releaseDeferred(page ident.PageNo, e *pageEntry) {
	if e.flags&flagDeferred == 0 {
		return
	}
	m := *c.deferred.get(page)
	if c.mustKeep(&m, e) {
		return
	}
	c.dropDeferred(page, e)
	c.forwarded(&m)
}

func (c *Core) dropDeferred(page ident.PageNo, e *pageEntry) {
	e.flags &^= flagDeferred
	c.deferred.del(page)
}

// yield gives up write access or the page, and only then answers.
func (c *Core) yield(m *wire.PageMsg, e *pageEntry) {
	if c.canary == canaryReadBeforeRevoke && m.Kind != wire.KindInval {
		c.sendData(m)
	}
	e.serial = m.Serial
	if m.Kind == wire.KindFwdShared {
		if e.state == Modified {
			if c.canary != canaryNoDowngrade {
				c.effect(EffectProtect, m.Page)
			}
			c.setState(e, Shared)
			c.leaves(m.Page, e, accessWrite)
		}
	} else {
		c.counters.Invalidated++
		c.effect(EffectRevoke, m.Page)
		c.leaves(m.Page, e, accessOf(e.state == Modified))
		c.setState(e, Invalid)
		e.grantee = m.Requester
		if e.flags&flagWatched != 0 {
			c.note(Traffic{Kind: Unused, Page: m.Page, Peer: m.Requester})
		}
		c.note(Traffic{Kind: Left, Page: m.Page, Peer: m.Requester})
		e.flags &^= flagMapped | flagWatched
	}
	switch {
	case m.Kind == wire.KindInval:
		c.sendAck(m)
	case c.canary != canaryReadBeforeRevoke:
		c.sendData(m)
	}
}

func (c *Core) sendData(m *wire.PageMsg) {
	c.counters.ContentsSent++
	d := wire.PageMsg{Kind: wire.KindData, Flags: wire.FlagContents, Page: m.Page, Requester: m.Requester, Serial: m.Serial, Acks: m.Acks,
		ReqID: m.ReqID, BodyBytes: wire.PageBodyBytes}
	if m.Kind == wire.KindFwdModified {
		d.Flags |= wire.FlagWrite
	}
	c.send(m.Requester, d)
}

func (c *Core) sendAck(m *wire.PageMsg) {
	c.send(m.Requester, wire.PageMsg{Kind: wire.KindAck, Page: m.Page, Requester: m.Requester, Serial: m.Serial, ReqID: m.ReqID})
}

// windows are the pages in their window, those that end first at the head. It is a ring, its length a power of two.
type windows struct {
	ring       []window
	head, tail uint32 // sequence numbers; the ring holds [head, tail)
}

type window struct {
	page  ident.PageNo
	until ident.Micros
}

func (c *Core) openWindow(page ident.PageNo, e *pageEntry) {
	if c.cfg.Window == 0 {
		return
	}
	w := &c.windows
	if w.tail-w.head == uint32(len(w.ring)) {
		w.grow()
	}
	w.ring[w.tail&uint32(len(w.ring)-1)] = window{page, c.windowEnd()}
	e.window = w.tail
	e.flags |= flagHot
	w.tail++
}

// windowEnd is until when a page that is installed now is kept. It never goes back, but by EventYield, which ends all windows.
func (c *Core) windowEnd() ident.Micros {
	until := c.now + c.cfg.Window
	if c.cfg.Stint == 0 {
		return until
	}
	if stint := c.now / c.cfg.Stint; c.isTurn(stint) {
		until = max(until, (stint+1)*c.cfg.Stint)
	}
	return until
}

// isTurn tells whether a stint is this part's. They go round, but one can be passed on by the part whose it is, and taken by another.
func (c *Core) isTurn(stint ident.Micros) bool {
	switch stint {
	case c.passed - 1:
		return false
	case c.given - 1:
		return true
	}
	before, all := (c.members & (1<<c.cfg.Self - 1)).Len(), c.members.Len()
	return all > 0 && int(stint%ident.Micros(all)) == before
}

// passTurn leaves the rest of the stint to other parts.
func (c *Core) passTurn() {
	if c.cfg.Stint == 0 {
		return
	}
	c.passed, c.given = c.now/c.cfg.Stint+1, 0
	c.endStint()
}

// takeTurn makes the rest of the stint this part's.
func (c *Core) takeTurn() {
	if c.cfg.Stint != 0 {
		c.given, c.passed = c.now/c.cfg.Stint+1, 0
	}
}

// endStint ends all windows.
func (c *Core) endStint() {
	if c.cfg.Stint == 0 {
		return
	}
	w := &c.windows
	for i := w.head; i != w.tail; i++ {
		at := &w.ring[i&uint32(len(w.ring)-1)]
		at.until = min(at.until, c.now)
	}
	c.expireWindows()
}

func (w *windows) grow() {
	ring := make([]window, max(16, 2*len(w.ring)))
	for i := w.head; i != w.tail; i++ {
		ring[i&uint32(len(ring)-1)] = w.ring[i&uint32(len(w.ring)-1)]
	}
	w.ring = ring
}

// expireWindows ends the windows whose time has come, except those that a later window of the same page follows.
func (c *Core) expireWindows() {
	w := &c.windows
	for w.head != w.tail {
		first := w.ring[w.head&uint32(len(w.ring)-1)]
		if first.until > c.now {
			return
		}
		if e := c.entry(first.page); e.window == w.head {
			e.flags &^= flagHot
			c.releaseDeferred(first.page, e)
		}
		w.head++
	}
}
