package machine

import (
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/lapic"
)

// InterruptsConfig is what the interrupt controllers of one part of a machine over several parts are made of.
type InterruptsConfig struct {
	VCPUs int
	Self  ident.Part
	// Forward sends an interrupt for a vCPU to another part, which calls Deliver. It must not wait, nor call back. What is forwarded to one part must arrive
	// there once, in order.
	Forward func(part ident.Part, to ident.VCPU, m lapic.Message)
	// Passed is called after an interrupt of a vCPU here or of a device was forwarded.
	Passed func()
	// Renamed tells all other parts, which call Rename, what a local APIC here is addressed by from now on. It must not wait.
	Renamed func(id ident.VCPU, name NumberedName)
	// Wake makes a vCPU of this part look at its local APIC: throws it out of the guest, ends its wait. It must not wait.
	Wake func(id ident.VCPU)
}

// Interrupts is the local APICs of the vCPUs of one part, and the way to those of the others. Its methods may be called from any thread.
//
//	vCPU here ──ICR──┐                  ┌──► local APIC here: Accept, Wake
//	device ───Signal─┴──► Targets ──────┤
//	other part ──Deliver──► (here)      └──► Forward to the part where the vCPU is, or was before
//
// Where vCPUs go from part to part, interrupts follow them. A part knows where each vCPU was when the machine booted or, if it was here, where it went from here; from
// part to part that leads to where it is. Interrupts of one sender for one vCPU stay in order, since an INIT must not overtake a start-up, nor the other
// way round: the way that they take gets shorter only when the vCPU comes to a part on it, and that one then holds back what does not come the long
// way until a marker, which it sent that way, has come round.
type Interrupts struct {
	config InterruptsConfig
	began  time.Time

	mu      sync.Mutex   // protects everything below; a leaf
	names   []lapic.Name // of all vCPUs
	changes []uint16     // the numbers of these names
	chips   []*chip      // by vCPU; that of one which runs elsewhere rests
	at      []ident.Part // by vCPU: where it is, or where the way to it leads
}

// NumberedName is what a local APIC is addressed by. The number grows with every change, so that of two names that come by different ways the later
// is known; it may overflow.
type NumberedName struct {
	lapic.Name
	Number uint16
}

func isLater(number, than uint16) bool { return int16(number-than) > 0 }

// NewInterrupts makes the local APICs of a part with these vCPUs, as after power-up. Where the others are Place says.
func NewInterrupts(c InterruptsConfig, local []ident.VCPU) *Interrupts {
	x := &Interrupts{config: c, began: time.Now(), names: make([]lapic.Name, c.VCPUs), changes: make([]uint16, c.VCPUs), at: make([]ident.Part, c.VCPUs)}
	for i := range c.VCPUs {
		ch := &chip{apic: lapic.New(uint32(i), i == 0)}
		ch.timer = time.AfterFunc(time.Hour, func() { x.tick(ident.VCPU(i)) })
		ch.timer.Stop()
		x.names[i], x.at[i] = ch.apic.Name(), c.Self
		x.chips = append(x.chips, ch)
	}
	for _, id := range local {
		x.chips[id].place = chipHere
	}
	return x
}

// Place says on which parts all vCPUs of the machine are, which begins.
func (x *Interrupts) Place(at []ident.Part) {
	x.mu.Lock()
	defer x.mu.Unlock()
	copy(x.at, at)
}

// Reset is a power-up, of a machine whose vCPUs are on these parts. No vCPU of the machine may be in the guest.
func (x *Interrupts) Reset(at []ident.Part) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, ch := range x.chips {
		ch.apic.Reset(uint32(i), i == 0)
		ch.move(chipAway)
		if x.at[i] = at[i]; at[i] == x.config.Self {
			ch.place = chipHere
		}
		x.names[i], x.changes[i] = ch.apic.Name(), 0
	}
}

// Close stops the timers.
func (x *Interrupts) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, ch := range x.chips {
		ch.timer.Stop()
	}
}

func (x *Interrupts) now() lapic.Nanos { return lapic.Nanos(time.Since(x.began)) }

// Signal sends a device's message-signalled interrupt on its way.
func (x *Interrupts) Signal(addr uint64, data uint32) { x.route(lapic.MSI(addr, data), -1) }

// Deliver takes an interrupt that another part forwarded, or sends it on. It returns false if there is no such vCPU, or nowhere to send it.
func (x *Interrupts) Deliver(from ident.Part, to ident.VCPU, m lapic.Message) bool {
	if int(to) >= len(x.chips) {
		return false
	}
	x.mu.Lock()
	wake, sent := x.deliver(from, to, m)
	lost := !sent && x.chips[to].place == chipAway
	x.mu.Unlock()
	if wake {
		x.config.Wake(to)
	}
	return !lost
}

// deliver gives an interrupt to a vCPU here, or sends it to where it is. It requires mu.
func (x *Interrupts) deliver(from ident.Part, to ident.VCPU, m lapic.Message) (wake, sent bool) {
	ch := x.chips[to]
	switch {
	case ch.place == chipAway:
		if sent = x.at[to] != x.config.Self; sent {
			x.config.Forward(x.at[to], to, m)
		}
	case ch.place == chipSettling && m == x.marker():
		wake = x.settled(to)
	default:
		wake = ch.take(from, m)
	}
	return wake, sent
}

// Rename takes note of what another part's local APIC is addressed by.
func (x *Interrupts) Rename(id ident.VCPU, name NumberedName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if int(id) < len(x.names) && isLater(name.Number, x.changes[id]) {
		x.names[id], x.changes[id] = name.Name, name.Number
	}
}

// route sends an interrupt to all whom it names. from is the vCPU that sends it, or -1.
func (x *Interrupts) route(i lapic.IPI, from int) {
	m, ok := i.Message()
	if !ok {
		return
	}
	var room, more [8]int
	passed, awake := false, more[:0]
	x.mu.Lock()
	for _, to := range i.Targets(x.names, from, room[:0]) {
		wake, sent := x.deliver(x.config.Self, ident.VCPU(to), m)
		passed = passed || sent
		if wake {
			awake = append(awake, to)
		}
	}
	x.mu.Unlock()
	for _, to := range awake {
		x.config.Wake(ident.VCPU(to))
	}
	if passed {
		x.config.Passed()
	}
}

// tick is called when a timer is due.
func (x *Interrupts) tick(id ident.VCPU) {
	x.mu.Lock()
	ch := x.chips[id]
	wake := false
	if ch.runs() {
		wake = ch.apic.Tick(x.now())
		x.arm(ch)
	}
	x.mu.Unlock()
	if wake {
		x.config.Wake(id)
	}
}

// arm sets the timer. It requires mu.
func (x *Interrupts) arm(ch *chip) {
	if due, ok := ch.apic.Due(); ok {
		ch.timer.Reset(time.Duration(max(0, due-x.now())))
		return
	}
	ch.timer.Stop()
}

// act carries out what a vCPU's write to its local APIC asks for.
func (x *Interrupts) act(id ident.VCPU, e lapic.Effect) {
	if e.Renamed {
		x.rename(id)
	}
	if e.Send {
		x.route(e.IPI, int(id))
	}
}

func (x *Interrupts) rename(id ident.VCPU) {
	x.mu.Lock()
	name := NumberedName{x.chips[id].apic.Name(), x.changes[id] + 1}
	changed := x.names[id] != name.Name
	if changed {
		x.names[id], x.changes[id] = name.Name, name.Number
	}
	x.mu.Unlock()
	if changed {
		x.config.Renamed(id, name)
	}
}
