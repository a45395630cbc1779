package worker

import (
	"errors"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/lapic"
	"github.com/cellvisor/cellvisor/vmm/machine"
)

// notesWorker is a worker with vCPU 1 of two, and what woke it.
func notesWorker() (*Worker, *int) {
	w, woken := &Worker{}, new(int)
	s := &spanned{notes: newNotes(w)}
	s.interrupts = machine.NewInterrupts(machine.InterruptsConfig{
		VCPUs: 2, Self: 1, Forward: func(ident.Part, ident.VCPU, lapic.Message) {}, Passed: func() {}, Renamed: func(ident.VCPU, machine.NumberedName) {}, Wake: func(ident.VCPU) { *woken++ },
	}, []ident.VCPU{1})
	w.linux = &linuxGuest{span: s}
	return w, woken
}

func TestNoteRoundTrip(t *testing.T) {
	for _, n := range []note{
		{to: 63, message: lapic.NewMessage(lapic.SIPI, 0x9a)},
		{to: 2, renamed: true, name: machine.NumberedName{Name: lapic.Name{ID: 2, LDR: 0x21000000, DFR: 0xffffffff, Mode: lapic.XAPIC}, Number: 0xfffe}},
		{to: 3, renamed: true, name: machine.NumberedName{Name: lapic.Name{ID: 3, Mode: lapic.Off}}},
	} {
		b := n.encode(nil)
		if got := decodeNote(b); len(b) != noteBytes || got != n {
			t.Errorf("%+v came back from %d bytes as %+v", n, len(b), got)
		}
	}
}

// What is sent again is taken once; what would leave a gap is refused.
func TestNotesAreTakenOnceInOrder(t *testing.T) {
	w, woken := notesWorker()
	nmi := note{to: 1, message: lapic.NewMessage(lapic.NMI, 0)}.encode(nil)
	batch := func(n int) (b []byte) {
		for range n {
			b = append(b, nmi...)
		}
		return b
	}
	for _, step := range []struct {
		first uint64
		n     int
		woken int
		bad   bool
	}{{1, 2, 2, false}, {1, 2, 2, false}, {2, 2, 3, false}, {5, 1, 3, true}, {0, 1, 3, true}, {4, 1, 4, false}} {
		err := w.linux.span.notes.take(0, 1, step.first, batch(step.n))
		if errors.Is(err, errBadRequest) != step.bad || err != nil != step.bad || *woken != step.woken {
			t.Fatalf("%d from number %d: %v, woken %d times, want %d", step.n, step.first, err, *woken, step.woken)
		}
	}
	if err := w.linux.span.notes.take(2, 1, 1, batch(1)); err != nil || *woken != 5 {
		t.Errorf("another part counts for itself: %v, %d", err, *woken)
	}
	if err := w.linux.span.notes.take(0, 1, 5, nmi[:3]); !errors.Is(err, errBadRequest) {
		t.Errorf("a piece of a note: %v", err)
	}
	if err := w.linux.span.notes.take(0, 1, 5, note{to: 0}.encode(nil)); !errors.Is(err, errBadRequest) {
		t.Errorf("an interrupt for another part's vCPU: %v", err)
	}
	w.linux.span.notes.reset(7)
	if err := w.linux.span.notes.take(0, 6, 5, batch(1)); !errors.Is(err, errNewLife) {
		t.Errorf("the sender has not begun the new boot yet: %v", err)
	}
	if err := w.linux.span.notes.take(0, 7, 1, batch(1)); err != nil {
		t.Errorf("a new boot counts from 1: %v", err)
	}
}
