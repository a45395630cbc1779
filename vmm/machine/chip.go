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
//	       Capture            Gone: what was held goes after it
//	here ──────────► between ────────────────────────────────► away
//	 ▲ ▲               │  ▲                                      │
//	 │ └─────Stay──────┘  └───────────────Install────────────────┘
//	 │                 │ Come
//	 └───the marker────┴──► settling: it runs, and takes what comes from where it was before
type chip struct {
	apic   *lapic.APIC
	timer  *time.Timer
	place  chipPlace
	source ident.Part // of one that settles: where it was before
	held   []heldMessage
}

type chipPlace uint8

const (
	chipAway chipPlace = iota
	chipBetween
	chipSettling
	chipHere
)

// heldMessage is an interrupt that waits.
type heldMessage struct {
	from    ident.Part
	message lapic.Message
}

// runs tells whether the vCPU can run here.
func (c *chip) runs() bool { return c.place >= chipSettling }

// take takes an interrupt, or has it wait, and reports whether the vCPU may have something to look at.
func (c *chip) take(from ident.Part, m lapic.Message) bool {
	if c.place == chipHere || c.place == chipSettling && from == c.source {
		return m&isMarker == 0 && c.apic.Accept(m)
	}
	// A local APIC has room for one interrupt of a kind, and an INIT undoes what was to start the vCPU before. So this stays small, whatever the guest does.
	c.held = slices.DeleteFunc(c.held, func(h heldMessage) bool {
		return h.from == from && (h.message == m || starts(m) && starts(h.message) && (m.Delivery() == lapic.INIT || h.message.Delivery() == lapic.SIPI))
	})
	c.held = append(c.held, heldMessage{from, m})
	return false
}

func starts(m lapic.Message) bool {
	return m&isMarker == 0 && (m.Delivery() == lapic.INIT || m.Delivery() == lapic.SIPI)
}

// move changes its place, and returns what was held.
func (c *chip) move(place chipPlace) []heldMessage {
	held := c.held
	c.timer.Stop()
	c.place, c.held = place, nil
	return held
}

// takeHeld takes what was held, or has it wait on.
func (c *chip) takeHeld(held []heldMessage) (wake bool) {
	for _, h := range held {
		wake = c.take(h.from, h.message) || wake
	}
	return wake
}

// marker is what this part sends after a vCPU that has come here, the way that interrupts for it took from here before.
func (x *Interrupts) marker() lapic.Message { return isMarker | lapic.Message(x.config.Self) }

const isMarker lapic.Message = 1 << 14

// settled ends that: all that this part sent the long way has come. It requires mu.
func (x *Interrupts) settled(id ident.VCPU) (wake bool) {
	ch := x.chips[id]
	x.at[id] = x.config.Self
	wake = ch.takeHeld(ch.move(chipHere))
	x.arm(ch)
	return wake
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
	ch.move(chipBetween)
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

// IsSettled tells whether the vCPU may be captured: it is here, and all that was sent after it before has come.
func (s *Seat) IsSettled() bool {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return s.all.chips[s.id()].place == chipHere
}

// Stay ends the state between: the vCPU goes on where it was captured, and takes whatever came meanwhile.
func (s *Seat) Stay() {
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	if ch := x.chips[s.id()]; ch.place == chipBetween {
		ch.takeHeld(ch.move(chipHere))
		x.arm(ch)
	}
}

// Come ends the state between: the vCPU goes on here, where it came from the source.
func (s *Seat) Come(source ident.Part) {
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	ch := x.chips[s.id()]
	held := ch.move(chipSettling)
	ch.source = source
	ch.takeHeld(held)
	x.arm(ch)
	x.config.Forward(x.at[s.id()], s.id(), x.marker())
}

// Gone ends the state between: the vCPU is at another part, to which goes what came for it meanwhile, and will come.
func (s *Seat) Gone(to ident.Part) {
	x := s.all
	x.mu.Lock()
	defer x.mu.Unlock()
	x.at[s.id()] = to
	x.away(s.id())
}

// Forget ends the state between: the vCPU does not come after all.
func (s *Seat) Forget() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.all.away(s.id())
}

// away requires mu.
func (x *Interrupts) away(id ident.VCPU) {
	for _, h := range x.chips[id].move(chipAway) {
		x.config.Forward(x.at[id], id, h.message)
	}
}

// Install makes the vCPU, which is away, what another part captured that long ago. Come or Forget decides whether it goes on here. The time stamp counter is left
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
	ch.move(chipBetween)
	if number := binary.LittleEndian.Uint16(b[2:]); number == x.changes[s.id()] || isLater(number, x.changes[s.id()]) {
		x.names[s.id()], x.changes[s.id()] = ch.apic.Name(), number
	}
	return nil
}
