package mem

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Check returns an error that describes the first broken invariant of this core, if any. It visits every page that was ever touched.
func (c *Core) Check() error {
	if len(c.loop) != 0 {
		return fmt.Errorf("mem: %d messages to self left over", len(c.loop))
	}
	if err := c.checkPages(); err != nil {
		return err
	}
	if c.epoch == 0 {
		return nil
	}
	if served := c.past.epochs[len(c.past.epochs)-1].served; served != (c.rebuild == nil) {
		return fmt.Errorf("mem: epoch %d: served %t while rebuilding %t", c.epoch, served, c.rebuild != nil)
	}
	return c.checkDirectory()
}

func (c *Core) checkPages() error {
	var held [3]uint64
	var wanted, deferred int
	for region, chunk := range c.pages.chunks {
		for i := range chunk {
			e, page := &chunk[i], ident.PageNo(region<<c.shift+i)
			held[e.state]++
			if e.flags&flagWanted != 0 {
				wanted++
			}
			if e.flags&flagDeferred != 0 {
				deferred++
			}
			if err := c.checkPage(page, e); err != nil {
				return fmt.Errorf("mem: page %d %v serial %#x flags %#x: %w", page, e.state, e.serial, e.flags, err)
			}
		}
	}
	switch {
	case held[Shared] != c.held[Shared] || held[Modified] != c.held[Modified]:
		return fmt.Errorf("mem: counted %d shared, %d modified pages, there are %d, %d", c.held[Shared], c.held[Modified], held[Shared], held[Modified])
	case wanted != c.requests.n || deferred != c.deferred.n:
		return fmt.Errorf("mem: %d requests, %d deferred, flags say %d, %d", c.requests.n, c.deferred.n, wanted, deferred)
	}
	return nil
}

func (c *Core) checkPage(page ident.PageNo, e *pageEntry) error {
	pinned := false
	for _, p := range c.pins {
		if p.page != page {
			continue
		}
		pinned = pinned || p.held
		if p.held && !e.state.allows(accessOf(p.write)) {
			return fmt.Errorf("pin %d is held without access", p.token)
		}
	}
	r, d := c.requests.get(page), c.deferred.get(page)
	switch {
	case pinned != (e.flags&flagPinned != 0):
		return fmt.Errorf("pinned is %t", pinned)
	case e.flags&flagMapped != 0 && e.state == Invalid:
		return fmt.Errorf("mapped")
	case e.flags&flagWatched != 0 && (e.state != Shared || e.flags&flagMapped != 0):
		return fmt.Errorf("watched")
	case (r != nil) != (e.flags&flagWanted != 0):
		return fmt.Errorf("request is %t", r != nil)
	case (d != nil) != (e.flags&flagDeferred != 0):
		return fmt.Errorf("deferred is %t", d != nil)
	case d != nil && (d.Serial <= e.serial || d.Epoch != c.epoch || e.state == Invalid):
		return fmt.Errorf("deferred %v makes no sense", *d)
	case r != nil && r.have && r.serial != e.serial && r.contents:
		return fmt.Errorf("contents of serial %#x are stored", r.serial)
	case r != nil && r.have && r.need&^r.got == 0:
		return fmt.Errorf("complete, not installed")
	case r != nil && r.serial != 0 && epochOf(r.serial) != c.epoch:
		return fmt.Errorf("transaction %#x outlived its epoch", r.serial)
	}
	return nil
}

func (c *Core) checkDirectory() error {
	busy := 0
	for region, chunk := range c.dir.chunks {
		for i := range chunk {
			e, page := &chunk[i], ident.PageNo(region<<c.shift+i)
			if e.busy {
				busy++
			}
			if err := c.checkDirEntry(page, e); err != nil {
				return fmt.Errorf("mem: directory of page %d, %v, holders %b, serial %#x: %w", page, e.state, e.holders, e.serial, err)
			}
		}
	}
	if busy != c.transactions.n {
		return fmt.Errorf("mem: %d busy pages, %d transactions", busy, c.transactions.n)
	}
	return nil
}

func (c *Core) checkDirEntry(page ident.PageNo, e *dirEntry) error {
	n := e.holders.Len()
	t := c.transactions.get(page)
	switch {
	case c.Directory(page) != c.cfg.Self && c.knows(c.regionOf(page)): // of one that has gone, which may not have arrived
		if e.busy {
			return fmt.Errorf("busy, though it has gone")
		}
	case c.Directory(page) != c.cfg.Self:
		if e.state != Zero && e.state != Lost || n != 0 || e.busy {
			return fmt.Errorf("another part's")
		}
	case e.holders&^c.members != 0:
		return fmt.Errorf("holders outside the members %b", c.members)
	case (t != nil) != e.busy:
		return fmt.Errorf("busy is %t", e.busy)
	case e.state == Modified && n != 1, e.state == Shared && n == 0, (e.state == Zero || e.state == Lost) && n != 0, e.state == Invalid,
		e.state == Retained && n != 1 && c.rebuild == nil:
		return fmt.Errorf("%d holders", n)
	case e.busy && e.state == Lost:
		return fmt.Errorf("busy")
	case t != nil:
		return c.checkTransaction(e, t)
	}
	return nil
}

func (c *Core) checkTransaction(e *dirEntry, t *transaction) error {
	switch {
	case t.serial <= e.serial || epochOf(t.serial) != c.epoch:
		return fmt.Errorf("transaction %#x in epoch %d", t.serial, c.epoch)
	case t.invals.Has(t.from) || t.invals.Has(t.first.To) && t.first.Kind != wire.KindGrant:
		return fmt.Errorf("invalidates %b for %v, supplier %v", t.invals, t.from, t.first.To)
	case c.members&t.invals != t.invals || !c.members.Has(t.first.To):
		return fmt.Errorf("transaction with parts that are gone")
	}
	var queued ident.PartSet
	for i := t.queue; i != 0; i = c.waiters.all[i].next {
		from := c.waiters.all[i].from
		if queued.Has(from) {
			return fmt.Errorf("%v is queued twice", from)
		}
		queued = queued.Set(from)
	}
	return nil
}
