package lapic

import "math/bits"

// Delivery is a delivery mode.
type Delivery uint8

// The delivery modes.
const (
	Fixed          Delivery = 0
	LowestPriority Delivery = 1
	SMI            Delivery = 2
	NMI            Delivery = 4
	INIT           Delivery = 5
	SIPI           Delivery = 6
	ExtINT         Delivery = 7
)

// Message is an interrupt for one vCPU, as the data word of a message-signalled interrupt: vector, delivery mode, trigger mode.
type Message uint16

const messageLevel = 1 << 15

// NewMessage makes a message.
func NewMessage(d Delivery, vector byte) Message { return Message(d&7)<<8 | Message(vector) }

// Delivery is the message's delivery mode.
func (m Message) Delivery() Delivery { return Delivery(m >> 8 & 7) }

// Vector is the message's vector.
func (m Message) Vector() byte { return byte(m) }

// highest returns the set's highest vector.
func (s *Vectors) highest() (byte, bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] != 0 {
			return byte(32*i + 31 - bits.LeadingZeros32(s[i])), true
		}
	}
	return 0, false
}

// Accept takes an interrupt. It reports whether the vCPU may have something to look at.
func (a *APIC) Accept(m Message) bool {
	switch m.Delivery() {
	case Fixed, LowestPriority:
		return a.acceptFixed(m.Vector(), m&messageLevel != 0)
	case NMI:
		a.NMI = true
		return true
	case INIT:
		a.INIT, a.SIPI = true, false
		return true
	case SIPI:
		// Only a processor that waits for it, or will before it does anything else, heeds a start-up interrupt.
		if !a.Waiting && !a.INIT {
			return false
		}
		a.SIPI, a.Start = true, m.Vector()
		return true
	}
	return false // no system management mode, no external controller
}

func (a *APIC) acceptFixed(vector byte, level bool) bool {
	if !a.enabled() {
		return false
	}
	if vector < firstVector {
		a.raiseError(errorReceiveVector)
		return true
	}
	a.IRR.add(vector)
	if level {
		a.TMR.add(vector)
	} else {
		a.TMR.remove(vector)
	}
	return true
}

// raiseError notes an error and interrupts if the guest wants to know.
func (a *APIC) raiseError(bit uint32) {
	fresh := a.Errors&bit == 0
	a.Errors |= bit
	entry := a.LVT[lvtError]
	if fresh && entry&lvtMasked == 0 && byte(entry) >= firstVector && a.enabled() { // an illegal vector of its own would never end
		a.IRR.add(byte(entry))
		a.TMR.remove(byte(entry))
	}
}

// PPR is the processor priority: what is in service or the task priority, whichever is higher (SDM "Task and Processor Priorities").
func (a *APIC) PPR() uint32 {
	v, _ := a.ISR.highest()
	if serving := uint32(v) & 0xf0; a.TPR&0xf0 < serving {
		return serving
	}
	return a.TPR
}

// Pending returns the vector that the vCPU would be interrupted by if its interrupts are on.
func (a *APIC) Pending() (byte, bool) {
	v, ok := a.IRR.highest()
	if !ok || !a.enabled() || uint32(v)&0xf0 <= a.PPR()&0xf0 {
		return 0, false
	}
	return v, true
}

// Ack puts the pending interrupt in service and returns its vector.
func (a *APIC) Ack() (byte, bool) {
	v, ok := a.Pending()
	if ok {
		a.IRR.remove(v)
		a.ISR.add(v)
	}
	return v, ok
}

// end is a write to the EOI register.
func (a *APIC) end() {
	if v, ok := a.ISR.highest(); ok {
		a.ISR.remove(v)
	}
}

// TakeNMI reports whether a non-maskable interrupt waits, and takes it. A vCPU that waits to be started takes none.
func (a *APIC) TakeNMI() bool {
	took := a.NMI && !a.Waiting && !a.INIT
	if took {
		a.NMI = false
	}
	return took
}

// TakeINIT reports whether an INIT waits, and takes it: the APIC is reset but for its ID and mode, and the vCPU waits for its start, unless it is
// the boot vCPU, which begins anew. The caller resets the vCPU.
func (a *APIC) TakeINIT() bool {
	if !a.INIT {
		return false
	}
	a.INIT, a.NMI, a.Waiting = false, false, !a.IsBoot()
	a.initRegisters()
	return true
}

// TakeStart returns the vector of the start-up interrupt that the vCPU waited for, and takes it: the vCPU runs from page vector on.
func (a *APIC) TakeStart() (vector byte, ok bool) {
	if !a.Waiting || a.INIT || !a.SIPI {
		return 0, false
	}
	a.SIPI, a.Waiting = false, false
	return a.Start, true
}

// Wakes tells whether a halted vCPU goes on; interruptible is whether its interrupts are on.
func (a *APIC) Wakes(interruptible bool) bool {
	_, pending := a.Pending()
	return a.INIT || a.NMI || pending && interruptible
}
