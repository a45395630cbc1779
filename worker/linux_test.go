package worker

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

func TestLinuxNeedsOnePart(t *testing.T) {
	w := &Worker{spec: wire.WorkerSpec{VCPUs: 2, LocalVCPUs: []ident.VCPU{0}, Linux: &wire.WorkerLinux{}}}
	if !w.isLinux() {
		t.Fatal("a VM with a kernel is no Linux machine")
	}
	if err := w.setUpLinux(nil, nil); err == nil {
		t.Error("no error for a Linux guest over several servers")
	}
}

func TestResetPace(t *testing.T) {
	var p resetPace
	now := time.Unix(1000, 0)
	if !p.next(now) {
		t.Fatal("the first reset ends the machine")
	}
	for range 20 { // a machine that runs a while between resets may do so for ever
		if now = now.Add(quickReset); !p.next(now) {
			t.Fatal("a machine that starts is given up")
		}
	}
	n := 0
	for p.next(now) {
		now = now.Add(time.Millisecond)
		n++
	}
	if n != quickResets-1 {
		t.Errorf("given up after %d quick resets, want %d", n, quickResets-1)
	}
}
