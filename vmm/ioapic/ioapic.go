// Package ioapic is the machine's one I/O APIC: 24 interrupt lines, each of which becomes a message to local APICs. It is a device like any
// other, outside KVM, because a VM whose vCPUs run on several servers has several KVM virtual machines but must have one I/O APIC.
//
// Lines are meant to be edge-triggered, which is what the machine's tables announce; the messages of a line that a guest sets to level mode
// are sent once for each rise, as there is no end-of-interrupt message.
package ioapic

import "sync"

// Pins is the number of lines.
const Pins = 24

// Size is the bytes of the register page that are decoded.
const Size = 0x1000

const (
	regSelect = 0x00
	regWindow = 0x10

	indexID          = 0x00
	indexVersion     = 0x01
	indexArbitration = 0x02
	indexTable       = 0x10

	version = 0x11 | (Pins-1)<<16

	maskBit      = 1 << 16
	readOnlyBits = 1<<12 | 1<<14 // delivery status, remote IRR
	levelBit     = 1 << 15
	logicalBit   = 1 << 11

	messageBase = 0xfee00000
)

// Signal sends a message-signalled interrupt.
type Signal func(addr uint64, data uint32)

// IOAPIC is the device. Its methods may be called from any thread.
type IOAPIC struct {
	mu     sync.Mutex // protects everything below; signal is called without it
	signal Signal
	sel    byte
	id     uint32
	table  [Pins]uint64
	high   [Pins]bool
}

// New makes an I/O APIC with all lines masked.
func New(signal Signal) *IOAPIC {
	a := &IOAPIC{signal: signal}
	a.Reset()
	return a
}

// Reset masks all lines.
func (a *IOAPIC) Reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sel, a.id = 0, 0
	for i := range a.table {
		a.table[i] = maskBit
	}
}

// SetLine drives a line. A rising edge is one interrupt.
func (a *IOAPIC) SetLine(pin int, high bool) {
	if pin < 0 || pin >= Pins {
		return
	}
	a.mu.Lock()
	rose := high && !a.high[pin]
	a.high[pin] = high
	entry := a.table[pin]
	a.mu.Unlock()
	if rose && entry&maskBit == 0 {
		a.send(entry)
	}
}

func (a *IOAPIC) send(entry uint64) {
	addr := uint64(messageBase) | entry>>56<<12
	if entry&logicalBit != 0 {
		addr |= 1 << 2
	}
	a.signal(addr, uint32(entry&0x7ff)|uint32(entry&levelBit))
}

// Read answers a 32-bit read of the register page.
func (a *IOAPIC) Read(offset uint64) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch offset {
	case regSelect:
		return uint32(a.sel)
	case regWindow:
	default:
		return 0
	}
	switch {
	case a.sel == indexID || a.sel == indexArbitration:
		return a.id
	case a.sel == indexVersion:
		return version
	case a.sel >= indexTable && a.sel < indexTable+2*Pins:
		return uint32(a.table[(a.sel-indexTable)/2] >> (32 * (a.sel & 1)))
	}
	return 0
}

// Write carries out a 32-bit write to the register page.
func (a *IOAPIC) Write(offset uint64, v uint32) {
	a.mu.Lock()
	var due uint64
	switch offset {
	case regSelect:
		a.sel = byte(v)
	case regWindow:
		due = a.writeWindow(v)
	}
	a.mu.Unlock()
	if due != 0 {
		a.send(due)
	}
}

// writeWindow requires mu. It returns the entry whose interrupt became due: a line that is high when it is unmasked has an edge that nobody saw.
func (a *IOAPIC) writeWindow(v uint32) uint64 {
	switch {
	case a.sel == indexID:
		a.id = v & 0x0f000000
	case a.sel >= indexTable && a.sel < indexTable+2*Pins:
		pin := (a.sel - indexTable) / 2
		old, shift := a.table[pin], 32*(a.sel&1)
		next := old&^(0xffffffff<<shift) | uint64(v)<<shift
		next = next&^readOnlyBits | old&readOnlyBits
		a.table[pin] = next
		if old&maskBit != 0 && next&maskBit == 0 && a.high[pin] {
			return next
		}
	}
	return 0
}

// State is what the I/O APIC carries when its VM moves.
type State struct {
	Select byte
	ID     uint32
	Table  [Pins]uint64
	High   [Pins]bool
}

// State captures the I/O APIC.
func (a *IOAPIC) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return State{a.sel, a.id, a.table, a.high}
}

// SetState makes the I/O APIC what the captured one was, without sending anything.
func (a *IOAPIC) SetState(s State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sel, a.id, a.table, a.high = s.Select, s.ID, s.Table, s.High
}
