package worker

import (
	"runtime"
	"sync/atomic"
	"time"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/cellvisor/cellvisor/link/futex"
	"github.com/cellvisor/cellvisor/mem"
)

// Parts that take turns at pages watch for vCPUs which spin: whose kernel waits for a lock, or for an answer, of a vCPU elsewhere. That one in turn may wait for the
// pages that this part keeps for its stint. A vCPU that was in the guest for a while without leaving it is thrown out twice: if its kernel goes in a circle, the turn
// is passed on, and the vCPU stands back for a part of a stint, or until it is interrupted.
//
//	inside ──a look──► sampled ──another, at the same place──► stands back ──half a stint, or an interrupt──► inside
//	                        └──── elsewhere: it is looked at half as often ────┘

const (
	looksPerStint = 100 // how soon a vCPU is looked at: stints are as long as pages are slow, and so are exits
	leastLook     = 50 * time.Microsecond
	looksSlower   = 4 // how much later at most one is that was elsewhere
)

// spinSample is where a vCPU was when it was thrown out of the guest.
type spinSample struct {
	regs  gokvm.Regs
	exits uint64 // how often it had left the guest by then
}

// spinBytes is how long a loop may be that waits for another vCPU.
const spinBytes = 128

// spins tells whether a vCPU that was at two places, one after the other, goes in a circle in its kernel. One that copies or compares goes on in its registers.
func (s *spinSample) spins(next *spinSample) bool {
	a, b := &s.regs, &next.regs
	return next.exits == s.exits+1 && int64(b.RIP) < 0 && max(a.RIP, b.RIP)-min(a.RIP, b.RIP) <= spinBytes &&
		a.RSP == b.RSP && a.RBX == b.RBX && a.RCX == b.RCX && a.RSI == b.RSI && a.RDI == b.RDI && a.RBP == b.RBP
}

// spins is what the thread that watches for them waits for.
type spins struct {
	entered bell // a vCPU enters the guest
	sleeps  atomic.Bool
	never   atomic.Uint32
}

// enters is called by each vCPU that is about to enter the guest.
func (s *spins) enters() {
	if s.sleeps.Load() && s.sleeps.Swap(false) {
		s.entered.ring()
	}
}

// watchSpins looks at this part's vCPUs for as long as the VM runs.
func (w *Worker) watchSpins() {
	runtime.LockOSThread()
	raisePriority()
	first := max(time.Duration(stintOf(w.spec))*time.Microsecond/looksPerStint, leastLook)
	every := first
	for w.ctx.Err() == nil {
		word := w.spins.entered.word.Load()
		w.spins.sleeps.Store(true)
		inside := false
		w.vcpuMu.Lock()
		here := w.vcpus
		w.vcpuMu.Unlock()
		for _, v := range here {
			if !v.inside.Load() {
				v.seen = 0 // it has been in the guest before it is looked at
				continue
			}
			inside = true
			w.spins.sleeps.Store(false)
			exits := v.exits.Load()
			switch {
			case v.seen == 0:
				v.seen = exits + 1
			case v.seen != exits+1:
				v.seen, every = exits+1, first
			case !w.plane.waits(v):
				v.looked.Store(true)
				v.cpu.Kick()
				v.seen, every = 0, min(2*every, looksSlower*first)
			}
		}
		if inside {
			futex.Wait(&w.spins.never, 0, every)
		} else {
			futex.Wait(&w.spins.entered.word, word, bellSleep)
		}
	}
}

// standBack is called when a vCPU has left the guest. If it spins it leaves the turn to others.
func (w *Worker) standBack(v *vcpu) error {
	if !v.looked.Swap(false) {
		return nil
	}
	regs, err := v.cpu.Regs()
	if err != nil {
		return err
	}
	now := spinSample{regs: regs, exits: v.exits.Load()}
	spins := v.sample.spins(&now)
	v.sample = now
	if !spins {
		return nil
	}
	v.sample = spinSample{}
	w.interrupts(mem.EventPass)
	if life, ok := w.guard.enterIdle(v.life, &v.called); !ok || life != v.life {
		return nil
	}
	timer := time.NewTimer(time.Duration(stintOf(w.spec)) * time.Microsecond / 2)
	defer timer.Stop()
	select {
	case <-v.wake:
	case <-timer.C:
	}
	return nil
}
