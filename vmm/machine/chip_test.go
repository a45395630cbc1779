package machine

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/lapic"
	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
)

// What comes for a vCPU that was captured waits: it is taken if the vCPU stays, and goes after it if it leaves.
func TestACapturedSeatHoldsItsInterrupts(t *testing.T) {
	p := newTestParts(t, 2, linuxtest.SMP(1), &screen{})
	seat, x := p.seats[1], p.all[1]
	first, second := lapic.NewMessage(lapic.INIT, 0), lapic.NewMessage(lapic.SIPI, 9)
	begin := func() []byte {
		t.Helper()
		b, err := seat.Capture()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []lapic.Message{first, second, second} {
			if !x.Deliver(1, m) {
				t.Fatal("an interrupt for a vCPU between two parts was not taken")
			}
		}
		if seat.apic.INIT {
			t.Fatal("it got through")
		}
		return b
	}
	state := begin()
	if got := seat.Gone(); !slices.Equal(got, []lapic.Message{first, second}) {
		t.Fatalf("what goes after it is %v", got)
	}
	if x.Deliver(1, first) {
		t.Fatal("an interrupt for a vCPU that is gone was taken")
	}
	if err := seat.Install(state, 7); err != nil {
		t.Fatal(err)
	}
	seat.Stay()
	apic := seatHeadBytes + binary.Size(lapic.State{}) // the time stamp counter runs on
	if again := begin(); !bytes.Equal(again[:apic], state[:apic]) {
		t.Error("a local APIC that came back is not what it was")
	}
	seat.Stay()
	if !seat.apic.INIT || !seat.apic.SIPI || seat.apic.Start != 9 {
		t.Errorf("what was held is lost: %+v", seat.apic.State)
	}
}

// A state that is none is refused, and the vCPU stays away.
func TestABadSeatIsRefused(t *testing.T) {
	p := newTestParts(t, 2, linuxtest.SMP(1), &screen{})
	state, err := p.seats[1].Capture()
	if err != nil {
		t.Fatal(err)
	}
	p.seats[1].Gone()
	for name, b := range map[string][]byte{
		"empty": nil, "no state": state[:seatHeadBytes], "no vCPU": state[:seatHeadBytes+100], "cut short": state[:len(state)-1],
		"another version": append([]byte{9}, state[1:]...), "another size": append(slices.Clone(state[:4]), append([]byte{1, 2, 3, 4}, state[8:]...)...),
	} {
		if err := p.seats[1].Install(b, 0); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := p.seats[0].Install(state, 0); err == nil {
		t.Error("that of another vCPU: taken")
	}
	if p.all[1].Deliver(ident.VCPU(1), lapic.NewMessage(lapic.NMI, 0)) {
		t.Error("it is here")
	}
}
