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
	// Forward sends an interrupt to the part where a vCPU runs, which calls Deliver. It must not wait. What is forwarded for one vCPU must
	// arrive once, in order.
	Forward func(to ident.VCPU, m lapic.Message)
	// Renamed tells all other parts, which call Rename, what a local APIC here is addressed by from now on.
	Renamed func(id ident.VCPU, name lapic.Name)
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

	mu    sync.Mutex   // protects everything below; a leaf
	names []lapic.Name // of all vCPUs
	chips []*chip      // by vCPU; nil for those that run elsewhere
}

// chip is one local APIC, with what fires its timer.
type chip struct {
	apic  *lapic.APIC
	timer *time.Timer
}

// NewInterrupts makes the local APICs of the vCPUs in local, as after power-up.
func NewInterrupts(c InterruptsConfig, local []ident.VCPU) *Interrupts {
	x := &Interrupts{config: c, began: time.Now(), names: make([]lapic.Name, c.VCPUs), chips: make([]*chip, c.VCPUs)}
	for _, id := range local {
		ch := &chip{apic: lapic.New(uint32(id), id == 0)}
		ch.timer = time.AfterFunc(time.Hour, func() { x.tick(id) })
		ch.timer.Stop()
		x.chips[id] = ch
	}
	x.Reset()
	return x
}

// Reset is a power-up. No vCPU of the machine may be in the guest.
func (x *Interrupts) Reset() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.names {
		x.names[i] = lapic.New(uint32(i), i == 0).Name()
		if ch := x.chips[i]; ch != nil {
			ch.apic.Reset(uint32(i), i == 0)
			ch.timer.Stop()
		}
	}
}

// Close stops the timers.
func (x *Interrupts) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, ch := range x.chips {
		if ch != nil {
			ch.timer.Stop()
		}
	}
}

func (x *Interrupts) now() lapic.Nanos { return lapic.Nanos(time.Since(x.began)) }

// Signal sends a device's message-signalled interrupt on its way.
func (x *Interrupts) Signal(addr uint64, data uint32) { x.route(lapic.MSI(addr, data), -1) }

// Deliver takes an interrupt that another part forwarded. It reports whether the vCPU is here.
func (x *Interrupts) Deliver(to ident.VCPU, m lapic.Message) bool {
	x.mu.Lock()
	if int(to) >= len(x.chips) || x.chips[to] == nil {
		x.mu.Unlock()
		return false
	}
	wake := x.chips[to].apic.Accept(m)
	x.mu.Unlock()
	if wake {
		x.config.Wake(to)
	}
	return true
}

// Rename takes note of what another part's local APIC is addressed by.
func (x *Interrupts) Rename(id ident.VCPU, name lapic.Name) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if int(id) < len(x.names) && x.chips[id] == nil {
		x.names[id] = name
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
	wake := ch.apic.Tick(x.now())
	x.arm(ch)
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
	name := x.chips[id].apic.Name()
	changed := x.names[id] != name
	x.names[id] = name
	x.mu.Unlock()
	if changed {
		x.config.Renamed(id, name)
	}
}
