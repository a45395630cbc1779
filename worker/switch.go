package worker

import (
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A switchover is a checkpoint after which the VM does not go on here: it goes on from a standby, where nothing is missing.
//
//	running --freeze, cut--> frozen --every standby holds it--> reported --the registry's word--> goes on from the standby, or here
//
// Nothing here decides which: a frozen part waits for new members (the VM went on elsewhere, this part goes with it), for a stop (this part was
// moved away) or for a new protection (it stays). So the guest runs at one place only, however late the word comes.

// freeze is holdUnder, with nothing but a release, a new protection or a new life to end it.
func (w *Worker) freeze(seq, number, committed uint64, booted ident.Epoch) bool {
	return w.holdUnder(seq, number, committed, booted) && w.cutter.freeze(number) && !w.thawed(seq, number)
}

// holdUnder is hold by the home of protection seq.
func (w *Worker) holdUnder(seq, number, committed uint64, booted ident.Epoch) bool {
	held := w.hold(number, committed, booted, func() bool { return w.guard.restarting.Load() || w.replica.seq.Load() != seq })
	return !w.thawed(seq, number) && held
}

// thawed ends a hold under a protection that is over: its thaw may have come before.
func (w *Worker) thawed(seq, number uint64) bool {
	if w.replica.seq.Load() == seq {
		return false
	}
	w.release(number)
	return true
}

// freeze makes a hold one that time does not end.
func (c *cutter) freeze(number uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != number {
		return false
	}
	c.frozen = number
	return true
}

// expire ends a hold whose time is over, unless it is for a switchover.
func (w *Worker) expire(number uint64) {
	w.cutter.mu.Lock()
	frozen := w.cutter.frozen == number
	w.cutter.mu.Unlock()
	if !frozen {
		w.release(number)
	}
}

// thaw ends the hold that a former protection left behind: the home that asked for it asks no more, not even to let go. What was captured under it is no
// checkpoint, unless this part was let go before.
func (w *Worker) thaw() {
	w.guard.lookAgain()
	w.release(0)
}

// askSwitch takes the wish for a switchover under protection seq.
func (r *replicas) askSwitch(seq uint64) {
	r.mu.Lock()
	r.swtch = seq
	r.mu.Unlock()
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

func (r *replicas) switchAsked(seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.swtch == seq
}

// switchover freezes the VM at a last checkpoint and reports it. It returns false, with the VM running, if the members could not be frozen; else
// once the protection has changed or the VM has ended here.
func (l *loop) switchover() bool {
	r := l.r
	r.w.hands.cutting.Lock() // no vCPU is on its way, nor will one be while the VM is frozen
	number, committed := r.w.checkpoints.begin()
	began, booted := time.Now(), uint64(r.w.bootedNow())
	ok := r.all(l.members, func(m ident.Part) error { return r.ask(m, l.p.Seq, replicaFreeze, number, committed, booted) })
	r.w.hands.cutting.Unlock()
	cut := l.h.cutHere(number)
	ok = ok && r.all(l.members, func(m ident.Part) error { return r.ask(m, l.p.Seq, replicaCut, number, uint64(l.members), 0) })
	if !ok {
		r.all(l.members, func(m ident.Part) error { return r.ask(m, l.p.Seq, replicaRelease, number) })
		return false
	}
	if !l.applied(l.holders(), number) {
		return true
	}
	took := time.Since(began)
	r.w.checkpoints.commit(number)
	if r.failOn(l.h.committed(cut)) {
		return true
	}
	r.w.reportSwitched(wire.WorkerSwitched{Seq: l.p.Seq, Checkpoint: number, CutMicros: ident.Micros(took.Microseconds())})
	select {
	case <-l.change:
	case <-r.w.ctx.Done(): // among others when the guest had asked for the end before the cut
	}
	return true
}

// reportSwitched tells serve, now and on every later connection.
func (w *Worker) reportSwitched(s wire.WorkerSwitched) {
	w.mu.Lock()
	w.switched = &s
	w.mu.Unlock()
	w.log.Info().Uint64("seq", s.Seq).Uint64("checkpoint", s.Checkpoint).Int64("us", int64(s.CutMicros)).Msg("frozen for a switchover")
	w.control.send(wire.FromWorker{Switched: &s})
}
