package worker

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

func TestGuardHoldsUntilStartedAndLeased(t *testing.T) {
	kicks := make(chan struct{}, 16)
	fences := make(chan bool, 16)
	g := newGuard(func() { kicks <- struct{}{} }, noThreads, func(on bool) { fences <- on })
	entered := make(chan bool, 1)
	go func() { _, ok := g.enter(bootMicros(), 0, new(atomic.Bool), &queue{}); entered <- ok }()

	g.start()
	select {
	case <-entered:
		t.Fatal("entered the guest without a lease")
	case <-time.After(20 * time.Millisecond):
	}
	g.renew(bootMicros() + 50*ident.Millisecond)
	if !<-entered {
		t.Fatal("a started, leased part did not enter")
	}
	if on := <-fences; !on {
		t.Fatal("first told that the fence is gone")
	}
	<-kicks // the lapse throws the vCPUs out
	if g.leased() || g.mayAct() {
		t.Fatal("acts after the lease has lapsed")
	}
	g.renew(bootMicros() + ident.Second)
	if on := <-fences; on {
		t.Fatal("a renewed lease raised the fence again")
	}
	if _, ok := g.enter(bootMicros(), 0, new(atomic.Bool), &queue{}); !ok {
		t.Fatal("did not go on under a renewed lease")
	}
}

func TestGuardIgnoresAnOlderLease(t *testing.T) {
	g := newGuard(func() {}, noThreads, func(bool) {})
	until := bootMicros() + ident.Second
	g.renew(until)
	g.renew(until - ident.Millisecond)
	if got := ident.Micros(g.leaseUntil.Load()); got != until {
		t.Fatalf("lease until %d, want %d", got, until)
	}
}

func TestGuardStopEndsWaiters(t *testing.T) {
	g := newGuard(func() {}, noThreads, func(bool) {})
	entered := make(chan bool, 1)
	go func() { _, ok := g.enter(bootMicros(), 0, new(atomic.Bool), &queue{}); entered <- ok }()
	g.stop()
	if <-entered {
		t.Fatal("entered a stopped part")
	}
}

func TestGuardPauseHolds(t *testing.T) {
	g := newGuard(func() {}, noThreads, func(bool) {})
	g.renew(bootMicros() + ident.Second*60)
	g.start()
	g.pause(true)
	entered := make(chan bool, 1)
	go func() { _, ok := g.enter(bootMicros(), 1, new(atomic.Bool), &queue{}); entered <- ok }()
	select {
	case <-entered:
		t.Fatal("entered while paused")
	case <-time.After(10 * time.Millisecond):
	}
	g.pause(false)
	if !<-entered {
		t.Fatal("did not go on after the pause")
	}
}

func TestGuardHoldWaitsForEveryThread(t *testing.T) {
	g := newGuard(func() {}, noThreads, func(bool) {})
	g.renew(bootMicros() + 60*ident.Second)
	g.start()
	g.join()
	g.join()
	if g.hold(5 * time.Millisecond) {
		t.Fatal("held while two threads may be in the guest")
	}
	lives := make(chan uint64, 2)
	ready := make(chan struct{})
	for range 2 {
		go func() {
			<-ready
			life, _ := g.enter(bootMicros(), 1, new(atomic.Bool), &queue{})
			lives <- life
		}()
	}
	g.pause(true)
	close(ready)
	if !g.hold(time.Minute) {
		t.Fatal("parked threads do not count as held")
	}
	g.restart()
	g.pause(false)
	g.release()
	if a, b := <-lives, <-lives; a != 2 || b != 2 {
		t.Fatalf("entered lives %d and %d, want 2", a, b)
	}
}

func noThreads() []int { return nil }
