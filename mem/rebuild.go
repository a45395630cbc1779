package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// rebuild is a directory shard that gathers the reports of all members. Evidence about pages is gathered in the entries of Core.dir
// themselves: Shared and Modified with the holders; Retained with the highest serial, its grantee and those who retained it.
type rebuild struct {
	reported ident.PartSet
	batches  [ident.MaxParts]uint64 // the last batch taken, by sender
	epochs   []knownEpoch           // falling
	claims   map[uint64][]claim
}

// knownEpoch is a former epoch, as the survivors that were in it report.
type knownEpoch struct {
	epoch   ident.Epoch
	members ident.PartSet
	served  ident.PartSet // survivors whose shards were complete
}

// claim is what a part says that it knew as a directory.
type claim struct {
	wire.Holding
	from ident.Part
}

// maxClaims bounds what a broken peer can make this part remember of a region.
const maxClaims = 16 * RegionPages

func newRebuild() *rebuild { return &rebuild{claims: make(map[uint64][]claim)} }

// report takes in a batch.
func (c *Core) report(m *wire.PageMsg, body []byte) {
	if len(body) != int(m.BodyBytes) || len(body)%wire.HoldingBytes != 0 {
		c.counters.RefusedInvalid++
		return
	}
	b := c.rebuild
	if b == nil {
		c.send(m.From, wire.PageMsg{Kind: wire.KindShardReady, Requester: m.From}) // the sender has not heard
		return
	}
	if m.Serial == b.batches[m.From]+1 && !b.reported.Has(m.From) {
		c.counters.ReportBatchesIn++
		b.batches[m.From] = m.Serial
		for ; len(body) > 0; body = body[wire.HoldingBytes:] {
			var h wire.Holding
			if wire.GetHolding(body, &h) != nil {
				c.counters.RefusedInvalid++
				continue
			}
			b.take(c, m.From, &h)
		}
		if m.Flags&wire.FlagLast != 0 {
			c.reported(m.From)
		}
	}
	if c.rebuild != nil && m.Serial <= b.batches[m.From] {
		c.send(m.From, wire.PageMsg{Kind: wire.KindReportAck, Requester: m.From, Serial: m.Serial})
	}
}

// take enters one record.
func (b *rebuild) take(c *Core, from ident.Part, h *wire.Holding) {
	if h.Kind == wire.HoldingEpoch {
		b.takeEpoch(from, h)
		return
	}
	region := c.regionOf(ident.PageNo(h.Page))
	last := h.Page + uint64(h.Count) - 1
	if last >= c.cfg.Pages || c.regionOf(ident.PageNo(last)) != region || c.Directory(ident.PageNo(h.Page)) != c.cfg.Self {
		c.counters.RefusedInvalid++
		return
	}
	switch h.Kind {
	case wire.HoldingShared, wire.HoldingModified, wire.HoldingRetained:
		for page := h.Page; page <= last; page++ {
			takeEvidence(c.dirEntry(ident.PageNo(page)), from, h)
		}
	default:
		if len(b.claims[region]) < maxClaims {
			b.claims[region] = append(b.claims[region], claim{*h, from})
		} else {
			c.counters.RefusedInvalid++
		}
	}
}

func takeEvidence(e *dirEntry, from ident.Part, h *wire.Holding) {
	held := e.state == Shared || e.state == Modified
	if h.Kind == wire.HoldingRetained {
		switch {
		case held || e.state == Retained && h.Serial < e.serial:
		case e.state == Retained && h.Serial == e.serial:
			e.holders = e.holders.Set(from)
		default:
			*e = dirEntry{state: Retained, serial: h.Serial, grantee: h.Part, holders: ident.PartSet(0).Set(from)}
		}
		return
	}
	if !held {
		*e = dirEntry{state: Shared}
	}
	e.holders = e.holders.Set(from)
	if h.Kind == wire.HoldingModified {
		e.state = Modified
	}
}

func (b *rebuild) takeEpoch(from ident.Part, h *wire.Holding) {
	k := knownEpoch{epoch: ident.Epoch(h.Serial), members: ident.PartSet(h.Page)}
	i := 0
	for i < len(b.epochs) && b.epochs[i].epoch > k.epoch {
		i++
	}
	if i == len(b.epochs) || b.epochs[i].epoch != k.epoch {
		b.epochs = append(b.epochs, knownEpoch{})
		copy(b.epochs[i+1:], b.epochs[i:])
		b.epochs[i] = k
	}
	if h.Part == 1 {
		b.epochs[i].served = b.epochs[i].served.Set(from)
	}
}

// reported notes that from said all. When all members have, the shard decides every page and serves.
func (c *Core) reported(from ident.Part) {
	b := c.rebuild
	b.reported = b.reported.Set(from)
	if b.reported != c.members {
		return
	}
	for region := range c.dir.chunks {
		if c.shards[uint64(region)%uint64(len(c.shards))] == c.cfg.Self {
			c.decideRegion(uint64(region))
		}
	}
	c.rebuild = nil
	c.past.epochs[len(c.past.epochs)-1].served = true
	for _, to := range c.shards {
		if to != c.cfg.Self {
			c.send(to, wire.PageMsg{Kind: wire.KindShardReady, Requester: to})
		}
	}
	c.shardReady(c.cfg.Self)
}

// authority is who knows best what was granted in a region: its directory in the newest epoch in which that one served, or may have.
type authority struct {
	epoch ident.Epoch // 0: nobody ever served, so nothing was granted
	alive bool        // it has reported; otherwise its knowledge died with it
	part  ident.Part  // if it has
}

func (b *rebuild) authority(c *Core, region uint64) authority {
	for _, k := range b.epochs {
		if k.members == 0 {
			continue // a broken peer's
		}
		d := k.members.Nth(int(region % uint64(k.members.Len())))
		if from, alive, moved := c.lastHome(b.claims[region], k.epoch); moved {
			return authority{epoch: k.epoch, alive: alive, part: from}
		}
		switch {
		case !c.members.Has(d) && c.canary == canaryOldAuthority:
		case !c.members.Has(d):
			return authority{epoch: k.epoch}
		case k.served.Has(d):
			return authority{epoch: k.epoch, alive: true, part: d}
		}
	}
	return authority{alive: true}
}

// decideRegion turns what was gathered of a region into directory entries.
func (c *Core) decideRegion(region uint64) {
	b := c.rebuild
	a := b.authority(c, region)
	if !a.alive && c.canary != canaryZeroAgain {
		c.past.lost.set(region, uint64(len(c.dir.chunks)))
	}
	var claims [RegionPages]*wire.Holding
	some := false
	if a.alive {
		recs := b.claims[region]
		for i := range recs {
			h := &recs[i].Holding
			if ident.Epoch(h.Aux) != a.epoch || recs[i].from != a.part || h.Kind == wire.HoldingHome {
				continue
			}
			some = true
			for n := range uint64(h.Count) {
				claims[(h.Page+n)&(1<<c.shift-1)] = h
			}
		}
	}
	fresh := c.dir.chunks[region] == nil
	if fresh && !some {
		return
	}
	c.dirEntry(ident.PageNo(region << c.shift)) // allocates
	chunk := c.dir.chunks[region]
	for i := range chunk {
		c.decidePage(&chunk[i], a, claims[i])
	}
}

// decidePage decides what the latest version of a page is. In this order:
//
//  1. Somebody holds the page: every copy held is the latest, because write access follows the revocation of all others.
//  2. Copies were retained in the authority's epoch: the one with the highest serial, if its grantee lives. It has not installed that
//     serial, or it would hold the page or have given it up under a higher one; and no later transaction can have begun. If the grantee
//     is dead it may have written.
//  3. Older copies: only if the authority says that they are the latest, as it found when it was rebuilt itself, and that they were not
//     being granted to a part that died. Otherwise they were superseded in its epoch.
//  4. No copy: Zero, if the authority lives and says that the page was never granted, or was being granted for the first time to a part
//     that lives and so, having reported nothing, did not install it.
//
// Otherwise the page is lost: a dead part may have held the latest version.
func (c *Core) decidePage(e *dirEntry, a authority, claim *wire.Holding) {
	if c.cfg.Image != 0 && (e.state == Zero || e.state == Retained && e.serial == imageSerial) {
		c.decideImage(e, a, claim)
		return
	}
	switch e.state {
	case Shared, Modified:
		return
	case Retained:
		if c.retainedIsLatest(e, a, claim) {
			e.holders = ident.PartSet(0).Set(c.chooseRetained(e))
			return
		}
	default:
		if a.alive && (claim == nil || claim.Kind == wire.HoldingGranting && (c.members.Has(claim.Part) || c.canary == canaryGrantingZero)) || c.canary == canaryZeroAgain {
			*e = dirEntry{state: Zero}
			return
		}
	}
	*e = dirEntry{state: Lost}
}

// decideImage decides a page of which at most the image's copy is known: that is the latest if the page was never granted.
func (c *Core) decideImage(e *dirEntry, a authority, claim *wire.Holding) {
	granted := claim != nil && !(claim.Kind == wire.HoldingKept && claim.Serial == imageSerial && c.members.Has(claim.Part))
	if !a.alive || granted || c.cfg.Image&c.members == 0 {
		*e = dirEntry{state: Lost}
		return
	}
	*e = dirEntry{state: Retained, serial: imageSerial, holders: c.cfg.Image, grantee: c.cfg.Image.First()}
}

func (c *Core) retainedIsLatest(e *dirEntry, a authority, claim *wire.Holding) bool {
	if c.canary == canaryRetainedStale {
		return true
	}
	if epochOf(e.serial) == a.epoch || c.canary == canaryRetainedEpoch {
		return c.members.Has(e.grantee)
	}
	return a.alive && claim != nil && claim.Kind == wire.HoldingKept && claim.Serial == e.serial && c.members.Has(claim.Part)
}

// chooseRetained prefers the copy of the part that asked for the page, then this part's own.
func (c *Core) chooseRetained(e *dirEntry) ident.Part {
	switch {
	case e.holders.Has(e.grantee):
		return e.grantee
	case e.holders.Has(c.cfg.Self):
		return c.cfg.Self
	}
	return e.holders.First()
}
