package worker

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/futex"
	"github.com/cellvisor/cellvisor/link/priority"
)

// turn is whether the gang may use its slots. Its vCPU threads wait for it on a futex, not on a condition variable: they are locked to their
// threads, and the wake-up of a goroutine is handed from thread to thread before it gets there. All fields but word are protected by
// the guard's mu.
type turn struct {
	off         bool
	bell        bell         // rings when something may have changed for who waits
	first, last ident.Micros // when the first and the last vCPU took their turn, 0 if none has
}

// queue is how a vCPU's thread waits for its turn: ahead of all ordinary threads, so that it runs at the moment that it is woken, even if the vCPU which had
// the CPU before has not left it yet. An ordinary one would wait for that one's slice of the host's scheduler to end, which is at a tick, while
// its gang spins elsewhere. It raises and lowers itself only, so no guest ever runs ahead of others.
type queue struct{ raised int } // the thread, 0: none

func (q *queue) join() {
	if tid := unix.Gettid(); q.raised == 0 && priority.Raise(tid) {
		q.raised = tid
	}
}

func (q *queue) leave() {
	if q.raised != 0 {
		priority.Lower(q.raised)
	}
}

// bellSleep bounds one sleep. Wake-ups are not lost; the bound only keeps a bug from becoming a hang.
const bellSleep = time.Second

// bell is a condition variable on a futex: who waits is woken by the kernel, whatever else the process is doing.
type bell struct{ word atomic.Uint32 }

// wait sleeps until the next ring. mu is held before and after; it may return for no reason.
func (b *bell) wait(mu sync.Locker, atMost time.Duration) {
	seen := b.word.Load()
	mu.Unlock()
	futex.Wait(&b.word, seen, min(atMost, bellSleep))
	mu.Lock()
}

// ring lets all that wait look again.
func (b *bell) ring() {
	b.word.Add(1)
	futex.WakeAll(&b.word)
}

// wait sleeps until the next wake. mu is held before and after; it may return for no reason.
func (t *turn) wait(mu sync.Locker) { t.bell.wait(mu, bellSleep) }

// wake lets all that wait look again.
func (t *turn) wake() { t.bell.ring() }

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
