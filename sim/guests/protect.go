package guests

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

func (x *worker) takeProtect(p wire.WorkerProtect) {
	if p.Seq > x.protect.Seq {
		x.protect, x.busy, x.frozen = p, false, false
		x.safe &= p.Standbys
	}
}

// cut makes a checkpoint with all members and ships it; the standbys that have no copy yet take longer. When a switchover is asked for the guest
// stands still from this cut on.
func (x *worker) cut() {
	for _, m := range x.protect.Members {
		if y := x.peer(m.Part); y == nil || !x.protect.Standbys.Has(m.Part) && (!y.acts() || y.epoch != x.epoch) {
			return // someone cannot be cut or reached: later
		}
	}
	w, seq, saved, epoch, began := x.w, x.protect.Seq, x.guest.saved(), x.epoch, x.w.Now()
	x.busy, x.frozen = true, x.asked == seq
	acks := x.protect.Standbys
	valid := func() bool { return !x.Dead && x.protect.Seq == seq && x.epoch == epoch }
	done := func() {
		if !valid() {
			return
		}
		x.busy, x.safe = false, x.protect.Standbys
		w.release(x, len(saved.log))
		x.sayProtected(seq)
		if x.frozen {
			x.switched = &wire.WorkerSwitched{Seq: seq, CutMicros: w.Now() - began}
			x.Tell(monitor.WorkerSwitched{VM: x.VM, Switched: *x.switched})
		}
	}
	if w.Canary == CanaryReleaseEarly {
		w.release(x, len(saved.log))
	}
	x.protect.Standbys.Each(func(part ident.Part) {
		delay := w.Between(100, 5*ident.Millisecond)
		if !x.safe.Has(part) {
			delay = w.Between(5*ident.Millisecond, 200*ident.Millisecond)
		}
		var ship func()
		ship = func() {
			if !valid() {
				return
			}
			y := x.peer(part)
			if x.Paused || y == nil || !y.take(seq, saved) {
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
func (x *worker) take(seq uint64, saved guest) bool {
	if x.taken || x.protect.Seq != seq || !x.Leased() {
		return false
	}
	x.before, x.replica, x.has = x.replica, saved, true
	return true
}

func (x *worker) sayProtected(seq uint64) {
	if x.told < seq {
		x.told = seq
		x.Tell(monitor.WorkerProtected{VM: x.VM, Protected: wire.WorkerProtected{Seq: seq}})
	}
}
