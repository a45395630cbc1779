package worker

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// enters runs enter on a thread of its own and says when it has returned.
func enters(g *guard) <-chan struct{} {
	done := make(chan struct{})
	g.join()
	go func() {
		defer close(done)
		defer g.leave()
		g.enter(0, new(atomic.Bool))
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
