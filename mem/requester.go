package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// access is what a fault, a pin or a request asks for.
type access uint8

const (
	accessNone access = iota
	accessRead
	accessWrite
)

func accessOf(write bool) access {
	if write {
		return accessWrite
	}
	return accessRead
}

// allows tells whether a page in state s can be accessed as a asks.
func (s State) allows(a access) bool {
	return a == accessNone || s == Modified || s == Shared && a == accessRead
}

// request is a page on its way to this part: asked for, or granted unasked because a request was repeated by the network.
type request struct {
	want     access // by faults and pins; none for read-ahead
	asked    access // by the message reqID; none if it has not been sent
	prefetch bool   // the message reqID may be refused
	company  bool   // nobody waits for it, but it is kept as if somebody did
	watched  bool   // it is not mapped unless somebody wants it, which tells whether it was of use
	by       uint16 // who wanted it first
	since    ident.Micros
	reqID    uint64
	timer    timer

	// The transaction that answers, as far as it has arrived: it is complete with have and acknowledgements from all of need.
	serial    uint64
	need, got ident.PartSet
	have      bool // Data or Grant is here
	contents  bool // it was Data
	source    ident.Part
	flags     wire.PageFlags
}

// pin is a device's hold on a page, or its wait for it.
type pin struct {
	page  ident.PageNo
	token uint64
	write bool
	held  bool
}

func (c *Core) fault(page ident.PageNo, write bool, by uint16) {
	if uint64(page) >= c.cfg.Pages {
		panic("mem: fault outside the VM's memory") // the shell registers no more than that
	}
	c.counters.Faults++
	e := c.entry(page)
	if e.state.allows(accessOf(write)) {
		// Two vCPUs faulted together, or the vCPU faulted again before its mapping was there.
		c.counters.SpuriousFaults++
		if e.flags&flagWatched != 0 {
			e.flags &^= flagWatched
			c.note(Traffic{Kind: Used, Page: page, By: by})
		}
		c.mapPage(e, page)
		return
	}
	e.turns = companyTurns
	c.want(page, accessOf(write), by)
	c.gather()
	if c.cfg.ReadAhead > 0 {
		c.readAhead(page, write)
	}
}

func (c *Core) mapPage(e *pageEntry, page ident.PageNo) {
	c.effects = append(c.effects, Effect{Kind: EffectMap, Page: page, Writable: e.state == Modified, Upgrade: e.flags&flagMapped != 0})
	e.flags |= flagMapped
}

// want sees to it that this part gets the access, which it does not have.
func (c *Core) want(page ident.PageNo, a access, by uint16) {
	if r := c.requests.get(page); r != nil {
		if r.want == accessNone {
			r.by, r.since = by, c.now
		}
		r.want = max(r.want, a)
		return
	}
	r := c.newRequest(page)
	r.want, r.by, r.since = a, by, c.now
	c.ask(page, r)
}

func (c *Core) newRequest(page ident.PageNo) *request {
	c.entry(page).flags |= flagWanted
	r := c.requests.put(page)
	c.startTimer(&r.timer)
	return r
}

func (c *Core) endRequest(page ident.PageNo) {
	c.entry(page).flags &^= flagWanted
	c.requests.del(page)
}

// ask sends r's request under a new number.
func (c *Core) ask(page ident.PageNo, r *request) {
	c.reqID++
	r.reqID, r.asked = c.reqID, r.want
	c.startTimer(&r.timer)
	c.sendRequest(page, r)
}

func (c *Core) sendRequest(page ident.PageNo, r *request) {
	if c.epoch == 0 {
		return // membersChanged asks
	}
	m := wire.PageMsg{Kind: wire.KindGetShared, Page: page, Requester: c.cfg.Self, ReqID: r.reqID}
	if r.asked == accessWrite {
		m.Kind = wire.KindGetModified
	}
	if r.prefetch {
		m.Flags = wire.FlagPrefetch
	}
	c.send(c.Directory(page), m)
}

// incoming returns the request that takes in transaction serial, made up if this part has not asked, or nil if the transaction is over.
// Nothing of a transaction can arrive before its directory saw the former one done, so a higher serial displaces a lower one.
func (c *Core) incoming(m *wire.PageMsg, e *pageEntry) *request {
	if m.Serial < e.serial && c.canary != canaryStaleSerial || m.Serial == e.serial && (e.state != Invalid || e.grantee != c.cfg.Self) {
		if m.Kind != wire.KindAck && m.Serial == e.serial && e.state != Invalid && c.canary != canaryDoneOnce {
			// It is installed and Done was lost, or this is a mere repeat, which a second Done does not disturb.
			c.send(c.Directory(m.Page), wire.PageMsg{Kind: wire.KindDone, Page: m.Page, Requester: c.cfg.Self, Serial: m.Serial, ReqID: m.ReqID})
		}
		c.counters.RefusedStale++
		return nil
	}
	r := c.requests.get(m.Page)
	if r == nil {
		r = c.newRequest(m.Page)
	}
	switch {
	case m.Serial < r.serial:
		c.counters.RefusedStale++
		return nil
	case m.Serial > r.serial:
		r.serial, r.need, r.got, r.have = m.Serial, 0, 0, false
	}
	return r
}

// granted takes in Data or Grant.
func (c *Core) granted(m *wire.PageMsg) {
	e := c.entry(m.Page)
	if m.Serial > e.serial && !c.grantFits(m, e) {
		c.counters.RefusedInvalid++
		return
	}
	r := c.incoming(m, e)
	if r == nil {
		return
	}
	if r.have {
		c.counters.RefusedStale++
		return
	}
	r.have, r.need, r.flags, r.contents, r.source = true, m.Acks, m.Flags, m.Kind == wire.KindData, m.From
	if r.contents {
		// From here on the memfd has the new contents: say so, for the reports of a change of epoch that comes before the installation.
		c.effect(EffectStore, m.Page)
		e.serial, e.grantee = m.Serial, c.cfg.Self
	}
	c.tryInstall(m.Page, r, e)
}

// grantFits tells whether what m brings makes sense in the state that this part has the page in.
func (c *Core) grantFits(m *wire.PageMsg, e *pageEntry) bool {
	switch {
	case m.Kind == wire.KindData, m.Flags&wire.FlagZero != 0:
		return e.state == Invalid
	case m.Flags&wire.FlagRetained != 0:
		return e.state == Invalid && e.serial != 0
	}
	return e.state != Invalid
}

func (c *Core) acked(m *wire.PageMsg) {
	e := c.entry(m.Page)
	if r := c.incoming(m, e); r != nil {
		r.got = r.got.Set(m.From)
		c.tryInstall(m.Page, r, e)
	}
}

// tryInstall ends the transaction at this part once the contents and every acknowledgement are here.
func (c *Core) tryInstall(page ident.PageNo, r *request, e *pageEntry) {
	if !r.have || r.need&^r.got != 0 && c.canary != canaryEarlyGrant {
		return
	}
	got := Shared
	if r.flags&wire.FlagWrite != 0 {
		got = Modified
	}
	c.countInstall(page, r, e, got)
	if r.flags&wire.FlagZero != 0 {
		c.effect(EffectZero, page)
	}
	if e.state != Modified {
		c.setState(e, got)
	}
	e.serial = r.serial
	switch {
	case r.want != accessNone || !r.watched || e.state != Shared:
		e.flags &^= flagWatched
		c.mapPage(e, page)
	case e.flags&flagMapped == 0:
		e.flags |= flagWatched
	}
	if r.want != accessNone || r.company {
		c.openWindow(page, e)
	}
	c.send(c.Directory(page), wire.PageMsg{Kind: wire.KindDone, Page: page, Requester: c.cfg.Self, Serial: r.serial, ReqID: r.reqID})
	c.holdPins(page, e)
	if !e.state.allows(r.want) {
		// A reader's grant arrived, and a writer has come meanwhile.
		r.serial, r.need, r.got, r.have, r.prefetch, r.company, r.since = 0, 0, 0, false, false, false, c.now
		c.ask(page, r)
		return
	}
	c.endRequest(page)
}

func (c *Core) countInstall(page ident.PageNo, r *request, e *pageEntry, got State) {
	if r.want == accessNone {
		c.counters.Prefetched++
	} else {
		c.noteInstall(page, r, e, got)
	}
	switch {
	case r.flags&wire.FlagZero != 0:
		c.counters.ZeroFills++
	case r.contents && got == Modified:
		c.counters.RemoteWrites++
	case r.contents:
		c.counters.RemoteReads++
	case e.state == Shared && got == Modified:
		c.counters.Upgrades++
	}
}

// noPrefetch takes in the refusal of a read-ahead request.
func (c *Core) noPrefetch(m *wire.PageMsg) {
	r := c.requests.get(m.Page)
	if r == nil || r.reqID != m.ReqID || !r.prefetch {
		c.counters.RefusedStale++
		return
	}
	c.counters.PrefetchRefused++
	r.prefetch = false
	switch {
	case r.want != accessNone: // a fault has come meanwhile
		c.ask(m.Page, r)
	case r.serial == 0:
		c.endRequest(m.Page)
	}
}

// lost takes in that the page's latest contents are gone. Whoever waits for it is told.
func (c *Core) lost(m *wire.PageMsg) {
	r := c.requests.get(m.Page)
	if r == nil || r.reqID != m.ReqID {
		c.counters.RefusedStale++
		return
	}
	waits := r.want != accessNone
	c.endRequest(m.Page)
	if !waits {
		return
	}
	c.effect(EffectLostPage, m.Page)
	kept := c.pins[:0]
	for _, p := range c.pins {
		if p.page == m.Page && !p.held {
			c.effects = append(c.effects, Effect{Kind: EffectLostPage, Page: p.page, Token: p.token})
			continue
		}
		kept = append(kept, p)
	}
	c.pins = kept
}

func (c *Core) pin(page ident.PageNo, write bool, token uint64) {
	if uint64(page) >= c.cfg.Pages {
		panic("mem: pin outside the VM's memory") // the shell checks what devices ask for
	}
	c.pins = append(c.pins, pin{page: page, token: token, write: write})
	e := c.entry(page)
	// A page that somebody waits for is not pinned anew: a chain of pins would keep it for ever.
	if e.state.allows(accessOf(write)) && e.flags&flagDeferred == 0 {
		c.holdPins(page, e)
		return
	}
	c.want(page, accessOf(write), 0)
}

// holdPins answers the pins that wait for page and can be held now.
func (c *Core) holdPins(page ident.PageNo, e *pageEntry) {
	for i := range c.pins {
		if p := &c.pins[i]; p.page == page && !p.held && e.state.allows(accessOf(p.write)) {
			p.held = true
			e.flags |= flagPinned
			c.effects = append(c.effects, Effect{Kind: EffectPinned, Page: page, Token: p.token})
		}
	}
}

func (c *Core) unpin(page ident.PageNo, token uint64) {
	pinned := false
	kept := c.pins[:0]
	for _, p := range c.pins {
		if p.page == page && p.token == token {
			continue
		}
		kept = append(kept, p)
		pinned = pinned || p.page == page && p.held
	}
	c.pins = kept
	e := c.entry(page)
	if !pinned {
		e.flags &^= flagPinned
	}
	c.releaseDeferred(page, e)
}
