package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// sender reports what this part holds to the new directory shard of one other member, a batch at a time. Until the shard serves, nothing
// about its pages can change here, so a batch that is sent again says the same.
type sender struct {
	to     ident.Part
	batch  uint64 // number of the batch in body, from 1
	next   cursor // what follows the batch
	last   bool
	active bool // the shard is not known to serve yet
	body   []byte
	timer  timer
}

// cursor is a place in the sequence of records that a report consists of.
type cursor struct {
	epoch  int
	region uint64
	page   int // in the region
	rec    int // in what is remembered of the region
}

func (c *Core) startReports() {
	for _, to := range c.shards {
		if to == c.cfg.Self {
			continue
		}
		c.past.senders = append(c.past.senders, sender{to: to, active: true})
		c.nextBatch(&c.past.senders[len(c.past.senders)-1])
	}
	var at cursor
	for h := (wire.Holding{}); c.nextHolding(c.cfg.Self, &at, &h); {
		c.rebuild.take(c, c.cfg.Self, &h)
	}
	c.reported(c.cfg.Self)
}

func (c *Core) nextBatch(s *sender) {
	s.batch++
	if cap(s.body) < wire.PageBodyBytes {
		s.body = make([]byte, 0, wire.PageBodyBytes)
	}
	s.body = s.body[:0]
	s.last = true
	for h := (wire.Holding{}); c.nextHolding(s.to, &s.next, &h); {
		n := len(s.body)
		s.body = s.body[:n+wire.HoldingBytes]
		wire.PutHolding(s.body[n:], &h)
		if len(s.body) == wire.PageBodyBytes {
			s.last = false
			break
		}
	}
	c.startTimer(&s.timer)
	c.sendBatch(s)
}

func (c *Core) sendBatch(s *sender) {
	m := wire.PageMsg{Kind: wire.KindReport, Serial: s.batch, Requester: c.cfg.Self, BodyBytes: uint32(len(s.body))}
	if s.last {
		m.Flags = wire.FlagLast
	}
	c.send(s.to, m)
	c.effects[len(c.effects)-1].Body = s.body
	c.counters.ReportBatchesOut++
}

// nextHolding puts the record at the cursor, about pages of to's shard, into h and moves on; false at the end.
func (c *Core) nextHolding(to ident.Part, at *cursor, h *wire.Holding) bool {
	if n := len(c.past.epochs) - 1; at.epoch < n {
		e := &c.past.epochs[at.epoch]
		*h = wire.Holding{Kind: wire.HoldingEpoch, Serial: uint64(e.epoch), Page: uint64(e.members)}
		if e.served {
			h.Part = 1
		}
		at.epoch++
		return true
	}
	for ; at.region < uint64(len(c.pages.chunks)); *at = (cursor{epoch: at.epoch, region: at.region + 1}) {
		if c.shards[at.region%uint64(len(c.shards))] != to {
			continue
		}
		if c.nextRun(at, h) {
			return true
		}
		if recs := c.past.regions[at.region]; at.rec < len(recs) {
			*h = recs[at.rec]
			at.rec++
			return true
		}
	}
	return false
}

// nextRun puts the next run of alike pages of the cursor's region into h.
func (c *Core) nextRun(at *cursor, h *wire.Holding) bool {
	chunk := c.pages.chunks[at.region]
	*h = wire.Holding{}
	for ; at.page < len(chunk); at.page++ {
		p := holdingOf(ident.PageNo(at.region<<c.shift)+ident.PageNo(at.page), &chunk[at.page])
		switch {
		case h.Count == 0:
			*h = p
		case p.Count != 0 && continues(h, &p):
			h.Count++
		default:
			return true
		}
	}
	return h.Count != 0
}

// holdingOf says what this part holds of a page; Count is 0 if nothing. The serial of a copy that is held does not matter: whoever holds
// one holds the latest.
func holdingOf(page ident.PageNo, e *pageEntry) wire.Holding {
	h := wire.Holding{Page: uint64(page), Count: 1}
	switch {
	case e.state == Modified:
		h.Kind = wire.HoldingModified
	case e.state == Shared:
		h.Kind = wire.HoldingShared
	case e.serial != 0:
		h.Kind, h.Serial, h.Part = wire.HoldingRetained, e.serial, e.grantee
	default:
		h.Count = 0
	}
	return h
}

// reportAck takes in that a shard took the last batch.
func (c *Core) reportAck(m *wire.PageMsg) {
	for i := range c.past.senders {
		s := &c.past.senders[i]
		if s.to != m.From || !s.active || s.batch != m.Serial {
			continue
		}
		if !s.last {
			c.nextBatch(s)
		}
		// Otherwise the last batch goes out again and again, as a question whether the shard serves, until it says so.
		return
	}
	c.counters.RefusedStale++
}

// shardReady takes in that a part's shard serves.
func (c *Core) shardReady(from ident.Part) {
	if c.past.ready.Has(from) {
		c.counters.RefusedStale++
		return
	}
	c.past.ready = c.past.ready.Set(from)
	for i := range c.past.senders {
		if c.past.senders[i].to == from {
			c.past.senders[i].active = false
		}
	}
	c.askAgain(ident.PartSet(0).Set(from))
}

func (c *Core) retryReports() {
	for i := range c.past.senders {
		s := &c.past.senders[i]
		if !s.active {
			continue
		}
		retry, suspect := c.expire(&s.timer)
		if retry {
			c.counters.Retransmits++
			c.sendBatch(s)
		}
		if suspect {
			c.suspect(s.to)
		}
	}
}
