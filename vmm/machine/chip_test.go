package machine

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
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
			if !x.Deliver(0, 1, m) {
				t.Fatal("an interrupt for a vCPU between two parts was not taken")
			}
		}
		if seat.apic.INIT {
			t.Fatal("it got through")
		}
		return b
	}
	state := begin()
	if seat.Gone(0); len(p.sent) != 2 {
		t.Fatalf("%d interrupts go after it, want 2", len(p.sent))
	}
	x.Deliver(0, 1, first)
	if len(p.sent) != 3 {
		t.Fatal("an interrupt for a vCPU that is gone was not sent on")
	}
	if err := seat.Install(state, 7); err != nil {
		t.Fatal(err)
	}
	seat.Come(0)
	if seat.IsSettled() || len(p.sent) != 4 {
		t.Fatal("it is settled before the marker has come")
	}
	x.Deliver(0, 1, x.marker())
	apic := seatHeadBytes + binary.Size(lapic.State{}) // the time stamp counter runs on
	if again := begin(); !bytes.Equal(again[:apic], state[:apic]) {
		t.Error("a local APIC that came back is not what it was")
	}
	seat.Stay()
	if !seat.apic.INIT || !seat.apic.SIPI || seat.apic.Start != 9 {
		t.Errorf("what was held is lost: %+v", seat.apic.State)
	}
}

// wanderer is the interrupt controllers of several parts, between which vCPU 0 goes, and what is under way between them.
type wanderer struct {
	random *rand.Rand
	parts  []*Interrupts
	queues [][][]lapic.Message // by sender and receiver
	at     ident.Part          // where the vCPU is
	source ident.Part          // where it came from
	starts []byte              // the last start-up that each part sent
}

func newWanderer(parts int, seed uint64) *wanderer {
	w := &wanderer{random: rand.New(rand.NewPCG(seed, 0)), starts: make([]byte, parts)}
	for i := range parts {
		w.queues = append(w.queues, make([][]lapic.Message, parts))
		var local []ident.VCPU
		if i == 0 {
			local = append(local, 0)
		}
		w.parts = append(w.parts, NewInterrupts(InterruptsConfig{
			VCPUs: 1, Self: ident.Part(i), Passed: func() {}, Wake: func(ident.VCPU) {},
			Forward: func(part ident.Part, _ ident.VCPU, m lapic.Message) { w.queues[i][part] = append(w.queues[i][part], m) },
		}, local))
		w.parts[i].Place([]ident.Part{0})
	}
	return w
}

// arrive lets the first of a queue arrive.
func (w *wanderer) arrive(from, to int) bool {
	q := w.queues[from][to]
	if len(q) == 0 {
		return false
	}
	w.queues[from][to] = q[1:]
	return w.parts[to].Deliver(ident.Part(from), 0, q[0])
}

func (w *wanderer) settle() {
	for again := true; again; {
		again = false
		for from := range w.parts {
			for to := range w.parts {
				again = w.arrive(from, to) || again
			}
		}
	}
}

// step does one thing, chosen at random: an interrupt arrives, a part sends an INIT and a start-up, the vCPU goes on.
func (w *wanderer) step(sender int) {
	seat := func(part ident.Part) *Seat {
		return &Seat{cpu: &kvm.VCPU{}, all: w.parts[part], apic: w.parts[part].chips[0].apic}
	}
	n := len(w.parts)
	switch here := w.parts[w.at].chips[0]; w.random.IntN(4) {
	case 0, 1:
		w.arrive(w.random.IntN(n), w.random.IntN(n))
	case 2:
		w.starts[sender]++
		for _, m := range []lapic.Message{lapic.NewMessage(lapic.INIT, 0), lapic.NewMessage(lapic.SIPI, w.starts[sender])} {
			w.parts[sender].mu.Lock()
			w.parts[sender].deliver(ident.Part(sender), 0, m)
			w.parts[sender].mu.Unlock()
		}
	case 3:
		to := ident.Part(w.random.IntN(n))
		switch {
		case here.place == chipHere && to != w.at: // captured, and in place at the target
			here.move(chipBetween)
			w.parts[to].chips[0].move(chipBetween)
			w.parts[to].chips[0].apic.State = here.apic.State
			w.source, w.at = w.at, to
		case here.place == chipBetween && w.random.IntN(2) == 0:
			seat(w.source).Gone(w.at)
			seat(w.at).Come(w.source)
		case here.place == chipBetween && w.random.IntN(2) == 0:
			seat(w.at).Come(w.source)
			w.arrive(w.random.IntN(n), w.random.IntN(n))
			seat(w.source).Gone(w.at)
		case here.place == chipBetween:
			seat(w.at).Forget()
			w.at = w.source
			seat(w.at).Stay()
		}
	}
}

// A part sends a vCPU one INIT and start-up after the other while the vCPU goes from part to part. None overtakes another: the last start-up is the one that counts.
func TestInterruptsStayInOrder(t *testing.T) {
	for seed := range uint64(3000) {
		w := newWanderer(3+int(seed%3), seed)
		sender := int(seed % uint64(len(w.parts)))
		for range 200 {
			w.step(sender)
		}
		for w.parts[w.at].chips[0].place == chipBetween {
			w.random = rand.New(rand.NewPCG(seed, w.random.Uint64()))
			w.step(sender)
		}
		w.settle()
		chip := w.parts[w.at].chips[0]
		if chip.place != chipHere || !chip.apic.INIT || !chip.apic.SIPI || chip.apic.Start != w.starts[sender] {
			t.Fatalf("seed %d: place %d, INIT %v, start-up %v by %d, want %d", seed, chip.place, chip.apic.INIT, chip.apic.SIPI, chip.apic.Start, w.starts[sender])
		}
	}
}

// A state that is none is refused, and the vCPU stays away.
func TestABadSeatIsRefused(t *testing.T) {
	p := newTestParts(t, 2, linuxtest.SMP(1), &screen{})
	state, err := p.seats[1].Capture()
	if err != nil {
		t.Fatal(err)
	}
	p.seats[1].Gone(0)
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
	if p.all[1].chips[1].place != chipAway {
		t.Error("it is here")
	}
}
