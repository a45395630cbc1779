package worker

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/futex"
)

// turn is whether the gang may use its slots. Its vCPU threads wait for it on a futex, not on a condition variable: they are locked to their
// threads, and the wake-up of a goroutine is handed from thread to thread before it gets there. All fields but word are protected by
// the guard's mu.
type turn struct {
	off         bool
	bell        bell         // rings when something may have changed for who waits
	first, last ident.Micros // when the first and the last vCPU took their turn, 0 if none has
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

// hurryFor is for how long the vCPUs that have been let go run ahead of ordinary threads: long enough to be in the guest, and short enough for who serves
// their pages.
const hurryFor = 200 * time.Microsecond

// A process is killed when one of its threads has been a real-time one for as many ticks as RLIMIT_RTTIME says without being woken as such. Who is hurried was woken
// before, and each time may add a tick; so it sleeps for a moment once in a while, and the kernel begins to count anew.
const (
	napEvery = 32 // turns
	napFor   = 20 * time.Microsecond
)

func nap() {
	if rand.IntN(napEvery) == 0 {
		var word atomic.Uint32
		futex.Wait(&word, 0, napFor)
	}
}

// hurry lends the calling thread's priority to the vCPUs that have been let go, one after the other, and returns when that is over. Otherwise they would
// wait for whoever has their CPU, up to a tick of the host's scheduler: the vCPU which had it before and has not left it yet, or threads of serve. Their
// gang spins elsewhere meanwhile.
func (w *Worker) hurry() {
	var all [8]*futex.Baton // more are not hurried: the last ones would come too late anyway
	n := 0
	w.vcpuMu.Lock()
	for _, v := range w.vcpus {
		if n < len(all) && !v.idle.Load() {
			all[n] = &v.baton
			n++
		}
	}
	w.vcpuMu.Unlock()
	for _, b := range all[:n] {
		b.Hurry(hurryFor / time.Duration(n))
	}
}
