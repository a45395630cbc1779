package worker

import (
	"slices"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/virtio"
	"github.com/cellvisor/cellvisor/wire"
)

// Mirrors of a VM's disks. A mirror is a standby that gets checkpoints of the disks alone: home cuts them while the guest runs, whenever it flushes and
// else a few times a second, and a flush is done when every mirror that is in step has the checkpoint after it. Nothing is held back: what the guest
// writes goes to home's image at once. A checkpoint of disks is there as a whole or not at all, as any other; so what a mirror has is what home's disk
// was at one moment, with all that was flushed before.
//
//	home's loop:  compare (copies that are new) -> in step: cut, ship, applied everywhere -> flushes return -> cut ...
//
// While a VM has replicas as well, because it moves, checkpoints of the VM carry the blocks to the mirrors, and a flush has nothing to wait for: see disks.
// A flush that waits is given back to the queue when its device is to rest, and so keeps nobody waiting: see virtio.Waiting. When the registry takes the mirrors
// away, it is done.

// mirrorEvery is how often the mirrors get what was written and not flushed.
const mirrorEvery = 100 * time.Millisecond

// mirrorPatience is how long a guest's end waits for mirrors that are brought into step.
const mirrorPatience = 2 * time.Second

// restsEvery is how often a flush that waits looks whether its device is to rest.
const restsEvery = 5 * time.Millisecond

// mirrored is what home knows of its mirrors. It belongs to the replicas' mu.
type mirrored struct {
	inStep  ident.PartSet // have all that was written up to the last checkpoint of the disks, and get all later ones
	wanted  uint64        // number of the last flush
	granted uint64        // of the last one that the mirrors have
	news    chan struct{} // closed, and made anew, when that or inStep changes, or flushes have nothing to wait for any more
	due     chan struct{} // has a token when the mirrors should get what was written
}

func newMirrored() mirrored { return mirrored{news: make(chan struct{}), due: make(chan struct{}, 1)} }

// flushBegun returns a number for what was written to disks so far. The mirrors get it soon.
func (r *replicas) flushBegun() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mirrors.wanted++
	select {
	case r.mirrors.due <- struct{}{}:
	default:
	}
	return r.mirrors.wanted
}

// flushDone waits until all mirrors that are in step have what has the number, or until there are none. With all, those that are brought into step
// are waited for as well. free tells whether there is nothing to wait for. When rests tells that the device is to rest nobody waits: whoever wants that may
// be who is to end the wait.
func (r *replicas) flushDone(number uint64, all bool, free, rests func() bool) error {
	tick := time.NewTicker(restsEvery)
	defer tick.Stop()
	for {
		r.mu.Lock()
		m, change := &r.mirrors, r.change
		need, done, news := r.protect.Mirrors, m.granted >= number, m.news
		if !all {
			need &= m.inStep
		}
		r.mu.Unlock()
		switch {
		case done || need == 0 || free():
			return nil
		case rests() && all: // it is only to slow the guest down
			return nil
		case rests():
			return virtio.ErrLater
		}
		select {
		case <-tick.C:
		case <-news:
		case <-change:
		case <-r.w.ctx.Done():
			return errEnded
		}
	}
}

// mirrorNews lets everybody look anew who waits in flushDone, after a change. f makes it, under mu.
func (r *replicas) mirrorNews(f func(*mirrored)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.mirrors)
	close(r.mirrors.news)
	r.mirrors.news = make(chan struct{})
}

// hasMirrors tells whether the VM has mirrors now.
func (r *replicas) hasMirrors() bool {
	p, _ := r.current()
	return p.Mirrors != 0
}

func (r *replicas) inStep() ident.PartSet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mirrors.inStep & r.protect.Mirrors
}

// holders are all standbys that checkpoints go to.
func (l *loop) holders() ident.PartSet { return l.p.Standbys | l.p.Mirrors }

// keep is home's loop while there are mirrors and no replicas.
func (l *loop) keep() {
	if !l.letGo() || !l.bringIntoStep(mirrorEvery, func() bool { return l.mirror(false) }) {
		return
	}
	l.r.mirrorNews(func(m *mirrored) { m.inStep = l.p.Mirrors }) // and only then the first one that counts
	if !l.mirror(true) {
		return
	}
	l.r.w.protected(wire.WorkerProtected{Seq: l.p.Seq, Checkpoint: l.r.w.checkpoints.last()})
	for l.r.wait(l.change, mirrorEvery, l.r.mirrors.due) {
		if !l.mirror(false) {
			return
		}
	}
}

// letGo ends holding back. What the guest said in the meantime, flushes among it, the mirrors in step must know before it leaves. It returns false when
// the protection has changed.
func (l *loop) letGo() bool {
	if l.r.inStep() != 0 && l.h.isHolding() {
		if l.r.failOn(l.h.disksNow().hold(false)) || !l.mirror(true) { // flushes wait for mirrors from here on
			return false
		}
	}
	return !l.r.failOn(l.h.hold(false))
}

// bringIntoStep brings copies of mirrors that are new into step, in the background; meanwhile tick is called again and again. It returns false when the
// protection has changed.
func (l *loop) bringIntoStep(every time.Duration, tick func() bool) bool {
	r := l.r
	fresh := l.p.Mirrors &^ r.inStep()
	disks := l.h.disksNow()
	if fresh == 0 || disks == nil {
		return true
	}
	r.mu.Lock()
	r.synced, r.syncing = 0, uint64(fresh.Len())*disks.blocks()
	r.mu.Unlock()
	done := make(chan bool, 1)
	go func() { done <- r.copyAllDisks(fresh, l.p.Seq, l.change) && l.sayWhole(fresh) }()
	for {
		select {
		case ok := <-done:
			if ok {
				r.mu.Lock()
				r.synced = r.syncing
				r.mu.Unlock()
			}
			return ok
		case <-r.mirrors.due:
		case <-time.After(every):
		case <-l.change:
			return false
		case <-r.w.ctx.Done():
			return false
		}
		if !tick() {
			return false
		}
	}
}

// sayWhole ends the full copy to mirrors, as of a part that has no memory: with the next checkpoint they are complete.
func (l *loop) sayWhole(to ident.PartSet) bool {
	s := l.r.w.blocksShare(l.p.Seq, 0)
	s.header.flags = chunkBase
	s.say()
	return l.r.shipOne(s, 0, true, to, l.p, l.change)
}

// blocksShare makes a share for mirrors, which have nothing to do with other parts.
func (w *Worker) blocksShare(number, since uint64) *share {
	self := w.spec.Part
	return &share{header: chunkHeader{number: number, since: since, members: ident.PartSet(0).Set(self), part: self, booted: w.cutter.bootedNow()}}
}

// mirror cuts a checkpoint of the disks and waits until all mirrors have it; without must only if something was written. It returns false when the
// protection has changed meanwhile, or the VM has ended.
func (l *loop) mirror(must bool) bool {
	r := l.r
	for !r.w.guard.mayAct() { // the VM may be started elsewhere by now
		if !r.wait(l.change, mirrorEvery/10, nil) {
			return false
		}
	}
	r.mu.Lock()
	wanted := r.mirrors.wanted
	r.mu.Unlock()
	disks := l.h.disksNow()
	if must || disks.noted() > 0 {
		number, since := r.w.checkpoints.beginDisks()
		s := r.w.blocksShare(number, since)
		if err := disks.cut(number, l.p.Standbys != 0, s); err != nil { // standbys that are copied now get it with their first checkpoint
			return r.over(l.change) || r.failOn(err)
		}
		s.encodeAll()
		l.p.Mirrors.Each(func(to ident.Part) { go r.ship(s, to, l.p.Seq, l.change) })
		if !l.applied(l.p.Mirrors, number) {
			return false
		}
		r.w.checkpoints.commitDisks(number)
		if r.failOn(disks.committed(number)) {
			return false
		}
	}
	r.mirrorNews(func(m *mirrored) { m.granted = max(m.granted, wanted) })
	return true
}

// applied waits until standbys have applied a checkpoint. It returns false when the protection has changed meanwhile, or the VM has ended.
func (l *loop) applied(by ident.PartSet, number uint64) bool {
	for !l.r.all(by, func(s ident.Part) error { return l.r.ask(s, l.p.Seq, replicaCommit, number) }) {
		if !l.r.wait(l.change, 200*time.Microsecond, nil) {
			return false
		}
	}
	return !l.r.over(l.change)
}

// beginDisks numbers a checkpoint of the disks, and returns the last one that all mirrors have.
func (c *checkpoints) beginDisks() (number, since uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	return c.number, c.committed
}

func (c *checkpoints) commitDisks(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.committed = max(c.committed, number)
}

// noted is how many blocks the next checkpoint of the disks would have.
func (d *disks) noted() (n int) {
	if d == nil {
		return 0
	}
	for _, g := range d.all {
		g.mu.Lock()
		n += g.layers.Noted()
		g.mu.Unlock()
	}
	return n
}

func never() bool { return false }

// hasLastWrites tells whether mirrors are to have what the guest has written before its end: those that are in step, and those that a VM without replicas,
// which may not have run for long, is to get.
func (r *replicas) hasLastWrites() bool {
	if r == nil {
		return false
	}
	p, _ := r.current()
	return r.inStep() != 0 || p.Standbys == 0 && slices.ContainsFunc(r.w.spec.Disks, func(d wire.WorkerDisk) bool { return d.Mirrors > 0 })
}

// lastWrites lets the mirrors have what the guest has written before it ended: the next to use the disks may find them there. Mirrors that are not in
// step yet may have a while for it.
func (r *replicas) lastWrites() {
	tick := time.NewTicker(restsEvery)
	defer tick.Stop()
	for began := time.Now(); !r.told() && time.Since(began) < mirrorPatience; {
		select {
		case <-r.w.ctx.Done():
			return
		case <-tick.C:
		}
	}
	_ = r.flushDone(r.flushBegun(), false, never, never) // else the VM has ended otherwise
}

// told tells whether serve knows of all mirrors that the VM has now that they are in step, or replicas take their place.
func (r *replicas) told() bool {
	p, _ := r.current()
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return p.Standbys != 0 || p.Mirrors != 0 && r.w.protection != nil && r.w.protection.Seq == p.Seq
}
