package worker

import (
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Bounds of the adaptive time between cuts, and the share of the VM's time that cuts may take.
const (
	cutEveryMin     = 20 * time.Millisecond
	cutEveryMax     = 200 * time.Millisecond
	cutShareInverse = 20 // a pause of p is followed by at least 20p of running; other costs of protection are about as large
)

// checkpoints is what home knows of the VM's checkpoints; the numbers rise over all protections.
type checkpoints struct {
	mu        sync.Mutex
	number    uint64        // of the last cut
	committed uint64        // the last one that all standbys hold
	pause     time.Duration // of the last cut
	every     time.Duration // between the last two
	at        time.Time
}

// run is home's loop of checkpoints under one protection: full copies to the standbys, then cut after cut. It ends when the protection changes.
func (r *replicas) run(p wire.WorkerProtect) {
	_, change := r.current()
	h := r.w.home.Load()
	if h == nil {
		return
	}
	if p.Standbys == 0 {
		if err := h.hold(false); err != nil {
			r.w.fail(err)
		}
		return
	}
	var members ident.PartSet
	for _, m := range p.Members {
		if !p.Standbys.Has(m.Part) {
			members = members.Set(m.Part)
		}
	}
	select {
	case <-h.loaded:
	case <-change:
		return
	case <-r.w.ctx.Done():
		return
	}
	// Until every standby has a full copy, output is held back only if an earlier protection's standby could take over.
	r.mu.Lock()
	r.safe &= p.Standbys
	hold := r.safe != 0
	r.mu.Unlock()
	if err := h.hold(hold); err != nil {
		r.w.fail(err)
		return
	}
	for !r.all(members, func(m ident.Part) error { return r.ask(m, p.Seq, replicaBase, p.Seq, uint64(p.Standbys)) }) {
		if !r.wait(change, 5*time.Millisecond, nil) {
			return
		}
	}
	if err := h.hold(true); err != nil {
		r.w.fail(err)
		return
	}
	told := false
	for {
		exited, ok := r.checkpoint(p, members, change)
		if r.over(change) {
			return
		}
		if ok {
			if err := h.committed(exited); err != nil {
				r.w.fail(err)
				return
			}
			if !told {
				told = true
				r.mu.Lock()
				r.safe = p.Standbys
				r.mu.Unlock()
				r.w.protected(wire.WorkerProtected{Seq: p.Seq, Checkpoint: r.w.checkpoints.last()})
			}
		}
		if !r.wait(change, r.w.checkpoints.next(time.Duration(p.CheckpointMillis)*time.Millisecond), h.urgent) {
			return
		}
	}
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

// checkpoint cuts one checkpoint and waits until every standby holds it. ok is false if it came to nothing; the next one covers it then.
func (r *replicas) checkpoint(p wire.WorkerProtect, members ident.PartSet, change <-chan struct{}) (exited, ok bool) {
	number, committed := r.w.checkpoints.begin()
	began := time.Now()
	ok = r.all(members, func(m ident.Part) error { return r.ask(m, p.Seq, replicaHold, committed) })
	if ok {
		ok = r.all(members, func(m ident.Part) error { return r.ask(m, p.Seq, replicaCut, number, uint64(members)) })
		exited = r.w.home.Load().exitedNow()
	}
	r.all(members, func(m ident.Part) error { return r.ask(m, p.Seq, replicaRelease) })
	r.w.checkpoints.paused(time.Since(began))
	if !ok {
		return false, false
	}
	// A standby that is silent is waited for: output is held back until it has the checkpoint, or until the view says that it is gone.
	for deadline := time.Now().Add(2 * time.Second); ; {
		if r.all(p.Standbys, func(s ident.Part) error { return r.ask(s, p.Seq, replicaCommit, number) }) {
			r.w.checkpoints.commit(number)
			return exited, true
		}
		if r.over(change) || time.Now().After(deadline) {
			return false, false
		}
		r.wait(change, 200*time.Microsecond, nil)
	}
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

func (c *checkpoints) paused(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pause = d
}

func (c *checkpoints) commit(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.committed = max(c.committed, number)
}

func (c *checkpoints) last() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.committed
}

// next is how long to wait for the next cut: fixed, or what the last pause allows.
func (c *checkpoints) next(fixed time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	every := fixed
	if every == 0 {
		every = min(max(c.pause*cutShareInverse, cutEveryMin), cutEveryMax)
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
