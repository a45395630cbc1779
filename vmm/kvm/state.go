package kvm

import (
	"fmt"
	"slices"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// VCPUState is everything that makes a vCPU what it is, for moving it to another VM part, and for checkpoints. Its encoding is versioned
// (MarshalBinary, UnmarshalBinary). It is taken between instructions: see State.
type VCPUState struct {
	Regs   gokvm.Regs
	Sregs  gokvm.Sregs
	Xcrs   gokvm.XCRS
	Debug  gokvm.DebugRegs
	Events gokvm.VCPUEvents
	MP     gokvm.MPState
	MSRs   []gokvm.MSREntry // those that KVM lists and lets be read, in KVM's order
	Xsave  []byte           // the XSAVE area, in the layout of the processor's CPUID leaf 0xD
}

// msrTSC is the time stamp counter. Its value in a VCPUState is the guest's at the moment of capture.
const msrTSC = 0x10

// TSC is the guest's time stamp counter at the moment of capture, false if KVM did not give it.
func (s *VCPUState) TSC() (uint64, bool) {
	for _, m := range s.MSRs {
		if m.Index == msrTSC {
			return m.Data, true
		}
	}
	return 0, false
}

// SetTSC replaces the counter, for who knows how much time has passed between capture and arrival: it must never be seen to go back.
func (s *VCPUState) SetTSC(value uint64) {
	for i := range s.MSRs {
		if s.MSRs[i].Index == msrTSC {
			s.MSRs[i].Data = value
		}
	}
}

// DropTSC takes the counter and its adjustment out of the state: whoever restores it leaves them as they are.
func (s *VCPUState) DropTSC() {
	const msrTSCAdjust = 0x3b
	s.MSRs = slices.DeleteFunc(s.MSRs, func(m gokvm.MSREntry) bool { return m.Index == msrTSC || m.Index == msrTSCAdjust })
}

// stateArgs is where the arguments of gokvm's functions live. gokvm turns them into bare addresses before the system call, so they must not
// lie on a stack, which may move in between.
type stateArgs struct {
	regs   *gokvm.Regs
	sregs  *gokvm.Sregs
	xcrs   gokvm.XCRS
	debug  gokvm.DebugRegs
	events gokvm.VCPUEvents
	mp     gokvm.MPState
	xsave  []byte

	translation gokvm.Translation
}

// State captures the vCPU, which must not be in Run. A half-done IO or MMIO exit is finished first (answer it before, by SetIO or SetMMIO),
// so that the state never holds an instruction whose device access has happened but whose result has not.
func (v *VCPU) State() (*VCPUState, error) {
	if err := v.Complete(); err != nil {
		return nil, fmt.Errorf("capture vCPU %d: %w", v.id, err)
	}
	fd, a := uintptr(v.fd), &v.args
	var err error
	// MP state first: asking for it makes KVM settle pending INIT and SIPI events.
	for _, get := range []struct {
		what string
		call func() error
	}{
		{"MP state", func() error { return gokvm.GetMPState(fd, &a.mp) }},
		{"registers", func() error { a.regs, err = gokvm.GetRegs(fd); return err }},
		{"special registers", func() error { a.sregs, err = gokvm.GetSregs(fd); return err }},
		{"extended control registers", func() error { return gokvm.GetXCRS(fd, &a.xcrs) }},
		{"debug registers", func() error { return gokvm.GetDebugRegs(fd, &a.debug) }},
		{"pending events", func() error { return gokvm.GetVCPUEvents(fd, &a.events) }},
		{"XSAVE area", v.getXsave},
	} {
		if err := get.call(); err != nil {
			return nil, fmt.Errorf("capture vCPU %d: read its %s: %w", v.id, get.what, err)
		}
	}
	msrs, err := v.getMSRs()
	if err != nil {
		return nil, fmt.Errorf("capture vCPU %d: %w", v.id, err)
	}
	v.keepIOPL(a.regs, a.sregs)
	return &VCPUState{Regs: *a.regs, Sregs: *a.sregs, Xcrs: a.xcrs, Debug: a.debug, Events: a.events, MP: a.mp, MSRs: msrs, Xsave: slices.Clone(a.xsave)}, nil
}

// SetState makes the vCPU, which must not be in Run, what the captured one was. A half-done IO or MMIO exit is finished first: otherwise the next
// KVM_RUN would finish it, on top of the new state.
func (v *VCPU) SetState(s *VCPUState) error {
	if err := v.Complete(); err != nil {
		return fmt.Errorf("restore vCPU %d: %w", v.id, err)
	}
	fd, a := uintptr(v.fd), &v.args
	if len(s.Xsave) > len(a.xsave) {
		return fmt.Errorf("restore vCPU %d: its XSAVE area of %d bytes does not fit this host's %d: the processors differ", v.id, len(s.Xsave), len(a.xsave))
	}
	clear(a.xsave)
	copy(a.xsave, s.Xsave)
	regs, sregs := s.Regs, s.Sregs
	a.regs, a.sregs, a.xcrs, a.debug, a.events, a.mp = &regs, &sregs, s.Xcrs, s.Debug, s.Events, s.MP
	// The order is QEMU's: control registers before what they govern, events after the registers that setting them may disturb.
	for _, set := range []struct {
		what string
		call func() error
	}{
		{"special registers", func() error { return gokvm.SetSregs(fd, a.sregs) }},
		{"registers", func() error { return gokvm.SetRegs(fd, a.regs) }},
		{"extended control registers", func() error { return gokvm.SetXCRS(fd, &a.xcrs) }},
		{"XSAVE area", v.setXsave},
		{"model-specific registers", func() error { return v.setMSRs(s.MSRs) }},
		{"pending events", func() error { return gokvm.SetVCPUEvents(fd, &a.events) }},
		{"MP state", v.setMPState},
		{"debug registers", func() error { return gokvm.SetDebugRegs(fd, &a.debug) }},
	} {
		if err := set.call(); err != nil {
			return fmt.Errorf("restore vCPU %d: set its %s: %w", v.id, set.what, err)
		}
	}
	v.pending = false
	v.ioPrivilege = s.Regs.RFLAGS & flagsIOPL
	return nil
}

// flagsIOPL is the I/O privilege level in RFLAGS.
const flagsIOPL = 3 << 12

// keepIOPL puts a payload's I/O privilege level back. A KVM without hardware virtualization (kvm_pvm) runs CPL 3 on the processor itself, with IOPL
// 0, and says so: on another host the guest could do no port I/O any more. Code at CPL 3 cannot change the level, and a payload, known by its
// lack of an IDT, has no other, so what it started with holds.
func (v *VCPU) keepIOPL(regs *gokvm.Regs, sregs *gokvm.Sregs) {
	if sregs.CS.DPL == 3 && sregs.IDT.Limit == 0 {
		regs.RFLAGS |= v.ioPrivilege
	}
}

// setMPState leaves a runnable vCPU alone: KVM refuses every other state, and with some versions the call itself, without its own interrupt controller.
func (v *VCPU) setMPState() error {
	if v.args.mp.State == gokvm.MPStateRunnable {
		return nil
	}
	return gokvm.SetMPState(uintptr(v.fd), &v.args.mp)
}
