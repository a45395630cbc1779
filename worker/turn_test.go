package worker

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/priority"
)

// enters runs enter on a thread of its own and says when it has returned.
func enters(g *guard) <-chan struct{} {
	done := make(chan struct{})
	g.join()
	go func() {
		defer close(done)
		defer g.leave()
		g.enter(bootMicros(), 0, new(atomic.Bool), &queue{})
	}()
	return done
}

func openGuard() *guard {
	g := newGuard(func() {}, noThreads, func(bool) {})
	g.renew(bootMicros() + 600*ident.Second)
	g.start()
	return g
}

func setTurn(g *guard, on bool, kick func()) (first, last ident.Micros) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.setTurn(on, kick)
}

func soon(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatal(what)
	}
}

// A vCPU waits for its turn and takes it; one that idles does not wait; the time of the turn is known.
func TestTurn(t *testing.T) {
	g := openGuard()
	setTurn(g, false, func() {})
	waiting := enters(g)
	if !g.hold(time.Minute) { // it returns when the thread has parked
		t.Fatal("a vCPU that waits for its turn does not count as stopped")
	}
	g.release()
	select {
	case <-waiting:
		t.Fatal("a vCPU runs out of turn")
	default:
	}
	if _, ok := g.enterIdle(0, new(atomic.Bool)); !ok {
		t.Fatal("an idle vCPU has to wait for its turn")
	}
	setTurn(g, true, nil)
	soon(t, waiting, "a vCPU does not take its turn")
	if first, last := setTurn(g, false, func() {}); first == 0 || last < first {
		t.Errorf("the turn was taken from %d to %d", first, last)
	}
}

// The end of the VM ends the wait for a turn.
func TestTurnEnds(t *testing.T) {
	g := openGuard()
	setTurn(g, false, func() {})
	waiting := enters(g)
	g.stop()
	soon(t, waiting, "a vCPU waits for its turn in a VM that has ended")
}

// While the part is held for a checkpoint, a turn that begins lets nobody run.
func TestHoldOutlivesTurn(t *testing.T) {
	g := openGuard()
	setTurn(g, false, func() {})
	waiting := enters(g)
	if !g.hold(time.Minute) {
		t.Fatal("cannot hold")
	}
	setTurn(g, true, nil)
	if !g.hold(time.Minute) {
		t.Fatal("a turn has let a vCPU out of a hold")
	}
	g.release()
	g.release()
	soon(t, waiting, "a vCPU does not go on after a hold")
}

// A vCPU of a gang on several servers takes its turn ahead of ordinary threads, where it may, and is an ordinary one when it has left the guest. One that does
// not go to its guest, or is alone, has no head start.
func TestHeadStart(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v := &vcpu{}
	if v.queue.join(); v.queue.raised == 0 {
		t.Skip("this process may not make its threads real-time ones (RLIMIT_RTPRIO, CAP_SYS_NICE)")
	}
	v.queue.leave()
	for _, c := range []struct {
		what               string
		together, ends, on bool
	}{{"on several servers", true, false, true}, {"on one server", false, false, false}, {"the VM has ended", true, true, false}} {
		g := openGuard()
		setTurn(g, false, func() {})
		g.mu.Lock()
		g.slot.together = c.together
		g.slot.carryOut = func(ident.Micros) {
			g.slot.due.Store(notDue)
			g.setTurn(true, nil)
			g.stopped = c.ends
		}
		due := bootMicros() + 2*watchFrom
		g.slot.due.Store(int64(due))
		g.mu.Unlock()
		if _, ok := g.enter(bootMicros(), g.lifeNow.Load(), new(atomic.Bool), &v.queue); ok == c.ends {
			t.Errorf("%s: entered %v", c.what, ok)
		}
		if now := bootMicros(); now < due {
			t.Errorf("%s: the turn began %d us too early", c.what, due-now)
		}
		if got := priority.IsFirst(); got != c.on || got != (v.queue.raised != 0) {
			t.Errorf("%s: ahead of ordinary threads: %v", c.what, got)
		}
		if v.left(time.Now()); priority.IsFirst() {
			t.Errorf("%s: still ahead when it has left the guest", c.what)
		}
	}
}
