package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A serial is the epoch in which a directory gave it, then a count: 40 bits last for 250 days of a transaction every 20 us on one page.
// So serials of a page rise over a change of epoch too, though the count's last value may have died with a directory, and a retained
// copy tells in which epoch it was made.
func serialBase(e ident.Epoch) uint64 { return uint64(e) << wire.SerialCountBits }

func epochOf(serial uint64) ident.Epoch { return ident.Epoch(serial >> wire.SerialCountBits) }

// maxEpoch is the highest epoch that a serial can tell.
const maxEpoch = ident.Epoch(1)<<(64-wire.SerialCountBits) - 1

// transaction is what the directory does for one request: it sends forward (Fwd, to the holder that supplies the contents) or grant (to
// the requester), and Inval to the parts in invals, and waits for Done.
type transaction struct {
	serial   uint64
	first    wire.PageMsg // Fwd or Grant
	invals   ident.PartSet
	reqID    uint64
	from     ident.Part // the requester
	write    bool       // the access that will be granted
	timer    timer
	queue    int32 // first and last of Core.waiters that wait for the page; 0 is none
	queueEnd int32
}

// waiterPool holds the requests that wait for busy pages, in lists.
type waiterPool struct {
	all  []waiter // the first is not used
	free int32
}

type waiter struct {
	reqID uint64
	from  ident.Part
	write bool
	next  int32
}

func (c *Core) dirEntry(page ident.PageNo) *dirEntry {
	region := c.regionOf(page)
	chunk, fresh := c.dir.chunk(region)
	if fresh {
		blank := c.blank(region)
		for i := range chunk {
			chunk[i] = blank
		}
	}
	return &chunk[page&(1<<c.shift-1)]
}

// blank is the entry of a page of region that was never granted to anybody, or of one that nothing is known of yet.
func (c *Core) blank(region uint64) dirEntry {
	switch {
	case c.past.lost.has(region):
		return dirEntry{state: Lost}
	case c.cfg.Image == 0 || c.rebuild != nil:
		return dirEntry{state: Zero}
	case c.cfg.Image&c.members == 0:
		return dirEntry{state: Lost}
	}
	return dirEntry{state: Retained, serial: imageSerial, holders: c.cfg.Image, grantee: c.cfg.Image.First()}
}

// get takes in GetShared or GetModified.
func (c *Core) get(m *wire.PageMsg) {
	if c.rebuild != nil && c.canary != canaryEarlyServe {
		c.counters.RefusedRebuilding++ // the requester repeats it when the shard is ready
		return
	}
	e := c.dirEntry(m.Page)
	write, prefetch := m.Kind == wire.KindGetModified, m.Flags&wire.FlagPrefetch != 0
	switch {
	case e.state == Lost:
		c.counters.LostPages++
		c.answer(m, wire.KindLost)
	case e.busy:
		c.getBusy(m, write, prefetch)
	case prefetch && write && e.state != Zero:
		c.answer(m, wire.KindNoPrefetch)
	default:
		if !prefetch {
			c.noteAsked(m.Page, e, m.Requester, write)
		}
		c.begin(m.Page, e, m.Requester, m.ReqID, write, c.transactions.put(m.Page))
	}
}

func (c *Core) answer(m *wire.PageMsg, k wire.PageKind) {
	c.send(m.Requester, wire.PageMsg{Kind: k, Page: m.Page, Requester: m.Requester, ReqID: m.ReqID})
}

// getBusy takes in a request for a page with a transaction under way.
func (c *Core) getBusy(m *wire.PageMsg, write, prefetch bool) {
	t := c.transactions.get(m.Page)
	switch {
	case t.from == m.Requester && t.reqID == m.ReqID: // the requester's patience ended: something may be lost
		c.sendTransaction(t)
	case t.from == m.Requester && t.reqID > m.ReqID:
		c.counters.RefusedStale++
	case prefetch:
		c.answer(m, wire.KindNoPrefetch)
	default:
		c.enqueue(t, waiter{reqID: m.ReqID, from: m.Requester, write: write})
	}
}

// enqueue adds w to the queue of t's page, or replaces an older request of the same part: a part has one request for a page at a time.
func (c *Core) enqueue(t *transaction, w waiter) {
	pool := &c.waiters
	for i := t.queue; i != 0; i = pool.all[i].next {
		if o := &pool.all[i]; o.from == w.from {
			if w.reqID > o.reqID {
				o.reqID, o.write = w.reqID, w.write
			}
			return
		}
	}
	if len(pool.all) == 0 {
		pool.all = append(pool.all, waiter{})
	}
	i := pool.free
	if i != 0 {
		pool.free = pool.all[i].next
		pool.all[i] = w
	} else {
		i = int32(len(pool.all))
		pool.all = append(pool.all, w)
	}
	if t.queueEnd != 0 {
		pool.all[t.queueEnd].next = i
	} else {
		t.queue = i
	}
	t.queueEnd = i
}

func (c *Core) dequeue(t *transaction) waiter {
	pool, i := &c.waiters, t.queue
	w := pool.all[i]
	t.queue = w.next
	if t.queue == 0 {
		t.queueEnd = 0
	}
	pool.all[i] = waiter{next: pool.free}
	pool.free = i
	return w
}

// begin starts the transaction for a request; t keeps its queue.
func (c *Core) begin(page ident.PageNo, e *dirEntry, from ident.Part, reqID uint64, write bool, t *transaction) {
	c.counters.Transactions++
	e.busy = true
	*t = transaction{serial: max(e.serial, serialBase(c.epoch)) + 1, reqID: reqID, from: from, write: write, queue: t.queue, queueEnd: t.queueEnd}
	t.first = wire.PageMsg{Page: page, Requester: from, Serial: t.serial, ReqID: reqID}
	switch {
	case e.state == Zero:
		// A page that nobody has can be written by whoever touches it first, and need not be asked for again then.
		t.write = true
		t.grant(wire.FlagZero)
	case e.state == Retained && e.holders.Has(from):
		t.grant(wire.FlagRetained)
	case e.state == Retained:
		t.forward(e.holders.First(), wire.FlagRetained)
	case e.holders.Has(from):
		t.write = write || e.state == Modified
		if t.write {
			t.invals = e.holders.Clear(from)
		}
		t.grant(0)
	default:
		supplier := c.supplier(e.holders, from)
		if write {
			t.invals = e.holders.Clear(supplier)
		}
		t.forward(supplier, 0)
	}
	t.first.Acks = t.invals
	if c.canary == canaryLostInval && t.invals != 0 {
		t.invals = t.invals.Clear(t.invals.First())
		t.first.Acks = t.invals
	}
	c.startTimer(&t.timer)
	c.sendTransaction(t)
}

func (t *transaction) grant(f wire.PageFlags) {
	t.first.Kind, t.first.Flags, t.first.To = wire.KindGrant, f, t.from
	if t.write {
		t.first.Flags |= wire.FlagWrite
	}
}

func (t *transaction) forward(to ident.Part, f wire.PageFlags) {
	t.first.Kind, t.first.Flags, t.first.To = wire.KindFwdShared, f, to
	if t.write {
		t.first.Kind = wire.KindFwdModified
	}
}

// supplier chooses who sends the contents: this part if it can, which saves a hop, else the next holder after the requester, so that
// requesters spread over holders.
func (c *Core) supplier(holders ident.PartSet, from ident.Part) ident.Part {
	if holders.Has(c.cfg.Self) {
		return c.cfg.Self
	}
	if after := holders &^ (1<<from - 1); after != 0 {
		return after.First()
	}
	return holders.First()
}

// sendTransaction sends all messages of t, for the first time or again.
func (c *Core) sendTransaction(t *transaction) {
	c.send(t.first.To, t.first)
	for s := t.invals; s != 0; s = s.Clear(s.First()) {
		c.send(s.First(), wire.PageMsg{Kind: wire.KindInval, Page: t.first.Page, Requester: t.from, Serial: t.serial, ReqID: t.reqID})
	}
}

// done takes in the end of a transaction and begins the next one that waits.
func (c *Core) done(m *wire.PageMsg) {
	e := c.dir.look(m.Page)
	if e == nil || !e.busy {
		c.counters.RefusedStale++
		return
	}
	t := c.transactions.get(m.Page)
	if t.serial != m.Serial || t.from != m.Requester {
		c.counters.RefusedStale++
		return
	}
	e.serial = t.serial
	switch {
	case t.write:
		e.state, e.holders = Modified, ident.PartSet(0).Set(t.from)
	default: // a Modified holder that supplied a reader goes on as a sharer
		e.state, e.holders = Shared, e.holders.Set(t.from)
	}
	if t.queue != 0 {
		w := c.dequeue(t)
		c.noteAsked(m.Page, e, w.from, w.write)
		c.begin(m.Page, e, w.from, w.reqID, w.write, t)
		return
	}
	e.busy = false
	c.transactions.del(m.Page)
}
