package worker

import (
	"slices"
	"testing"
)

// wire notes the frames that were sent.
type testWire struct{ sent []string }

func (w *testWire) Send(frame []byte) { w.sent = append(w.sent, string(frame)) }
func (w *testWire) Close() error      { return nil }

// What a protected machine sends leaves in its order once the checkpoint after it is safe, not before, and at once when nothing is promised any more.
func TestFramesOfAProtectedMachineWaitForTheCheckpoint(t *testing.T) {
	h, _, _ := testHome(t, 1, nil)
	out := &testWire{}
	card := cardLink{out, h}
	want := func(what string, frames ...string) {
		t.Helper()
		if !slices.Equal(out.sent, frames) {
			t.Fatalf("%s: sent %q, want %q", what, out.sent, frames)
		}
	}
	card.Send([]byte("a"))
	want("unprotected", "a")
	h.holdFrames(true)
	if err := h.hold(true); err != nil {
		t.Fatal(err)
	}
	room := []byte("b")
	card.Send(room)
	room[0] = 'x' // a link does not keep what it is given
	cut := h.cutHere(1)
	card.Send([]byte("c"))
	want("protected", "a")
	for range 2 { // a cut that is told twice lets nothing more out
		if err := h.committed(cut); err != nil {
			t.Fatal(err)
		}
		want("the first checkpoint is safe", "a", "b")
	}
	if err := h.hold(false); err != nil {
		t.Fatal(err)
	}
	want("unprotected again", "a", "b", "c")
	card.Send([]byte("d"))
	want("unprotected again", "a", "b", "c", "d")

	h.holdFrames(true)
	for range heldFramesMost + 10 {
		card.Send([]byte("e"))
	}
	h.holdFrames(false)
	if len(out.sent) != 4+heldFramesMost {
		t.Errorf("%d frames left, want as many as a full link keeps", len(out.sent)-4)
	}
	h.holdFrames(true)
	card.Send([]byte("f"))
	h.close()
	h.holdFrames(false)
	if out.sent[len(out.sent)-1] == "f" {
		t.Error("a home that was given up sent what it held")
	}
}

// A protected machine's end is output as any other.
func TestTheEndOfAProtectedMachineWaitsForTheCheckpoint(t *testing.T) {
	ends := 0
	h, _, _ := testHome(t, 1, func(uint32) { ends++ })
	if err := h.hold(true); err != nil {
		t.Fatal(err)
	}
	before := h.cutHere(1)
	h.switchOff()
	h.switchOff()
	if err := h.committed(before); err != nil || ends != 0 || !h.off.Load() {
		t.Fatalf("error %v, %d ends before the checkpoint after it", err, ends)
	}
	select {
	case <-h.urgent:
	default:
		t.Error("the checkpoint is not urgent")
	}
	if err := h.committed(h.cutHere(2)); err != nil || ends != 1 {
		t.Fatalf("error %v, %d ends", err, ends)
	}
}
