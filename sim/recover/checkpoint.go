package recover

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// checkpoint is what a standby gets.
type checkpoint struct {
	log    []record
	number uint64
	truth  contents     // what the guest has written to its disk
	ships  []blockWrite // of the disk
	memory memory       // what the guest has there
	pages  []pageShare  // what of it the standbys may not know
}

// cut makes a checkpoint with all members and ships it; the standbys that have no copy yet take longer.
func (x *worker) cut() {
	for _, m := range x.protect.Members {
		if y := x.peer(m.Part); y == nil || !x.protect.Standbys.Has(m.Part) && (!y.acts() || y.epoch != x.epoch) {
			return // someone cannot be cut or reached: later
		}
	}
	w, seq, epoch := x.w, x.protect.Seq, x.epoch
	c := &checkpoint{log: slices.Clone(x.log)}
	if x.disk != nil && !x.cutDisk(c) {
		return
	}
	x.busy = true
	acks := x.protect.Standbys
	done := func() {
		if x.Dead || x.protect.Seq != seq || x.epoch != epoch {
			return
		}
		x.busy, x.safe, x.fallback = false, x.protect.Standbys, 0
		if x.disk != nil {
			x.settle(c.number)
		}
		w.release(x, len(c.log))
		x.sayProtected(seq)
	}
	if w.canary == canaryReleaseEarly {
		w.release(x, len(c.log))
	}
	if w.canary == canarySafeEarly {
		x.sayProtected(seq)
	}
	x.protect.Standbys.Each(func(part ident.Part) {
		delay := w.Between(100, 5*ident.Millisecond)
		if !x.safe.Has(part) {
			delay = w.Between(5*ident.Millisecond, 100*ident.Millisecond)
		}
		mine := x.lineageOf(c, part)
		var ship func()
		ship = func() {
			if x.Dead || x.protect.Seq != seq || x.epoch != epoch {
				return
			}
			y := x.peer(part)
			if x.Paused || y == nil || !y.take(seq, mine) {
				w.At(w.Now()+5*ident.Millisecond, ship)
				return
			}
			w.DeliverTo(x, func() {
				if acks = acks.Clear(part); acks == 0 {
					done()
				}
			})
		}
		w.At(w.Now()+delay, ship)
	})
}

// take is a standby's: it applies a checkpoint, unless it has taken over or knows nothing of the protection yet.
func (x *worker) take(seq uint64, c *checkpoint) bool {
	switch {
	case x.taken:
		return false
	case x.protect.Seq != seq || !x.Leased():
		return false
	}
	x.before, x.replica, x.has = x.replica, c.log, true
	x.truth = c.truth
	x.takeDisk(c)
	return true
}
