package worker

import (
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/recovery"
	"github.com/cellvisor/cellvisor/wire"
)

// checkpoints is what home knows of the VM's checkpoints; the numbers rise over all protections.
type checkpoints struct {
	mu        sync.Mutex
	number    uint64 // of the last cut
	committed uint64 // the last one that all standbys hold
	made      uint64 // cuts that all standbys hold
	pauses    pause  // of all cuts
	recent    [512]pause
	cuts      uint64        // the last pause is recent[(cuts-1) % len]
	pace      recovery.Pace // what cuts cost of late
	every     time.Duration // between the last two
	lag       time.Duration // from the last cut until all standbys had it
	at        time.Time
	safeAt    time.Time // when the last one that all standbys hold was cut
}

// pause is for how long a cut stopped the guest, by stages.
type pause struct {
	all  time.Duration
	stop time.Duration // until all vCPUs had stopped and nothing was on its way
	take time.Duration // to capture; the rest is letting go
}

// run is home's loop of checkpoints under one protection: full copies to the standbys that have none, then cut after cut. It begins when
// the loop of the former protection has ended, and ends when the protection changes.
func (r *replicas) run(p wire.WorkerProtect, change, before <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	<-before
	h := r.w.home.Load()
	if h == nil || r.over(change) {
		return
	}
	if p.Standbys|p.Mirrors == 0 {
		r.setSafe(0)
		h.disksNow().note(false)
		r.failOn(h.hold(false))
		return
	}
	var members ident.PartSet
	for _, m := range p.Members {
		if !(p.Standbys | p.Mirrors).Has(m.Part) {
			members = members.Set(m.Part)
		}
	}
	if !r.awaitLoaded(h, change) {
		return
	}
	l := &loop{r: r, h: h, p: p, members: members, change: change}
	if p.Mirrors != 0 {
		h.disksNow().note(true)
	}
	if p.Standbys == 0 {
		r.setSafe(0)
		l.keep()
		return
	}
	// Standbys of an earlier protection may still be needed, so output goes on waiting for them. If there are none, it need not wait yet.
	safe := r.setSafe(r.safeNow() & p.Standbys)
	if safe != 0 && !l.holdAll() || safe == 0 && !l.letGo() {
		return
	}
	if !l.align(safe) {
		return
	}
	if fresh := p.Standbys &^ safe; fresh != 0 && !l.copyTo(fresh, safe != 0) {
		return
	}
	if !l.holdAll() || !l.bringIntoStep(l.every(), func() bool { return l.checkpoint(false) }) || !l.join() {
		return
	}
	for r.wait(change, r.w.checkpoints.next(l.every()), h.urgent) {
		if r.switchAsked(p.Seq) && l.switchover() || !l.checkpoint(false) {
			return
		}
	}
}

// awaitLoaded waits until the guest's image is in memory; it returns false when the protection has changed or the VM has ended.
func (r *replicas) awaitLoaded(h *home, change <-chan struct{}) bool {
	for {
		loaded, gone := h.waits()
		select {
		case <-loaded:
			return true
		case <-gone: // it boots again
			if !r.wait(change, time.Millisecond, nil) {
				return false
			}
		case <-change:
			return false
		case <-r.w.ctx.Done():
			return false
		}
	}
}

// loop is what home's loop of checkpoints under one protection needs to know.
type loop struct {
	r       *replicas
	h       *home
	p       wire.WorkerProtect
	members ident.PartSet
	change  <-chan struct{}
}

func (l *loop) every() time.Duration { return time.Duration(l.p.CheckpointMillis) * time.Millisecond }

// copyTo gives standbys a full copy. If others are safe already, checkpoints go on meanwhile. It returns false when the protection has changed.
func (l *loop) copyTo(fresh ident.PartSet, checkpoints bool) bool {
	next, again := time.Now(), copyAgainFirst
	mirrors := l.p.Mirrors != 0 && !checkpoints // flushes wait for these meanwhile
	for !l.r.all(l.members, func(m ident.Part) error {
		return l.r.ask(m, l.p.Seq, replicaBase, l.p.Seq, uint64(fresh), uint64(l.r.w.bootedNow()))
	}) {
		if checkpoints {
			again = min(again, max(time.Until(next), copyAgainFirst))
		}
		if !l.r.wait(l.change, again, nil) || mirrors && !l.mirror(false) {
			return false
		}
		if checkpoints && time.Now().After(next) {
			if !l.checkpoint(false) {
				return false
			}
			next = time.Now().Add(l.r.w.checkpoints.next(l.every()))
		}
		if !mirrors {
			again = min(again+again/4, copyAgainMost)
		}
	}
	return true
}

// copyAgainFirst is how long the members are left to their full copies before they are asked whether these are there; then it is longer, up to
// copyAgainMost.
const (
	copyAgainFirst = 5 * time.Millisecond
	copyAgainMost  = 20 * time.Millisecond
)

// holdAll begins to hold back output and what is written to disks. A flush that waits for mirrors need not any more.
func (l *loop) holdAll() bool {
	l.h.holdFrames(l.p.Kept)
	err := l.h.hold(true)
	l.r.mirrorNews(func(*mirrored) {})
	return !l.r.failOn(err)
}

// join makes the first checkpoint that all standbys hold, with all output that ever left, and tells serve that the VM is safe.
func (l *loop) join() bool {
	if !l.checkpoint(true) {
		return false
	}
	l.r.setSafe(l.p.Standbys)
	l.r.mirrorNews(func(m *mirrored) { m.inStep = l.p.Mirrors })
	l.r.w.protected(wire.WorkerProtected{Seq: l.p.Seq, Checkpoint: l.r.w.checkpoints.last()})
	return true
}

func (r *replicas) safeNow() ident.PartSet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.safe
}

func (r *replicas) setSafe(safe ident.PartSet) ident.PartSet {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.safe = safe
	return safe
}

// failOn ends the VM's part here if err is one, and tells whether it is.
func (r *replicas) failOn(err error) bool {
	if err != nil {
		r.w.fail(err)
	}
	return err != nil
}

func (r *replicas) over(change <-chan struct{}) bool {
	select {
	case <-change:
		return true
	case <-r.w.ctx.Done():
		return true
	default:
		return false
	}
}

// wait waits for d or a token of early; it returns false when the protection has changed or the VM has ended.
func (r *replicas) wait(change <-chan struct{}, d time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-early:
		return true
	case <-r.poke:
		return true
	case <-change:
		return false
	case <-r.w.ctx.Done():
		return false
	}
}

// all asks all parts at once and tells whether each has done it.
func (r *replicas) all(parts ident.PartSet, ask func(ident.Part) error) bool {
	if parts.Len() == 1 {
		return ask(parts.First()) == nil
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	good := true
	parts.Each(func(part ident.Part) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := ask(part); err != nil {
				mu.Lock()
				defer mu.Unlock()
				good = false
			}
		}()
	})
	wg.Wait()
	return good
}

// checkpoint cuts one checkpoint, waits until every standby holds it, and lets the output leave that was made before. It returns false when
// the protection has changed meanwhile, or the VM has ended. A cut that comes to nothing is made anew.
//
// A standby that is silent is waited for, with output held back, until it has the checkpoint or the view says that it is gone. No other cut
// is made meanwhile, so what is on its way to a slow standby is bounded.
func (l *loop) checkpoint(history bool) bool {
	r := l.r
	var number uint64
	var cut outputCut
	for {
		var ok bool
		r.cuts.do(r.w.ctx, func() { number, cut, ok = l.cut(history) })
		if ok {
			break
		}
		if !r.wait(l.change, cutAgain, nil) {
			return false
		}
	}
	if !l.applied(l.holders(), number) {
		return false
	}
	r.w.checkpoints.commit(number)
	return !r.failOn(l.h.committed(cut))
}

// cutAgain is how long a member that could not be cut is left alone.
const cutAgain = 2 * time.Millisecond

// cut has every member stop, capture its share and go on.
func (l *loop) cut(history bool) (number uint64, cut outputCut, ok bool) {
	r := l.r
	r.w.hands.cutting.Lock() // no vCPU is on its way
	defer r.w.hands.cutting.Unlock()
	number, committed := r.w.checkpoints.begin()
	flags := uint64(0)
	if history {
		flags = cutHistory
	}
	began, booted := time.Now(), uint64(r.w.bootedNow())
	ok = r.all(l.members, func(m ident.Part) error { return r.ask(m, l.p.Seq, replicaHold, number, committed, booted) })
	spent := pause{stop: time.Since(began)}
	if ok {
		cut = l.h.cutHere(number)
		ok = r.all(l.members, func(m ident.Part) error { return r.ask(m, l.p.Seq, replicaCut, number, uint64(l.members), flags) })
	}
	spent.take = time.Since(began) - spent.stop
	// A member whose hold has timed out meanwhile may have run between another's capture and its own: then this is no cut.
	ok = r.all(l.members, func(m ident.Part) error { return r.ask(m, l.p.Seq, replicaRelease, number) }) && ok
	spent.all = time.Since(began)
	r.w.checkpoints.paused(spent, r.w.cutter.lastPages()*l.members.Len())
	return number, cut, ok
}

func (c *checkpoints) begin() (number, committed uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	if now := time.Now(); !c.at.IsZero() {
		c.every = now.Sub(c.at)
	}
	c.at = time.Now()
	return c.number, c.committed
}

// paused notes the pause of a cut. Members write about alike, so home's pages stand for theirs.
func (c *checkpoints) paused(p pause, pages int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recent[c.cuts%uint64(len(c.recent))] = p
	c.cuts++
	c.pauses.all += p.all
	c.pauses.stop += p.stop
	c.pauses.take += p.take
	c.pace.Cut(ident.Micros(p.all.Microseconds()), uint64(pages))
}

// pauseStats adds what cuts cost: in all, and of the last few hundred the last, the median and the 99th percentile.
func (c *checkpoints) pauseStats(s *wire.WorkerStats) {
	us := func(d time.Duration) ident.Micros { return ident.Micros(d.Microseconds()) }
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Checkpoints, s.CutMicrosSum, s.StopMicrosSum, s.TakeMicrosSum = c.made, us(c.pauses.all), us(c.pauses.stop), us(c.pauses.take)
	n := min(c.cuts, uint64(len(c.recent)))
	if n == 0 {
		return
	}
	sorted := func(of func(pause) time.Duration) []time.Duration {
		all := make([]time.Duration, n)
		for i, p := range c.recent[:n] {
			all[i] = of(p)
		}
		slices.Sort(all)
		return all
	}
	p99 := (99*n - 1) / 100
	all := sorted(func(p pause) time.Duration { return p.all })
	s.CutMicros, s.CutMedian, s.CutP99 = us(c.recent[(c.cuts-1)%uint64(len(c.recent))].all), us(all[n/2]), us(all[p99])
	s.StopP99 = us(sorted(func(p pause) time.Duration { return p.stop })[p99])
	s.TakeP99 = us(sorted(func(p pause) time.Duration { return p.take })[p99])
}

func (c *checkpoints) commit(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.committed = max(c.committed, number)
	c.safeAt = c.at
	c.made++
	c.lag = time.Since(c.at)
}

func (c *checkpoints) last() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.committed
}

// next is how long to wait for the next cut: fixed, or what the pauses of late allow.
func (c *checkpoints) next(fixed time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	every := fixed
	if every == 0 {
		every = time.Duration(c.pace.Every()) * time.Microsecond
	}
	return max(0, time.Until(c.at.Add(every)))
}

// protected tells serve that the VM survives the loss of its members from now on.
func (w *Worker) protected(p wire.WorkerProtected) {
	w.mu.Lock()
	w.protection = &p
	w.mu.Unlock()
	w.log.Info().Uint64("seq", p.Seq).Uint64("checkpoint", p.Checkpoint).Msg("protected")
	w.control.send(wire.FromWorker{Protected: &p})
}
