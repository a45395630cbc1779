package mem

import (
	"encoding/binary"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Clone returns an independent copy of the core, without effects: for exploring what could happen from here.
func (c *Core) Clone() *Core {
	n := *c
	n.shards = slices.Clone(c.shards)
	n.pages, n.dir = c.pages.clone(), c.dir.clone()
	n.requests, n.deferred, n.transactions = c.requests.clone(), c.deferred.clone(), c.transactions.clone()
	n.pins, n.company.gone = slices.Clone(c.pins), slices.Clone(c.company.gone)
	n.windows.ring = slices.Clone(c.windows.ring)
	n.waiters.all = slices.Clone(c.waiters.all)
	n.past.epochs, n.past.regions = slices.Clone(c.past.epochs), slices.Clone(c.past.regions)
	n.past.lost.bits, n.past.senders = slices.Clone(c.past.lost.bits), slices.Clone(c.past.senders)
	for i := range n.past.senders {
		n.past.senders[i].body = slices.Clip(slices.Clone(n.past.senders[i].body))
	}
	if c.rebuild != nil {
		r := *c.rebuild
		r.epochs = slices.Clone(r.epochs)
		r.claims = make(map[uint64][]claim, len(c.rebuild.claims))
		for region := range n.pages.chunks {
			if recs := c.rebuild.claims[uint64(region)]; recs != nil {
				r.claims[uint64(region)] = slices.Clone(recs)
			}
		}
		n.rebuild = &r
	}
	n.homes.places, n.homes.giving = slices.Clone(c.homes.places), slices.Clone(c.homes.giving)
	for i := range n.homes.giving {
		n.homes.giving[i].held = slices.Clip(slices.Clone(n.homes.giving[i].held))
	}
	n.loop, n.effects, n.traffic = nil, nil, nil
	return &n
}

// AppendState appends an encoding of all of the core's state that decides what it does, except times, counters and read-ahead: two
// cores with the same encoding act alike at the same time.
func (c *Core) AppendState(b []byte) []byte {
	b = appendInts(b, uint64(c.epoch), uint64(c.members), c.reqID)
	for _, chunk := range c.pages.chunks {
		for i := range chunk {
			e := &chunk[i]
			b = appendInts(b, e.serial, uint64(e.state)|uint64(e.grantee)<<8|uint64(e.flags)<<16|uint64(e.turns)<<24)
		}
		b = append(b, 0xff)
	}
	appendSorted(&c.requests, func(page ident.PageNo, r *request) {
		b = appendInts(b, uint64(page), uint64(r.want)|uint64(r.asked)<<8|bit(r.prefetch)<<16|bit(r.have)<<17|bit(r.contents)<<18|bit(r.watched)<<19|bit(r.company)<<20, r.reqID,
			r.serial, uint64(r.need), uint64(r.got), uint64(r.flags))
	})
	b = append(b, 0xff)
	for _, g := range c.company.gone {
		b = appendInts(b, uint64(g.page), uint64(g.a))
	}
	b = append(b, 0xff)
	for _, p := range c.pins {
		b = appendInts(b, uint64(p.page), p.token, bit(p.write)|bit(p.held)<<1)
	}
	b = append(b, 0xff)
	appendSorted(&c.deferred, func(_ ident.PageNo, m *wire.PageMsg) { b = AppendMsg(b, m) })
	return c.appendDirectory(append(b, 0xff))
}

func (c *Core) appendDirectory(b []byte) []byte {
	for _, chunk := range c.dir.chunks {
		for i := range chunk {
			e := &chunk[i]
			b = appendInts(b, e.serial, uint64(e.holders), uint64(e.state)|uint64(e.grantee)<<8|bit(e.busy)<<16)
		}
		b = append(b, 0xff)
	}
	appendSorted(&c.transactions, func(_ ident.PageNo, t *transaction) {
		b = AppendMsg(b, &t.first)
		b = appendInts(b, uint64(t.invals), bit(t.write))
		for i := t.queue; i != 0; i = c.waiters.all[i].next {
			w := &c.waiters.all[i]
			b = appendInts(b, w.reqID, uint64(w.from)|bit(w.write)<<8)
		}
		b = append(b, 0xff)
	})
	b = append(b, 0xff)
	for _, e := range c.past.epochs {
		b = appendInts(b, uint64(e.epoch), uint64(e.members), bit(e.served))
	}
	for _, recs := range c.past.regions {
		b = appendHoldings(append(b, 0xff), recs)
	}
	for _, bits := range c.past.lost.bits {
		b = appendInts(b, bits)
	}
	b = appendInts(b, uint64(c.past.ready))
	for i := range c.past.senders {
		s := &c.past.senders[i]
		b = appendInts(b, s.batch, bit(s.last)|bit(s.active)<<1)
	}
	if r := c.rebuild; r != nil {
		b = appendInts(append(b, 1), uint64(r.reported))
		for _, p := range c.shards {
			b = appendInts(b, r.batches[p])
		}
		for _, e := range r.epochs {
			b = appendInts(b, uint64(e.epoch), uint64(e.members), uint64(e.served))
		}
		for region := range c.pages.chunks {
			b = append(b, 0xff)
			for _, h := range r.claims[uint64(region)] {
				b = appendHoldings(append(b, byte(h.from)), []wire.Holding{h.Holding})
			}
		}
	}
	return c.appendHomes(b)
}

func (c *Core) appendHomes(b []byte) []byte {
	h := &c.homes
	b = appendInts(append(b, 0xff), bit(h.asked), h.region, uint64(h.to))
	for _, p := range h.places {
		b = appendInts(b, uint64(p.n), uint64(p.part))
	}
	for i := range h.giving {
		g := &h.giving[i]
		b = append(appendInts(append(b, 0xff), g.region, uint64(g.to), uint64(g.n), g.top), g.body...)
		for j := range g.held {
			b = AppendMsg(b, &g.held[j])
		}
	}
	return b
}

// AppendMsg appends an encoding of m for telling states apart.
func AppendMsg(b []byte, m *wire.PageMsg) []byte {
	return appendInts(b, uint64(m.Kind)|uint64(m.Flags)<<8|uint64(m.From)<<24|uint64(m.To)<<32|uint64(m.Requester)<<40, uint64(m.Epoch),
		uint64(m.Page), m.Serial, uint64(m.Acks), m.ReqID)
}

func appendHoldings(b []byte, recs []wire.Holding) []byte {
	for i := range recs {
		h := &recs[i]
		b = appendInts(b, uint64(h.Kind)|uint64(h.Part)<<8|uint64(h.Count)<<16, h.Page, h.Serial, h.Aux)
	}
	return b
}

func appendInts(b []byte, v ...uint64) []byte {
	for _, x := range v {
		b = binary.AppendUvarint(b, x)
	}
	return b
}

func bit(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

// appendSorted calls f for every value of m by rising page number.
func appendSorted[T any](m *pageMap[T], f func(ident.PageNo, *T)) {
	var pages []ident.PageNo
	m.each(func(page ident.PageNo, _ *T) bool { pages = append(pages, page); return true })
	slices.Sort(pages)
	for _, page := range pages {
		f(page, m.get(page))
	}
}
