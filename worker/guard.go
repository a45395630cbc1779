package worker

import (
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/futex"
)

// A guard decides whether this part may act: run guest instructions, answer page requests, release output. It opens when the VM has
// started, closes for good when it ends, and closes for a while when the part is paused or when the server's lease has lapsed.
//
//	closed --start--> open <--lease renewed / resume / release / restart-- held
//	                  open ---lease lapsed / pause / hold / crash--------> held
//	any ---stop---> stopped
//
// A VM that goes back to a checkpoint, or boots again, begins a new life (restart): enter tells each vCPU the number of the life it enters, so that it loads
// the state that it begins that life with.
//
// A vCPU asks enter before every entry into the guest. A stop signal forces each vCPU out of KVM_RUN, so a process that was stopped and
// continued long after its lease lapsed executes no guest instruction.
type guard struct {
	leaseUntil atomic.Int64  // ident.Micros of CLOCK_BOOTTIME
	open       atomic.Bool   // mayRun
	lifeNow    atomic.Uint64 // life
	restarting atomic.Bool   // a new life is being prepared: who waits for something of the old one gives up

	mu      futex.Mutex
	stops   bell   // rings when a thread parks or ends, for who holds
	started bool   // protected by mu
	paused  bool   // protected by mu; an operator lets the VM stand still
	stalled bool   // protected by mu; too much output is held back
	halted  bool   // protected by mu; the guest crashed
	held    int    // protected by mu; holds not yet released
	slot    turn   // whether it is the gang's turn on the slots
	stopped bool   // protected by mu
	life    uint64 // protected by mu; written while no vCPU is out of enter
	threads int    // protected by mu; vCPU threads that are alive
	parked  int    // protected by mu; of these, how many wait in enter
	kick    func()
	urger   urger
	onFence func(fenced bool)
	timer   *time.Timer
	fenced  bool // protected by mu

	pausedAt  time.Time     // protected by mu
	pausedSum time.Duration // protected by mu; of the pauses that are over
}

// newGuard returns a closed guard. kick must force all vCPUs out of the guest, whose threads are threads; onFence is told when the lease lapses and when
// it is back.
func newGuard(kick func(), threads func() []int, onFence func(bool)) *guard {
	g := &guard{kick: kick, onFence: onFence, urger: urger{tids: threads}}
	g.slot.due.Store(notDue)
	g.timer = time.AfterFunc(time.Hour, g.checkLease)
	return g
}

// leased tells whether the server's lease holds at this moment.
func (g *guard) leased() bool { return int64(bootMicros()) < g.leaseUntil.Load() }

// mayAct tells whether the part may answer peers at this moment. A part that has not started yet may: its directory serves others.
func (g *guard) mayAct() bool { return g.mayActAt(bootMicros()) }

// mayActAt is mayAct for a caller that has just read the clock.
func (g *guard) mayActAt(now ident.Micros) bool { return int64(now) < g.leaseUntil.Load() }

// join counts a vCPU thread; leave ends that.
func (g *guard) join() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.threads++
}

func (g *guard) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.threads--
	g.stops.ring()
}

// enter blocks until the vCPU may enter the guest, and returns the life that it enters; ok is false when the VM has ended. The fast path may
// still return the former life when a restart is under way: restart waits until every thread has parked, so nothing comes of it.
//
// now is the time: who comes when something of the gang's turns is due does that first. A vCPU that is called does not wait for its turn: it will not enter the
// guest, but stand aside.
//
// A pause holds who is in the present life. Who is still in the life that he is in now, which is none for one that has not begun, gets the next, so
// that a VM which goes on elsewhere while it is paused is all there.
//
// q is how it waits. After a turn of a gang on several servers it is still in q: see headStart.
func (g *guard) enter(now ident.Micros, in uint64, called *atomic.Bool, q *queue) (life uint64, ok bool) {
	if g.open.Load() && g.mayActAt(now) && int64(now) < g.slot.due.Load() {
		return g.lifeNow.Load(), true
	}
	return g.wait(called, false, in, q)
}

// enterIdle is enter for a vCPU that idles: it needs no slot.
func (g *guard) enterIdle(in uint64, called *atomic.Bool) (life uint64, ok bool) {
	if g.open.Load() && g.leased() {
		return g.lifeNow.Load(), true
	}
	return g.wait(called, true, in, &queue{})
}

// wait is enter's slow path.
func (g *guard) wait(called *atomic.Bool, idle bool, in uint64, q *queue) (life uint64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	life, waited, ok := g.await(called, idle, in, q)
	if ok && waited {
		g.slot.taken(bootMicros())
	} else if q.raised != 0 {
		g.mu.Unlock()
		q.leave() // without the lock, which others would have to wait for an ordinary thread for
		g.mu.Lock()
	}
	return life, ok
}

// await blocks; waited tells that it was for the gang's turn, which has come. It requires mu.
func (g *guard) await(called *atomic.Bool, idle bool, in uint64, q *queue) (life uint64, waited, ok bool) {
	g.parked++
	g.stops.ring()
	defer func() { g.parked-- }()
	for first := true; ; first = false {
		now := bootMicros()
		g.slot.pass(now)
		if first {
			waited = g.slot.off && !idle
		}
		if g.stopped {
			return 0, false, false
		}
		switch {
		case called.Load() && g.held == 0 && !g.restarting.Load():
			return g.life, false, true
		case !g.mayRun() || !g.mayActAt(now), g.paused && in == g.life:
			g.slot.wait(&g.mu)
		case g.slot.off && !idle:
			waited = true
			if g.slot.together {
				q.join()
			}
			g.slot.waitTurn(&g.mu, now)
		default:
			return g.life, waited, true
		}
	}
}

// awaitLife blocks until another life than the given one begins; it returns false when the VM has ended.
func (g *guard) awaitLife(life uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked++
	g.stops.ring()
	defer func() { g.parked-- }()
	for g.life == life && !g.stopped {
		g.slot.wait(&g.mu)
	}
	return !g.stopped
}

// mayRun requires mu.
func (g *guard) mayRun() bool {
	return g.started && !g.stalled && !g.halted && g.held == 0 && !g.stopped
}

// hold throws the vCPUs out of the guest and waits until all of them have parked, or for at most the given time. Each hold that returned
// true must be released.
func (g *guard) hold(within time.Duration) bool {
	return g.holdUnless(within, func() bool { return false })
}

// lookAgain has whoever waits for vCPUs to park ask whether it still wants that.
func (g *guard) lookAgain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stops.ring()
}

// holdUnless is hold that ends early when over says so; see lookAgain.
func (g *guard) holdUnless(within time.Duration, over func() bool) bool {
	deadline := time.Now().Add(within)
	g.mu.Lock()
	g.held++
	g.publish()
	g.mu.Unlock()
	// Without the lock: a vCPU that is thrown out takes it at once, and would have to be woken if it found it taken. The kick comes before the urging,
	// so that no guest runs ahead of others.
	g.kick()
	g.urger.begin()
	defer g.urger.end()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.parked < g.threads && !g.stopped {
		left := time.Until(deadline)
		if left <= 0 || over() {
			break
		}
		g.stops.wait(&g.mu, bootMicros()+ident.Micros(left.Microseconds())+1)
	}
	if g.parked == g.threads {
		return true
	}
	g.held--
	g.settle()
	return false
}

// release ends a hold.
func (g *guard) release() { g.update(func() { g.held-- }) }

// restart begins a new life. All vCPUs must be held.
func (g *guard) restart() {
	g.update(func() { g.life++; g.halted = false })
	g.restarting.Store(false)
}

// renew extends the lease. A renewal that would shorten it is ignored: they can overtake one another.
func (g *guard) renew(until ident.Micros) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if int64(until) <= g.leaseUntil.Load() {
		return
	}
	lapsed := !g.leased()
	g.leaseUntil.Store(int64(until))
	g.timer.Reset(time.Duration(until-bootMicros()) * time.Microsecond)
	if g.fenced && g.leased() {
		g.fenced = false
		go g.onFence(false)
	}
	if lapsed { // nobody waits for a lease that is there, but who waits for a turn would be woken ten times a second
		g.slot.wake()
	}
}

// checkLease runs when the lease should have lapsed: it throws the vCPUs out of the guest, where enter then holds them.
func (g *guard) checkLease() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if left := ident.Micros(g.leaseUntil.Load()) - bootMicros(); left > 0 {
		g.timer.Reset(time.Duration(left) * time.Microsecond)
		return
	}
	if !g.fenced && !g.stopped && g.started {
		g.fenced = true
		go g.onFence(true)
	}
	g.kick()
}

// start lets the vCPUs run their first life.
func (g *guard) start() { g.update(func() { g.started, g.life = true, g.life+1 }) }

// pause holds the vCPUs, or lets them go on.
func (g *guard) pause(on bool) {
	g.update(func() {
		switch {
		case on && !g.paused:
			g.pausedAt = time.Now()
		case !on && g.paused:
			g.pausedSum += time.Since(g.pausedAt)
		}
		g.paused = on
	})
}

// pausedFor is for how long the vCPUs have been held so, all pauses together.
func (g *guard) pausedFor() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused {
		return g.pausedSum + time.Since(g.pausedAt)
	}
	return g.pausedSum
}

// isPaused tells whether they are held so.
func (g *guard) isPaused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.paused
}

// awaitPaused waits until every vCPU has parked in the life that it is in; false if the pause, or the VM, has ended meanwhile.
func (g *guard) awaitPaused(begun func(life uint64) bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case !g.paused || g.stopped:
			return false
		case g.started && g.parked == g.threads && begun(g.life):
			return true
		}
		g.stops.wait(&g.mu, notDue)
	}
}

// stall holds the vCPUs while too much output is held back, or lets them go on.
func (g *guard) stall(on bool) { g.update(func() { g.stalled = on }) }

// halt holds the vCPUs until the next life: the guest crashed.
func (g *guard) halt() { g.update(func() { g.halted = true }) }

// isHalted tells whether the guest crashed in this life.
func (g *guard) isHalted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.halted
}

// stop ends them.
func (g *guard) stop() { g.update(func() { g.stopped = true }) }

func (g *guard) update(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	g.settle()
}

// settle publishes what may be done now, and throws out of the guest who may not be there. It requires mu.
func (g *guard) settle() {
	if !g.publish() {
		g.kick()
	}
	g.slot.wake()
	g.stops.ring()
}

// publish says what may be done now, and returns whether the guest may run. It requires mu.
func (g *guard) publish() bool {
	g.lifeNow.Store(g.life)
	g.open.Store(g.mayRun() && !g.paused && !g.slot.off)
	return g.open.Load()
}
