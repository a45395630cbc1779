package machine

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/lapic"
)

// chip is one local APIC, with what fires its timer. Its vCPU may go to another part:
//
//	       Capture             Gone: what was held goes after it
//	here ──────────► between ─────────────────────────────────► away
//	  ▲                │  ▲                                       │
//	  └──────Stay──────┘  └────────────────Install────────────────┘
//	   what was held is taken
type chip struct {
	apic  *lapic.APIC
	timer *time.Timer
	place chipPlace
	held  []lapic.Message // came while it was between; each once, as a local APIC has room for one of a kind
}

type chipPlace uint8

const (
	chipAway chipPlace = iota
	chipHere
	chipBetween
)

// accept takes an interrupt, and reports whether the vCPU may have something to look at.
func (c *chip) accept(m lapic.Message) bool {
	if c.place == chipHere {
		return c.apic.Accept(m)
	}
	if !slices.Contains(c.held, m) {
		c.held = append(c.held, m)
	}
	return false
}

// rest stops it.
func (c *chip) rest(place chipPlace) {
	c.timer.Stop()
	c.place, c.held = place, nil
}

// seatVersion is of the encoding of a captured seat:
//
//	version 1 byte, halted 1, number of its name 2, length of the local APIC's state 4, that state, the encoded kvm.VCPUState
//
// The state's times are ages.
const seatVersion = 1

const seatHeadBytes = 8

// Capture encodes the vCPU, which is not in the guest, and has its local APIC hold what comes from now on. It runs on the vCPU's thread.
func (s *Seat) Capture() ([]byte, error) {
	state, err := s.cpu.State()
	if err != nil {
		return nil, err
	}
	if s.ran {
		s.look()
	}
	cpu, err := state.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("vCPU %d: %w", s.id(), err)
	}
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	ch := x.chips[s.id()]
	ch.rest(chipBetween)
	apic := ch.apic.State
	if apic.Timer.Running {
		apic.Timer.Since = x.now() - apic.Timer.Since
	}
	b := []byte{seatVersion, 0}
	if s.halted {
		b[1] = 1
	}
	b = binary.LittleEndian.AppendUint16(b, x.changes[s.id()])
	b = binary.LittleEndian.AppendUint32(b, uint32(binary.Size(apic)))
	if b, err = binary.Append(b, binary.LittleEndian, apic); err != nil {
		return nil, fmt.Errorf("vCPU %d: %w", s.id(), err)
	}
	return append(b, cpu...), nil
}

// Stay ends the state between: the vCPU goes on here. Whatever came meanwhile is taken.
func (s *Seat) Stay() {
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	ch := x.chips[s.id()]
	if ch.place != chipBetween {
		return
	}
	held := ch.held
	ch.rest(chipHere)
	for _, m := range held {
		ch.accept(m)
	}
	x.arm(ch)
}

// Gone ends the state between: the vCPU is another part's, to which the caller forwards what came meanwhile.
func (s *Seat) Gone() []lapic.Message {
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	ch := x.chips[s.id()]
	held := ch.held
	ch.rest(chipAway)
	return held
}

// Install makes the vCPU, which is away, what another part captured that long ago. Stay or Gone decides whether it goes on here. The time stamp counter is left
// to the caller. It fails if the state is none, and then the vCPU stays away.
func (s *Seat) Install(b []byte, age ident.Micros) error {
	if len(b) < seatHeadBytes || b[0] != seatVersion {
		return fmt.Errorf("state of vCPU %d, of %d bytes, is not of version %d", s.id(), len(b), seatVersion)
	}
	var apic lapic.State
	size := binary.Size(apic)
	if binary.LittleEndian.Uint32(b[4:]) != uint32(size) || len(b) < seatHeadBytes+size {
		return fmt.Errorf("state of vCPU %d has a local APIC of another size than %d", s.id(), size)
	}
	if _, err := binary.Decode(b[seatHeadBytes:], binary.LittleEndian, &apic); err != nil {
		return fmt.Errorf("local APIC of vCPU %d: %w", s.id(), err)
	}
	if apic.ID != uint32(s.id()) {
		return fmt.Errorf("local APIC of vCPU %d is that of %d", s.id(), apic.ID)
	}
	var state kvm.VCPUState
	if err := state.UnmarshalBinary(b[seatHeadBytes+size:]); err != nil {
		return err
	}
	state.DropTSC()
	if err := s.cpu.SetState(&state); err != nil {
		return err
	}
	s.cpu.SetFlags(state.Regs.RFLAGS)
	s.halted, s.ran = b[1] == 1, false
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	ch := x.chips[s.id()]
	if apic.Timer.Running {
		apic.Timer.Since = x.now() - apic.Timer.Since - lapic.Nanos(age)*1000
	}
	ch.apic.State = apic
	ch.rest(chipBetween)
	if number := binary.LittleEndian.Uint16(b[2:]); number == x.changes[s.id()] || isLater(number, x.changes[s.id()]) {
		x.names[s.id()], x.changes[s.id()] = ch.apic.Name(), number
	}
	return nil
}
