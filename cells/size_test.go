package cells

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// A snapshot fits into a message, whatever events and requests hold: the oldest of these go.
func TestSnapshotFitsAMessage(t *testing.T) {
	f := newTestFSM()
	for seq := range uint64(MaxEvents) {
		f.events = append(f.events, Event{Seq: seq + 1, Text: strings.Repeat("x", 3000)})
	}
	b, err := f.Snapshot()
	if err != nil || len(b) > MaxSnapshotBytes || len(b) < MaxSnapshotBytes/4 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	again := newTestFSM()
	if err := again.Restore(b); err != nil {
		t.Fatal(err)
	}
	if n := len(again.events); n == 0 || again.events[n-1].Seq != MaxEvents {
		t.Errorf("%d events are kept, and not the last", n)
	}
}

// A VM is taken in only while the registry leaves room in a snapshot.
func TestARegistryThatIsTooLargeTakesNoVM(t *testing.T) {
	f := newTestFSM()
	for i := range MaxVMs - 1 {
		if fault := f.fits(&VMSpec{Args: strings.Repeat("x", MaxArgBytes)}); fault != nil {
			if fault.Code != CodeNoCapacity || i < 200 {
				t.Fatalf("VM %d: %v", i, fault)
			}
			b, err := f.Snapshot()
			if err != nil || len(b) > MaxSnapshotBytes {
				t.Errorf("%d VMs: a snapshot of %d bytes, %v", i, len(b), err)
			}
			return
		}
		reason := 1000
		if i >= 200 {
			reason = 1 << 20
		}
		f.state.VMs = append(f.state.VMs, VM{ID: ident.VMID(i + 1), Reason: strings.Repeat("y", reason), Spec: VMSpec{Args: strings.Repeat("x", MaxArgBytes)}})
	}
	t.Error("the registry took as many as there were")
}
