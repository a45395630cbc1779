package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// place is where a region's directory is.
//
// A region's directory can go to another part within an epoch, if Config.Rehome is set. It begins each epoch at the part that the region's number says.
//
//	giver                               taker                  others
//	  | (asked for, and no transaction     |                      |
//	  |  on a page of the region is open)  |                      |
//	  |--- Home n: what it knows --------->|  is the directory    |
//	  |<-- HomeAck n ----------------------|--- Homed n --------->|  know where to ask
//	  |--- requests that came meanwhile -->|
//
// The places at which a region's directory has been are numbered, n. The giver stops serving when it sends Home n, the taker begins when it has it, so
// nobody else ever serves. Who has given it away knows to whom, and passes on what comes late: along rising numbers, so nothing goes in circles.
//
// When the epoch ends, each part that knows of such a place reports it. Of all reports about a region the one with the highest number counts, since
// who gave the directory away later would have reported, or is dead, and then so is what it knew:
//   - its reporter is at that place: it was the directory to the end;
//   - another survivor is, which has not reported so: Home n was lost, the giver's knowledge is the latest;
//   - otherwise who was the directory last has died, or may have, and with it what it knew.
type place struct {
	n    uint32 // 0: where the region's number says
	part ident.Part
}

// giving is a Home that has not been acknowledged.
type giving struct {
	region uint64
	to     ident.Part
	n      uint32
	top    uint64 // the highest serial in the region
	body   []byte
	timer  timer
	held   []wire.PageMsg // requests for the taker
}

// rehoming is what a part knows of regions' directories that are not where their numbers say; nothing of it outlives its epoch.
type rehoming struct {
	places []place // by region; nil: none is elsewhere
	giving []giving

	stay     bool // a member may not know of any of this
	asked    bool // region is to go to part to, as soon as it is at rest
	region   uint64
	to       ident.Part
	deadline ident.Micros
}

// Bounds of rehoming.
const (
	restIn  = 50 * ident.Millisecond // a region that was not at rest by then stays
	maxHeld = 64                     // requests; more are repeated by who asks
)

func (c *Core) place(region uint64) place {
	if c.homes.places == nil {
		return place{}
	}
	return c.homes.places[region]
}

func (c *Core) setPlace(region uint64, p place) {
	if c.homes.places == nil {
		c.homes.places = make([]place, len(c.pages.chunks))
	}
	c.homes.places[region] = p
}

// anchor is the part whose directory shard a region belongs to when an epoch begins.
func (c *Core) anchor(region uint64) ident.Part { return c.shards[region%uint64(len(c.shards))] }

// homeOf is where a region's directory is, as far as this part knows.
func (c *Core) homeOf(region uint64) ident.Part {
	if p := c.place(region); p.n != 0 {
		return p.part
	}
	return c.anchor(region)
}

// pass sends what is for a region's directory to where that has gone.
func (c *Core) pass(m *wire.PageMsg) {
	region := c.regionOf(m.Page)
	c.counters.Passed++
	for i := range c.homes.giving {
		if g := &c.homes.giving[i]; g.region == region {
			if m.Kind != wire.KindDone {
				g.hold(m)
			}
			return
		}
	}
	c.send(c.homeOf(region), *m)
}

// hold keeps a request for the taker; a part has one for a page at a time.
func (g *giving) hold(m *wire.PageMsg) {
	for i := range g.held {
		if h := &g.held[i]; h.Page == m.Page && h.Requester == m.Requester {
			*h = *m
			return
		}
	}
	if len(g.held) < maxHeld {
		g.held = append(g.held, *m)
	}
}

// rehome takes in that a page's region should have its directory at another part.
func (c *Core) rehome(page ident.PageNo, to ident.Part) {
	if !c.cfg.Rehome || c.epoch == 0 || uint64(page) >= c.cfg.Pages || to == c.cfg.Self || !c.members.Has(to) {
		return
	}
	h := &c.homes
	if h.stay && c.canary != canaryHomeUnknown {
		return
	}
	h.asked, h.region, h.to, h.deadline = true, c.regionOf(page), to, c.now+restIn
}

// giveAway does it if nothing is open.
func (c *Core) giveAway() {
	h := &c.homes
	switch {
	case c.now > h.deadline || c.homeOf(h.region) != c.cfg.Self || !c.members.Has(h.to) || c.rebuild != nil || c.past.ready != c.members || c.past.lost.has(h.region):
		h.asked = false
		return
	case !c.atRest(h.region) && c.canary != canaryHomeBusy:
		return
	}
	h.asked = false
	g := giving{region: h.region, to: h.to, n: c.place(h.region).n + 1}
	if !c.describe(&g) {
		return
	}
	c.counters.HomesGiven++
	if c.canary != canaryHomeTwice {
		c.setPlace(h.region, place{g.n, g.to})
	}
	c.startTimer(&g.timer)
	h.giving = append(h.giving, g)
	c.sendHome(&h.giving[len(h.giving)-1])
}

func (c *Core) atRest(region uint64) bool {
	rest := true
	c.transactions.each(func(page ident.PageNo, _ *transaction) bool {
		rest = c.regionOf(page) != region
		return rest
	})
	return rest
}

// describe puts what the directory knows of a region into records; false if it does not fit one message, or is more than who holds what.
func (c *Core) describe(g *giving) bool {
	var recs []wire.Holding
	first := ident.PageNo(g.region << c.shift)
	if c.dir.chunks[g.region] == nil && c.blank(g.region).state != Zero {
		return false
	}
	for i := range c.dir.chunks[g.region] {
		e := &c.dir.chunks[g.region][i]
		g.top = max(g.top, e.serial)
		h := wire.Holding{Kind: wire.HoldingShared, Page: uint64(first) + uint64(i), Count: 1, Serial: uint64(e.holders)}
		switch e.state {
		case Zero:
			h.Count = 0
		case Modified:
			h.Kind = wire.HoldingModified
		case Shared:
		default:
			return false
		}
		if recs = appendRun(recs, h); len(recs) > wire.HoldingsMax {
			return false
		}
	}
	g.body = make([]byte, len(recs)*wire.HoldingBytes)
	for i := range recs {
		wire.PutHolding(g.body[i*wire.HoldingBytes:], &recs[i])
	}
	return true
}

func (c *Core) sendHome(g *giving) {
	c.send(g.to, wire.PageMsg{Kind: wire.KindHome, Page: ident.PageNo(g.region << c.shift), Requester: c.cfg.Self, Serial: g.top, ReqID: uint64(g.n), BodyBytes: uint32(len(g.body))})
	c.effects[len(c.effects)-1].Body = g.body
}

func (c *Core) retryHomes() {
	for i := range c.homes.giving {
		g := &c.homes.giving[i]
		retry, suspect := c.expire(&g.timer)
		if retry {
			c.counters.Retransmits++
			c.sendHome(g)
		}
		if suspect {
			c.suspect(g.to)
		}
	}
}

// home takes in that a region's directory is this part's now.
func (c *Core) home(m *wire.PageMsg, body []byte) {
	region, n := c.regionOf(m.Page), uint32(m.ReqID)
	switch {
	case !c.cfg.Rehome || n == 0 || epochOf(m.Serial) > c.epoch || m.ReqID != uint64(n) || len(body) != int(m.BodyBytes) || len(body)%wire.HoldingBytes != 0:
		c.counters.RefusedInvalid++
		return
	case c.rebuild != nil:
		c.counters.RefusedRebuilding++ // it comes again
		return
	}
	if n > c.place(region).n {
		if c.homeOf(region) == c.cfg.Self || !c.settle(region, m.Serial, body) {
			c.counters.RefusedInvalid++
			return
		}
		c.setPlace(region, place{n, c.cfg.Self})
		c.counters.HomesTaken++
		c.endGiving(region, n)
		for _, to := range c.shards {
			if to != c.cfg.Self && to != m.From {
				c.send(to, wire.PageMsg{Kind: wire.KindHomed, Page: m.Page, Requester: c.cfg.Self, ReqID: m.ReqID})
			}
		}
	}
	c.send(m.From, wire.PageMsg{Kind: wire.KindHomeAck, Page: m.Page, Requester: m.From, ReqID: m.ReqID})
}

// settle makes directory entries of what the giver knew. All serials begin above the highest that it gave.
func (c *Core) settle(region, top uint64, body []byte) bool {
	first := ident.PageNo(region << c.shift)
	c.dir.chunks[region] = nil
	c.dirEntry(first) // allocates
	chunk := c.dir.chunks[region]
	for i := range chunk {
		chunk[i] = dirEntry{state: Zero, serial: top}
		if c.canary == canaryHomeSerial {
			chunk[i].serial = 0
		}
	}
	for ; len(body) > 0; body = body[wire.HoldingBytes:] {
		var h wire.Holding
		holders := ident.PartSet(0)
		ok := wire.GetHolding(body, &h) == nil
		if ok {
			holders = ident.PartSet(h.Serial)
			ok = h.Page >= uint64(first) && h.Page+uint64(h.Count) <= uint64(first)+uint64(len(chunk)) && holders != 0 && holders&^c.members == 0
		}
		state := Shared
		if h.Kind == wire.HoldingModified {
			state = Modified
		}
		if !ok || h.Kind > wire.HoldingModified || state == Modified && holders.Len() != 1 {
			c.dir.chunks[region] = nil
			return false
		}
		for page := h.Page; page < h.Page+uint64(h.Count); page++ {
			chunk[page-uint64(first)] = dirEntry{state: state, holders: holders, serial: chunk[page-uint64(first)].serial}
		}
	}
	return true
}

// endGiving ends the giving of a region, up to number n: the taker has it. What was held for it goes to where the directory is now.
func (c *Core) endGiving(region uint64, n uint32) {
	h := &c.homes
	for i := range h.giving {
		if g := h.giving[i]; g.region == region && g.n <= n {
			h.giving = append(h.giving[:i], h.giving[i+1:]...)
			for j := range g.held {
				c.send(c.homeOf(region), g.held[j])
			}
			return
		}
	}
}

// homeAcked takes in that the taker is the directory: what this part knew is of no use any more.
func (c *Core) homeAcked(m *wire.PageMsg) {
	region := c.regionOf(m.Page)
	for i := range c.homes.giving {
		if g := &c.homes.giving[i]; g.region == region && uint64(g.n) == m.ReqID && g.to == m.From {
			if c.homeOf(region) != c.cfg.Self {
				c.dir.chunks[region] = nil
			}
			c.endGiving(region, g.n)
			return
		}
	}
	c.counters.RefusedStale++
}

// homed takes in where a region's directory has gone.
func (c *Core) homed(m *wire.PageMsg) {
	region, n := c.regionOf(m.Page), uint32(m.ReqID)
	if !c.cfg.Rehome || uint64(n) != m.ReqID {
		c.counters.RefusedInvalid++
		return
	}
	if n > c.place(region).n && c.homeOf(region) != c.cfg.Self {
		c.setPlace(region, place{n, m.From})
	}
}

// placeRecord is what a part says of a region's directory when an epoch ends; Count is 0 if it never went anywhere.
func (c *Core) placeRecord(region uint64) wire.Holding {
	p := c.place(region)
	if p.n == 0 || c.canary == canaryHomeForgotten {
		return wire.Holding{}
	}
	return wire.Holding{Kind: wire.HoldingHome, Part: p.part, Count: 1, Page: region << c.shift, Serial: uint64(p.n), Aux: uint64(c.epoch)}
}

// knows tells whether this part has to remember what is in its directory of a region: it is the directory, or was, and the taker may not have heard.
func (c *Core) knows(region uint64) bool {
	if c.homeOf(region) == c.cfg.Self {
		return true
	}
	for i := range c.homes.giving {
		if c.homes.giving[i].region == region {
			return true
		}
	}
	return false
}

// lastHome finds, among the reports of an epoch, who was a region's directory last; false if it never left its anchor.
func (c *Core) lastHome(claims []claim, epoch ident.Epoch) (from ident.Part, alive, moved bool) {
	var last *claim
	for i := range claims {
		h := &claims[i]
		if h.Kind != wire.HoldingHome || ident.Epoch(h.Aux) != epoch {
			continue
		}
		if last == nil || h.Serial > last.Serial || h.Serial == last.Serial && h.Part == h.from {
			last = h
		}
	}
	if last == nil {
		return 0, false, false
	}
	return last.from, c.members.Has(last.Part), true
}
