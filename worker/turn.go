package worker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// turn is whether the gang may use its slots. Its vCPU threads wait for it on a futex, not on a condition variable: they are locked to their
// threads, and the wake-up of a goroutine is handed from thread to thread before it gets there. All fields but word are protected by
// the guard's mu.
type turn struct {
	off         bool
	word        atomic.Uint32 // changes with each wake
	first, last ident.Micros  // when the first and the last vCPU took their turn, 0 if none has
}

// turnSleep bounds one sleep. Wake-ups are not lost; the bound only keeps a bug from becoming a hang.
const turnSleep = time.Second

// wait sleeps until the next wake. mu is held before and after; it may return for no reason.
func (t *turn) wait(mu *sync.Mutex) {
	seen := t.word.Load()
	mu.Unlock()
	futexWait(&t.word, seen, turnSleep)
	mu.Lock()
}

// wake lets all that wait look again.
func (t *turn) wake() {
	t.word.Add(1)
	futexWakeAll(&t.word)
}

// taken notes that a vCPU which had waited runs now.
func (t *turn) taken(now ident.Micros) {
	if t.first == 0 {
		t.first = now
	}
	t.last = now
}

// setTurn lets the vCPUs onto their slots or takes them off, without waiting for them. It returns when those that had waited for the turn that
// ends took it.
func (g *guard) setTurn(on bool, kick func()) (first, last ident.Micros) {
	g.mu.Lock()
	first, last = g.slot.first, g.slot.last
	g.slot.off, g.slot.first, g.slot.last = !on, 0, 0
	g.open.Store(g.mayRun() && !g.paused && on)
	g.mu.Unlock()
	if on {
		g.slot.wake()
	} else {
		kick()
	}
	return first, last
}
