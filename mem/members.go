package mem

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// past is what this part remembers of former epochs, for the directories of later ones.
type past struct {
	epochs  []epochRecord    // those that this part was in, rising; the last is the current one. Members only leave: at most MaxParts
	regions [][]wire.Holding // by region: what this part knew when it was last a serving directory of it, its epoch in Aux
	lost    regionSet        // regions of this part's present shard whose untouched pages are Lost, not Zero
	ready   ident.PartSet    // parts whose shards are known to serve in the current epoch
	senders []sender         // reports to the other members
}

type epochRecord struct {
	epoch   ident.Epoch
	members ident.PartSet
	served  bool // this part's shard was complete, and so may have granted pages
}

// regionSet is a set of regions that costs nothing while it is empty.
type regionSet struct{ bits []uint64 }

func (s *regionSet) has(region uint64) bool {
	return s.bits != nil && s.bits[region/64]&(1<<(region%64)) != 0
}

func (s *regionSet) set(region, n uint64) {
	if s.bits == nil {
		s.bits = make([]uint64, (n+63)/64)
	}
	s.bits[region/64] |= 1 << (region % 64)
}

func newPast(pages uint64, shift uint8) past {
	return past{regions: make([][]wire.Holding, (pages+1<<shift-1)>>shift)}
}

// Rebuilding tells whether some part's directory shard is not known to serve yet after a change of epoch.
func (c *Core) Rebuilding() bool { return c.past.ready != c.members }

// membersChanged begins an epoch. What was under way in the former one ends here: its messages will be refused.
func (c *Core) membersChanged(ev *Event) {
	epoch, members, fresh := ev.Epoch, ev.Members, ev.Fresh
	if epoch <= c.epoch {
		return // said again
	}
	if !members.Has(c.cfg.Self) || epoch > maxEpoch || c.epoch != 0 && (fresh || members&^c.members != 0) {
		panic(fmt.Sprintf("mem: part %v goes from epoch %d, members %b, to epoch %d, members %b, fresh %t", c.cfg.Self, c.epoch, c.members,
			epoch, members, fresh))
	}
	if c.epoch != 0 && c.rebuild == nil {
		c.archive()
	}
	c.abortAll()
	c.epoch, c.members = epoch, members
	c.shards = c.shards[:0]
	members.Each(func(p ident.Part) { c.shards = append(c.shards, p) })
	c.dir = newRegions[dirEntry](c.cfg.Pages, c.shift)
	c.homes = rehoming{stay: ev.Older}
	c.past.lost = regionSet{}
	c.past.epochs = append(c.past.epochs, epochRecord{epoch: epoch, members: members, served: fresh})
	c.past.senders = c.past.senders[:0]
	c.past.ready = 0
	if fresh {
		c.past.ready = members
		c.askAgain(members)
		return
	}
	c.rebuild = newRebuild()
	c.startReports()
}

// abortAll ends every transaction that this part has a share in. What it has installed it holds, what it gave up or received without
// installing it retains; entries tell that already. What is wanted stays wanted.
func (c *Core) abortAll() {
	c.transactions.clear()
	c.waiters = waiterPool{all: c.waiters.all[:0]}
	c.deferred.each(func(page ident.PageNo, _ *wire.PageMsg) bool {
		c.entry(page).flags &^= flagDeferred
		return true
	})
	c.deferred.clear()
	c.requests.each(func(page ident.PageNo, r *request) bool {
		if r.want == accessNone {
			c.endRequest(page)
			return true
		}
		*r = request{want: r.want, by: r.by, since: r.since, timer: r.timer}
		return true
	})
}

// archive keeps what this serving directory shard knows of its regions before the epoch ends.
func (c *Core) archive() {
	for region := range c.dir.chunks {
		knows, place := c.knows(uint64(region)), c.placeRecord(uint64(region))
		if !knows && place.Count == 0 {
			continue
		}
		first := ident.PageNo(region) << c.shift
		recs := appendRun(nil, place)
		switch {
		case !knows:
		case c.dir.chunks[region] != nil:
			for i := range c.dir.chunks[region] {
				recs = appendRun(recs, c.archiveEntry(first+ident.PageNo(i), &c.dir.chunks[region][i]))
			}
		case c.past.lost.has(uint64(region)):
			n := min(1<<c.shift, c.cfg.Pages-uint64(first))
			recs = []wire.Holding{{Kind: wire.HoldingGranted, Page: uint64(first), Count: uint32(n), Aux: uint64(c.epoch)}}
		}
		c.past.regions[region] = recs
	}
}

// archiveEntry says what is to be remembered of a page; Count is 0 if nothing.
func (c *Core) archiveEntry(page ident.PageNo, e *dirEntry) wire.Holding {
	h := wire.Holding{Page: uint64(page), Count: 1, Aux: uint64(c.epoch)}
	switch {
	case e.state == Zero && e.busy:
		h.Kind, h.Part = wire.HoldingGranting, c.transactions.get(page).from
	case e.state == Zero:
		h.Count = 0
	case e.state == Retained:
		h.Kind, h.Serial, h.Part = wire.HoldingKept, e.serial, c.cfg.Self
		if e.busy { // on its way to somebody, who may install it
			h.Part = c.transactions.get(page).from
		}
	default:
		h.Kind = wire.HoldingGranted
	}
	return h
}

// appendRun appends h, or lengthens the last record if h continues it.
func appendRun(recs []wire.Holding, h wire.Holding) []wire.Holding {
	if h.Count == 0 {
		return recs
	}
	if n := len(recs); n > 0 && continues(&recs[n-1], &h) {
		recs[n-1].Count += h.Count
		return recs
	}
	return append(recs, h)
}

func continues(a, b *wire.Holding) bool {
	return a.Kind == b.Kind && a.Part == b.Part && a.Serial == b.Serial && a.Aux == b.Aux && a.Page+uint64(a.Count) == b.Page
}
