package machine

import (
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/lapic"
)

// InterruptsConfig is what the interrupt controllers of one part of a machine over several parts are made of.
type InterruptsConfig struct {
	VCPUs int
	// Forward sends an interrupt to the part where a vCPU runs, which calls Deliver. It must not wait. What is forwarded for one vCPU must
	// arrive once, in order.
	Forward func(to ident.VCPU, m lapic.Message)
	// Renamed tells all other parts, which call Rename, what a local APIC here is addressed by from now on. It must not wait.
	Renamed func(id ident.VCPU, name NumberedName)
	// Wake makes a vCPU of this part look at its local APIC: throws it out of the guest, ends its wait. It must not wait.
	Wake func(id ident.VCPU)
}

// Interrupts is the local APICs of the vCPUs of one part, and the way to those of the others. Its methods may be called from any thread.
//
//	vCPU here ──ICR──┐                  ┌──► local APIC here: Accept, Wake
//	device ───Signal─┴──► Targets ──────┤
//	other part ──Deliver──► (here)      └──► Forward to the part where the vCPU is
type Interrupts struct {
	config InterruptsConfig
	began  time.Time

	mu      sync.Mutex   // protects everything below; a leaf
	names   []lapic.Name // of all vCPUs
	changes []uint16     // the numbers of these names
	chips   []*chip      // by vCPU; that of one which runs elsewhere rests
}

// NumberedName is what a local APIC is addressed by. The number grows with every change, so that of two names that come by different ways the later
// is known; it may overflow.
type NumberedName struct {
	lapic.Name
	Number uint16
}

func isLater(number, than uint16) bool { return int16(number-than) > 0 }

// NewInterrupts makes the local APICs of the vCPUs in local, as after power-up.
func NewInterrupts(c InterruptsConfig, local []ident.VCPU) *Interrupts {
	x := &Interrupts{config: c, began: time.Now(), names: make([]lapic.Name, c.VCPUs), changes: make([]uint16, c.VCPUs)}
	for i := range c.VCPUs {
		ch := &chip{apic: lapic.New(uint32(i), i == 0)}
		ch.timer = time.AfterFunc(time.Hour, func() { x.tick(ident.VCPU(i)) })
		ch.timer.Stop()
		x.chips = append(x.chips, ch)
	}
	x.Reset(local)
	return x
}

// Reset is a power-up, with the vCPUs in local here. No vCPU of the machine may be in the guest.
func (x *Interrupts) Reset(local []ident.VCPU) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, ch := range x.chips {
		ch.apic.Reset(uint32(i), i == 0)
		ch.rest(chipAway)
		if slices.Contains(local, ident.VCPU(i)) {
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

// Deliver takes an interrupt that another part forwarded. It reports whether the vCPU is here. What comes for one that is leaving, or not quite here yet, waits.
func (x *Interrupts) Deliver(to ident.VCPU, m lapic.Message) bool {
	x.mu.Lock()
	if int(to) >= len(x.chips) || x.chips[to].place == chipAway {
		x.mu.Unlock()
		return false
	}
	wake := x.chips[to].accept(m)
	x.mu.Unlock()
	if wake {
		x.config.Wake(to)
	}
	return true
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
	var room [8]int
	x.mu.Lock()
	targets := i.Targets(x.names, from, room[:0])
	x.mu.Unlock()
	for _, to := range targets {
		if id := ident.VCPU(to); !x.Deliver(id, m) {
			x.config.Forward(id, m)
		}
	}
}

// tick is called when a timer is due.
func (x *Interrupts) tick(id ident.VCPU) {
	x.mu.Lock()
	ch := x.chips[id]
	wake := false
	if ch.place == chipHere {
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
