package kvm

import (
	"fmt"
	"runtime"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// The parts of a vCPU's state that whoever starts an operating system sets one by one.

var (
	ioctlGetRegs    = gokvm.IIOR(0x81, unsafe.Sizeof(gokvm.Regs{}))
	ioctlSetRegs    = gokvm.IIOW(0x82, unsafe.Sizeof(gokvm.Regs{}))
	ioctlGetSregs   = gokvm.IIOR(0x83, unsafe.Sizeof(gokvm.Sregs{}))
	ioctlSetSregs   = gokvm.IIOW(0x84, unsafe.Sizeof(gokvm.Sregs{}))
	ioctlGetMPState = gokvm.IIOR(0x98, unsafe.Sizeof(gokvm.MPState{}))
	ioctlSetMPState = gokvm.IIOW(0x99, unsafe.Sizeof(gokvm.MPState{}))
	ioctlSetCPUID2  = gokvm.IIOW(0x90, 8)
)

// What a vCPU with a local APIC is doing: the values of MPState.
const (
	MPRunnable      uint32 = 0
	MPUninitialized uint32 = 1 // an application processor that has had no INIT
	MPInitReceived  uint32 = 2 // waits for its SIPI
	MPHalted        uint32 = 3
	MPSIPIReceived  uint32 = 4
)

// Regs reads the general registers.
func (v *VCPU) Regs() (gokvm.Regs, error) {
	r := new(gokvm.Regs)
	_, err := ioctlPointer(v.fd, ioctlGetRegs, unsafe.Pointer(r))
	return *r, v.wrap("read its registers", err)
}

// SetRegs writes the general registers.
func (v *VCPU) SetRegs(r gokvm.Regs) error {
	_, err := ioctlPointer(v.fd, ioctlSetRegs, unsafe.Pointer(&r))
	return v.wrap("set its registers", err)
}

// Sregs reads the special registers.
func (v *VCPU) Sregs() (gokvm.Sregs, error) {
	s := new(gokvm.Sregs)
	_, err := ioctlPointer(v.fd, ioctlGetSregs, unsafe.Pointer(s))
	return *s, v.wrap("read its special registers", err)
}

// SetSregs writes the special registers.
func (v *VCPU) SetSregs(s gokvm.Sregs) error {
	_, err := ioctlPointer(v.fd, ioctlSetSregs, unsafe.Pointer(&s))
	return v.wrap("set its special registers", err)
}

// MPState tells what the vCPU is doing. As a side effect KVM settles an INIT or SIPI that is pending.
func (v *VCPU) MPState() (uint32, error) {
	s := new(gokvm.MPState)
	_, err := ioctlPointer(v.fd, ioctlGetMPState, unsafe.Pointer(s))
	return s.State, v.wrap("read its MP state", err)
}

// SetMPState sets what the vCPU is doing.
func (v *VCPU) SetMPState(state uint32) error {
	s := &gokvm.MPState{State: state}
	_, err := ioctlPointer(v.fd, ioctlSetMPState, unsafe.Pointer(s))
	return v.wrap("set its MP state", err)
}

// CPUIDEntry is one leaf, or subleaf, of what a guest sees of its processor.
type CPUIDEntry = gokvm.CPUIDEntry2

// SupportedCPUID is everything that KVM can offer a guest on this host.
func (s *System) SupportedCPUID() []CPUIDEntry {
	n := min(int(s.cpuid.Nent), len(s.cpuid.Entries))
	return append([]CPUIDEntry(nil), s.cpuid.Entries[:n]...)
}

// SetCPUID replaces what the vCPU, which has never run, shows as its processor.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	const most = 256
	if len(entries) > most {
		return fmt.Errorf("set CPUID of vCPU %d: %d leaves, at most %d", v.id, len(entries), most)
	}
	arg := struct {
		n       uint32
		_       uint32
		entries [most]CPUIDEntry
	}{n: uint32(len(entries))}
	copy(arg.entries[:], entries)
	_, err := ioctlPointer(v.fd, ioctlSetCPUID2, unsafe.Pointer(&arg))
	runtime.KeepAlive(&arg)
	return v.wrap("set its CPUID", err)
}

func (v *VCPU) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("vCPU %d: %s: %w", v.id, what, err)
}

// AddressOf is where memory that was mapped, and so never moves, lies in this process: for SetMemory.
func AddressOf(mapped []byte) uintptr { return uintptr(unsafe.Pointer(&mapped[0])) }
