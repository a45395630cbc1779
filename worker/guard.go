package worker

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// bootMicros reads CLOCK_BOOTTIME: the clock that serve and its workers share, which also counts the time that a machine was suspended.
func bootMicros() ident.Micros {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("worker: CLOCK_BOOTTIME: " + err.Error()) // exists on every supported kernel
	}
	return ident.Micros(ts.Sec)*ident.Second + ident.Micros(ts.Nsec/1000)
}

// A guard decides whether this part may act: run guest instructions, answer page requests, release output. It opens when the VM has
// started, closes for good when it ends, and closes for a while when the part is paused or when the server's lease has lapsed.
//
//	closed --start--> open <--lease renewed / resume-- held
//	                  open ---lease lapsed / pause---> held
//	any ---stop---> stopped
//
// A vCPU asks enter before every entry into the guest. A stop signal forces each vCPU out of KVM_RUN, so a process that was stopped and
// continued long after its lease lapsed executes no guest instruction.
type guard struct {
	leaseUntil atomic.Int64 // ident.Micros of CLOCK_BOOTTIME
	open       atomic.Bool  // started, not paused, not stopped

	mu      sync.Mutex
	changed *sync.Cond
	started bool // protected by mu
	paused  bool // protected by mu
	stopped bool // protected by mu
	kick    func()
	onFence func(fenced bool)
	timer   *time.Timer
	fenced  bool // protected by mu
}

// newGuard returns a closed guard. kick must force all vCPUs out of the guest; onFence is told when the lease lapses and when it is back.
func newGuard(kick func(), onFence func(bool)) *guard {
	g := &guard{kick: kick, onFence: onFence}
	g.changed = sync.NewCond(&g.mu)
	g.timer = time.AfterFunc(time.Hour, g.checkLease)
	return g
}

// leased tells whether the server's lease holds at this moment.
func (g *guard) leased() bool { return int64(bootMicros()) < g.leaseUntil.Load() }

// mayAct tells whether the part may answer peers at this moment. A part that has not started yet may: its directory serves others.
func (g *guard) mayAct() bool { return g.leased() }

// enter blocks until the vCPU may enter the guest; it returns false when the VM has ended.
func (g *guard) enter() bool {
	if g.open.Load() && g.leased() {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if g.stopped {
			return false
		}
		if g.started && !g.paused && g.leased() {
			return true
		}
		g.changed.Wait()
	}
}

// renew extends the lease. A renewal that would shorten it is ignored: they can overtake one another.
func (g *guard) renew(until ident.Micros) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if int64(until) <= g.leaseUntil.Load() {
		return
	}
	g.leaseUntil.Store(int64(until))
	g.timer.Reset(time.Duration(until-bootMicros()) * time.Microsecond)
	if g.fenced && g.leased() {
		g.fenced = false
		go g.onFence(false)
	}
	g.changed.Broadcast()
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

// start lets the vCPUs run.
func (g *guard) start() { g.update(func() { g.started = true }) }

// pause holds the vCPUs, or lets them go on.
func (g *guard) pause(on bool) { g.update(func() { g.paused = on }) }

// stop ends them.
func (g *guard) stop() { g.update(func() { g.stopped = true }) }

// ended tells whether stop was called.
func (g *guard) ended() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopped
}

func (g *guard) update(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	g.open.Store(g.started && !g.paused && !g.stopped)
	if !g.open.Load() {
		g.kick()
	}
	g.changed.Broadcast()
}
