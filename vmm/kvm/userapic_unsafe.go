package kvm

import (
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// A VM without KVM's local APICs: the caller has its own. Halts, and accesses to the APICs' registers, are exits; interrupts are injected one by one, when
// the guest can take one.

// The constants of <linux/kvm.h> that gokvm does not have.
const (
	capUserSpaceMSR = 188
	msrExitInvalid  = 1 << 0 // KVM_MSR_EXIT_REASON_INVAL: a register that would be a general protection fault

	exitReadMSR  = 29
	exitWriteMSR = 30
)

var ioctlInterrupt = gokvm.IIOW(0x86, 4)

// EnableMSRExits lets an access to a model-specific register that KVM would refuse end Run. Among these are, without local APICs in the kernel,
// the registers of an APIC in x2APIC mode.
func (vm *VM) EnableMSRExits() error {
	arg := enableCap{cap: capUserSpaceMSR, args: [4]uint64{msrExitInvalid}}
	if _, err := ioctlPointer(vm.fd, ioctlEnableCap, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("have accesses to model-specific registers reported (KVM_CAP_X86_USER_SPACE_MSR; Linux 5.10 has it): %w", err)
	}
	return nil
}

// SetMSR answers an MSR exit: a read with value; ok false raises a general protection fault in the guest.
func (v *VCPU) SetMSR(value uint64, ok bool) {
	r := v.run
	if uint32(r.exitReason) == exitReadMSR {
		r.data[2] = value
	}
	r.data[0] &^= 0xff
	if !ok {
		r.data[0] |= 1
	}
}

// Interruptible tells whether an interrupt can be injected now. Like InterruptsOn, APICBase and CR8 it is as of the last return of Run.
func (v *VCPU) Interruptible() bool { return v.run.interruptible&0xff != 0 }

// InterruptsOn tells whether the guest has its interrupts switched on.
func (v *VCPU) InterruptsOn() bool { return v.run.interruptible>>8&0xff != 0 }

// SetFlags says, for a vCPU that was given another state, what the last return of Run would have: what its flags are, and that nobody knows yet whether it
// can take an interrupt.
func (v *VCPU) SetFlags(rflags uint64) {
	const interruptsOn = 1 << 9
	v.run.interruptible &^= 0xffff
	if rflags&interruptsOn != 0 {
		v.run.interruptible |= 1 << 8
	}
}

// APICBase is the vCPU's IA32_APIC_BASE.
func (v *VCPU) APICBase() uint64 { return v.run.apicBase }

// CR8 is the vCPU's task priority class.
func (v *VCPU) CR8() byte { return byte(v.run.cr8 & 0xf) }

// SetCR8 sets the task priority class that the vCPU enters the guest with.
func (v *VCPU) SetCR8(class byte) { v.run.cr8 = uint64(class & 0xf) }

// WantInterruptible makes Run return Interrupted as soon as an interrupt can be injected, or no longer.
func (v *VCPU) WantInterruptible(on bool) { v.run.setInterruptWindow(on) }

// Inject interrupts the guest, which must be Interruptible, when it is next entered.
func (v *VCPU) Inject(vector byte) error {
	number := uint32(vector)
	if _, err := ioctlPointer(v.fd, ioctlInterrupt, unsafe.Pointer(&number)); err != nil {
		return fmt.Errorf("interrupt vCPU %d with vector 0x%x: %w", v.id, vector, err)
	}
	v.run.interruptible &^= 0xff // one at a time
	return nil
}
