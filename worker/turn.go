package worker

import (
	"math"
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
//
// What a part does when is known ahead of time. Who waits for a turn sleeps until it begins, and who has one sets an alarm for its end: whoever looks first when
// the time has come carries it out for all. So a turn that was announced costs no thread besides those of the vCPUs, and begins on each server when its clock says so.
type turn struct {
	off         bool
	carryOut    func(now ident.Micros) // does what is due; requires mu. nil: nothing ever is
	due         atomic.Int64           // when the next of it is; notDue: nothing is planned
	bell        bell                   // rings when something may have changed for who waits
	together    bool                   // other servers' vCPUs begin at the same time
	first, last ident.Micros           // when the first and the last vCPU took their turn, 0 if none has
}

// queue is how a vCPU's thread waits for its turn in a gang on several servers: ahead of all ordinary threads, so that it runs at the moment that it is woken. An
// ordinary one would wait for whatever its host does at that moment, while its gang spins elsewhere. It raises and lowers itself only, and no guest runs ahead of
// others for longer than headStart.
type queue struct{ raised int } // the thread, 0: none

// headStart is for how long at most such a vCPU still runs ahead when its turn has begun: until the others have surely begun as well. Its first exit from the guest
// ends it.
const headStart = 300 * ident.Micros(1)

func (q *queue) join() {
	if q.raised != 0 || notRaised.Load() {
		return
	}
	if tid := unix.Gettid(); priority.Raise(tid) {
		q.raised = tid
	} else {
		notRaised.Store(true)
	}
}

// notRaised is set once the process was refused to: its limits do not change any more.
var notRaised atomic.Bool

func (q *queue) leave() {
	if q.raised != 0 {
		priority.Lower(q.raised)
		q.raised = 0
	}
}

// bellSleep bounds one sleep. Wake-ups are not lost; the bound only keeps a bug from becoming a hang.
const bellSleep = time.Second

// bell is a condition variable on a futex: who waits is woken by the kernel, whatever else the process is doing.
type bell struct {
	word    atomic.Uint32
	waiting atomic.Int32 // who sleeps, or is about to
}

// wait sleeps until the next ring, or until a time on bootMicros's clock. mu is held before and after; it may return for no reason.
func (b *bell) wait(mu sync.Locker, until ident.Micros) {
	seen := b.word.Load()
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	mu.Unlock()
	mono := futex.Now() // before the other clock: if the thread is put off its CPU in between, it wakes too early
	left := min(max(0, until-bootMicros()), ident.Micros(bellSleep/time.Microsecond))
	futex.WaitUntil(&b.word, seen, mono+int64(left)*1000)
	mu.Lock()
}

// watchFrom is how long before a gang on several servers begins its vCPUs' threads are awake: a CPU that has to be woken from its rest at that very moment, or
// that the host has something else to do with, comes late. The gang before has let go of the CPU by then (holdEarly).
const watchFrom = 100 * ident.Micros(1)

// watch is wait without sleep.
func (b *bell) watch(mu sync.Locker, until ident.Micros) {
	seen := b.word.Load()
	mu.Unlock()
	for bootMicros() < until && b.word.Load() == seen {
	}
	mu.Lock()
}

// ring lets all that wait look again.
func (b *bell) ring() {
	b.word.Add(1)
	if b.waiting.Load() > 0 { // who comes later sees the word
		futex.WakeAll(&b.word)
	}
}

// notDue is a time that does not come.
const notDue = math.MaxInt64

// pass does what is due. It requires mu.
func (t *turn) pass(now ident.Micros) {
	if int64(now) >= t.due.Load() && t.carryOut != nil {
		t.carryOut(now)
	}
}

// waitTurn is wait for who is to wake when something is due.
func (t *turn) waitTurn(mu sync.Locker, now ident.Micros) {
	due := ident.Micros(t.due.Load())
	if !t.together || due == notDue {
		t.bell.wait(mu, due)
	} else if due-now > watchFrom {
		t.bell.wait(mu, due-watchFrom)
	} else {
		t.bell.watch(mu, due)
	}
}

// wait sleeps until the next wake. mu is held before and after; it may return for no reason.
func (t *turn) wait(mu sync.Locker) { t.bell.wait(mu, notDue) }

// wake lets all that wait look again.
func (t *turn) wake() { t.bell.ring() }

// taken notes that a vCPU which had waited runs now.
func (t *turn) taken(now ident.Micros) {
	if t.first == 0 {
		t.first = now
	}
	t.last = now
}

// pass does what is due.
func (g *guard) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slot.pass(bootMicros())
}

// setTurn lets the vCPUs onto their slots or takes them off, without waiting for them. It returns when those that had waited for the turn that
// ends took it. It requires mu.
func (g *guard) setTurn(on bool, kick func()) (first, last ident.Micros) {
	first, last = g.slot.first, g.slot.last
	g.slot.off, g.slot.first, g.slot.last = !on, 0, 0
	g.open.Store(g.mayRun() && !g.paused && on)
	if on {
		g.slot.wake()
	} else {
		kick()
	}
	return first, last
}

// endTurn notes that the vCPU's alarm has rung, or stops it if the vCPU has to wait.
func (w *Worker) endTurn(v *vcpu, now ident.Micros) {
	if v.alarm.at == 0 {
		return
	}
	if ago := now - v.alarm.at; ago >= 0 {
		v.alarm.at = 0 // it rings once
		v.ended = threadNanos() - int64(min(ago, leaveMost))*1000
	} else if !w.guard.open.Load() {
		v.alarm.set(0)
	}
}

// leaveMost bounds what leaving the guest at an alarm is taken to cost: if it takes longer, somebody else had the CPU. (The CPU time up to the alarm is not known.)
const leaveMost = 10 * ident.Micros(1)

// setAlarm has the vCPU, which is about to enter the guest, leave it when something is due. It counts what going from turn to turn has cost.
func (w *Worker) setAlarm(v *vcpu) {
	due := ident.Micros(w.guard.slot.due.Load())
	if v.queue.raised != 0 {
		due = min(due, bootMicros()+headStart)
	}
	if due == notDue {
		due = 0
	}
	if v.alarm.at != due && !v.alarm.set(due) {
		w.slices.minded.Store(true) // its thread does it
		v.queue.leave()
	}
	if v.ended != 0 {
		w.slices.turnNanos.Add(threadNanos() - v.ended)
		v.ended = 0
	}
}
