package machine

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/lapic"
	"github.com/cellvisor/cellvisor/vmm/linux"
)

// Seat is a vCPU with its local APIC, in a VM without KVM's. Its methods are for the vCPU's thread; the local APIC is reached from any.
//
//	 Enter: false ┌─────────┐ INIT                    ┌─────────┐
//	waits for SIPI│ waiting │◄────────────────────────│ running │◄──┐
//	              └────┬────┘                         └─┬─────▲─┘   │ Enter: takes INIT, NMI; injects
//	                   └────────────SIPI────────────────┼─────┘     │ Run: exits of the local APIC
//	                                                    └───────────┘
//	                                  HLT ▼   ▲ an interrupt
//	                                    halted (Enter: false)
type Seat struct {
	cpu    *kvm.VCPU
	all    *Interrupts
	apic   *lapic.APIC    // protected by all.mu
	fresh  *kvm.VCPUState // before it ever ran
	halted bool
	ran    bool // since it was given its state: what Run leaves behind is its own
}

// NewSeat makes the seat of a vCPU that has not run yet. Whether it is here is up to Interrupts.
func NewSeat(cpu *kvm.VCPU, all *Interrupts) (*Seat, error) {
	fresh, err := cpu.State()
	if err != nil {
		return nil, err
	}
	fresh.DropTSC() // it runs on through any reset
	return &Seat{cpu: cpu, all: all, apic: all.chips[cpu.ID()].apic, fresh: fresh}, nil
}

// firmwareSegment is where a reset boot vCPU begins to run, less its instruction pointer. Hardware has it at the end of the first 4 GiB.
const firmwareSegment = 0xf0000

func (s *Seat) id() ident.VCPU { return s.cpu.ID() }

// Reset is a power-up of the vCPU; that of its local APIC is Interrupts.Reset.
func (s *Seat) Reset() error {
	s.all.mu.Lock()
	base, boot := s.apic.Base, s.apic.IsBoot()
	s.all.mu.Unlock()
	s.halted, s.ran = false, false
	state := *s.fresh
	state.Sregs.ApicBase, state.Sregs.CR8 = base, 0
	if boot {
		state.Sregs.CS.Base = firmwareSegment // an INIT resets the machine: see linux.Load
	}
	s.cpu.SetCR8(0)
	return s.cpu.SetState(&state)
}

// Ready tells whether the vCPU has something to run: it does not wait to be started, nor for an interrupt.
func (s *Seat) Ready() bool {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return s.ready()
}

// ready requires all.mu.
func (s *Seat) ready() bool {
	switch {
	case s.apic.INIT:
		return true
	case s.apic.Waiting:
		return s.apic.SIPI
	case s.halted:
		return s.apic.Wakes(s.cpu.InterruptsOn())
	}
	return true
}

// Enter prepares the vCPU for Run: it gives it what its local APIC holds for it. It returns false while there is nothing to run.
func (s *Seat) Enter() (bool, error) {
	a := s.apic
	s.all.mu.Lock()
	if !s.ready() {
		s.all.mu.Unlock()
		return false, nil
	}
	s.halted = false
	reset := a.TakeINIT()
	vector, start := a.TakeStart()
	nmi := a.TakeNMI()
	waiting := a.Waiting
	s.all.mu.Unlock()
	if reset {
		if err := s.Reset(); err != nil {
			return false, err
		}
		s.all.rename(s.id())
	}
	if start {
		if err := s.start(vector); err != nil {
			return false, err
		}
	}
	if waiting {
		return false, nil
	}
	if nmi {
		if err := s.cpu.NMI(); err != nil {
			return false, err
		}
	}
	return true, s.interrupt()
}

// interrupt injects what is pending, or has Run return when that can be done.
func (s *Seat) interrupt() error {
	s.all.mu.Lock()
	var vector byte
	inject := false
	if s.cpu.Interruptible() {
		vector, inject = s.apic.Ack()
	}
	_, more := s.apic.Pending()
	s.cpu.SetCR8(byte(s.apic.TPR >> 4))
	s.all.mu.Unlock()
	s.cpu.WantInterruptible(more)
	if !inject {
		return nil
	}
	return s.cpu.Inject(vector)
}

// start puts the vCPU to where a start-up interrupt says, in real mode.
func (s *Seat) start(vector byte) error {
	sregs, err := s.cpu.Sregs()
	if err != nil {
		return err
	}
	sregs.CS.Selector, sregs.CS.Base = uint16(vector)<<8, uint64(vector)<<12
	if err := s.cpu.SetSregs(sregs); err != nil {
		return err
	}
	regs := s.fresh.Regs
	regs.RIP = 0
	return s.cpu.SetRegs(regs)
}

// Run lets the vCPU run to its next exit. known tells that the exit was the local APIC's, and has been dealt with.
func (s *Seat) Run() (exit kvm.Exit, known bool, err error) {
	if exit, err = s.cpu.Run(); err != nil {
		return exit, false, err
	}
	s.ran = true
	s.look()
	switch {
	case exit.Reason == kvm.Interrupted:
		return exit, true, nil
	case exit.Reason == kvm.Halt:
		s.halted = true
		return exit, true, nil
	case exit.Reason == kvm.MSR:
		s.msr(exit)
		return exit, true, nil
	case exit.Reason == kvm.MMIO && s.contains(exit.Addr):
		s.memory(exit)
		return exit, true, nil
	}
	return exit, false, nil
}

// look takes over what the guest has changed of its local APIC without an exit.
func (s *Seat) look() {
	s.all.mu.Lock()
	renamed := s.apic.SetBase(s.cpu.APICBase())
	if class := uint32(s.cpu.CR8()); class != s.apic.TPR>>4 {
		s.apic.TPR = class << 4
	}
	s.all.mu.Unlock()
	if renamed {
		s.all.rename(s.id())
	}
}

func (s *Seat) contains(addr uint64) bool {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return s.apic.Contains(addr)
}

// msr carries out an access to a register in x2APIC mode; any other register that KVM does not know is a fault.
func (s *Seat) msr(exit kvm.Exit) {
	s.all.mu.Lock()
	var value uint64
	var effect lapic.Effect
	var ok bool
	if exit.Write {
		effect, ok = s.apic.WriteMSR(exit.Index, exit.Data, s.all.now())
	} else {
		value, ok = s.apic.ReadMSR(exit.Index, s.all.now())
	}
	s.done(effect)
	s.all.mu.Unlock()
	s.cpu.SetMSR(value, ok)
	s.all.act(s.id(), effect)
}

func (s *Seat) memory(exit kvm.Exit) {
	offset := exit.Addr % lapic.Bytes
	s.all.mu.Lock()
	var value uint64
	var effect lapic.Effect
	if exit.Write {
		effect = s.apic.WriteMemory(offset, int(exit.Size), exit.Data, s.all.now())
	} else {
		value = s.apic.ReadMemory(offset, int(exit.Size), s.all.now())
	}
	s.done(effect)
	s.all.mu.Unlock()
	if !exit.Write {
		s.cpu.SetMMIO(value)
	}
	s.all.act(s.id(), effect)
}

// done requires all.mu.
func (s *Seat) done(e lapic.Effect) {
	if e.Timer {
		s.all.arm(s.all.chips[s.id()])
	}
}

// SetUpSpanned prepares a fresh KVM VM for one part of a Linux machine over several: memory slots, and exits for local APICs that are outside
// KVM. ramAddr is where RAM of that size lies in this process.
func SetUpSpanned(vm *kvm.VM, memory ident.Bytes, ramAddr uintptr) error {
	if err := vm.SetHidden(linux.HiddenAddr); err != nil {
		return err
	}
	if err := vm.EnableMSRExits(); err != nil {
		return fmt.Errorf("local APICs outside KVM: %w", err)
	}
	return setMemory(vm, memory, ramAddr)
}

// NewSpannedVCPU makes a vCPU for a seat, with its CPUID. A machine over several servers stands on a constant counter, so it announces one: a
// kernel that is not told so measures each processor by watching the ticks of another's clock.
func NewSpannedVCPU(system *kvm.System, vm *kvm.VM, id ident.VCPU, vcpus int, model linux.Model) (*kvm.VCPU, error) {
	return newVCPU(system, vm, model, linux.Topology{VCPU: int(id), VCPUs: vcpus, ConstantTSC: true})
}
