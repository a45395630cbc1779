package worker

import (
	"testing"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/wire"
)

// A part that is held for a checkpoint when the protection changes goes on at once: the home that held it asks no more. So does one that is asked to hold
// by a message that was overtaken by the change.
func TestAChangeOfProtectionLetsGo(t *testing.T) {
	w := &Worker{log: zerolog.Nop(), plane: &plane{core: mem.New(mem.Config{Pages: 16})}}
	w.guard = newGuard(func() {}, noThreads, func(bool) {})
	w.replica = &replicas{w: w, change: make(chan struct{})}
	w.replica.adopt(wire.WorkerProtect{Seq: 1})
	running := func() bool { return w.cutter.held == 0 && w.guard.held == 0 }
	if !w.holdUnder(1, 7, 0, 0) || running() {
		t.Fatal("not held under the protection that holds")
	}
	w.replica.adopt(wire.WorkerProtect{Seq: 2})
	if w.thaw(); !running() {
		t.Fatal("held after the protection has changed")
	}
	if w.holdUnder(1, 8, 0, 0) || !running() {
		t.Error("held by the home of a protection that is over")
	}
	if w.freeze(1, 9, 0, 0) || !running() {
		t.Error("frozen by the home of a protection that is over")
	}
	if !w.freeze(2, 10, 0, ident.Epoch(0)) || w.release(9) || running() {
		t.Error("not frozen by the home of the protection that holds")
	}
	if w.expire(10); running() {
		t.Error("time ended a switchover")
	}
	if w.thaw(); !running() {
		t.Error("frozen after the protection has changed")
	}
}
