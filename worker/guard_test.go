package worker

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

func TestGuardHoldsUntilStartedAndLeased(t *testing.T) {
	kicks := make(chan struct{}, 16)
	fences := make(chan bool, 16)
	g := newGuard(func() { kicks <- struct{}{} }, func(on bool) { fences <- on })
	entered := make(chan bool, 1)
	go func() { entered <- g.enter() }()

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
	if !g.enter() {
		t.Fatal("did not go on under a renewed lease")
	}
}

func TestGuardIgnoresAnOlderLease(t *testing.T) {
	g := newGuard(func() {}, func(bool) {})
	until := bootMicros() + ident.Second
	g.renew(until)
	g.renew(until - ident.Millisecond)
	if got := ident.Micros(g.leaseUntil.Load()); got != until {
		t.Fatalf("lease until %d, want %d", got, until)
	}
}

func TestGuardStopEndsWaiters(t *testing.T) {
	g := newGuard(func() {}, func(bool) {})
	entered := make(chan bool, 1)
	go func() { entered <- g.enter() }()
	g.stop()
	if <-entered {
		t.Fatal("entered a stopped part")
	}
}

func TestGuardPauseHolds(t *testing.T) {
	g := newGuard(func() {}, func(bool) {})
	g.renew(bootMicros() + ident.Second*60)
	g.start()
	g.pause(true)
	entered := make(chan bool, 1)
	go func() { entered <- g.enter() }()
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
