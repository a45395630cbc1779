package kvm

import (
	"fmt"
	"runtime"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// Interrupts. A VM of an operating system has a local APIC for each vCPU in the kernel and nothing else there ("split" interrupt chips):
// timers and interprocessor interrupts never leave KVM, while the I/O APIC is a device like any other, of which a VM has exactly one even if
// its vCPUs run on several servers. KVM's own I/O APIC would exist once a server.

// The ioctls and constants of <linux/kvm.h> that gokvm does not have.
const (
	capSplitIRQChip = 121
	capTSCDeadline  = 72

	ioctlGetTSCKHz  = 0xaea3
	ioctlNMI        = 0xae9a
	tscGroup        = 0 // KVM_VCPU_TSC_CTRL
	tscOffset       = 0 // KVM_VCPU_TSC_OFFSET
	lapicStateBytes = 1024
	msrTSCDeadline  = 0x6e0
)

var (
	ioctlEnableCap     = gokvm.IIOW(0xa3, unsafe.Sizeof(enableCap{}))
	ioctlSignalMSI     = gokvm.IIOW(0xa5, unsafe.Sizeof(msi{}))
	ioctlGetLAPIC      = gokvm.IIOR(0x8e, lapicStateBytes)
	ioctlSetLAPIC      = gokvm.IIOW(0x8f, lapicStateBytes)
	ioctlSetDeviceAttr = gokvm.IIOW(0xe1, unsafe.Sizeof(deviceAttr{}))
	ioctlGetDeviceAttr = gokvm.IIOW(0xe2, unsafe.Sizeof(deviceAttr{}))
)

type enableCap struct {
	cap, flags uint32
	args       [4]uint64
	_          [64]byte
}

type msi struct {
	addressLow, addressHigh, data, flags uint32
	_                                    [16]byte
}

type deviceAttr struct {
	flags, group uint32
	attr, addr   uint64
}

// LAPIC is the register page of a local APIC, in the kernel's layout.
type LAPIC [lapicStateBytes]byte

func ioctlPointer(fd int, op uintptr, arg unsafe.Pointer) (uintptr, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(arg))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// EnableAPICs gives each vCPU that is created later a local APIC in the kernel. Vectors of an I/O APIC, and of devices, come by SignalMSI.
func (vm *VM) EnableAPICs() error {
	const ioapicPins = 24
	arg := enableCap{cap: capSplitIRQChip, args: [4]uint64{ioapicPins}}
	if _, err := ioctlPointer(vm.fd, ioctlEnableCap, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("give the VM local APICs (KVM_CAP_SPLIT_IRQCHIP): %w", err)
	}
	return nil
}

// SetHidden tells KVM where in the guest's physical address space it may keep the four pages that Intel processors without unrestricted
// guest mode need for real mode. Others ignore it.
func (vm *VM) SetHidden(addr uint32) error {
	if err := gokvm.SetIdentityMapAddr(uintptr(vm.fd), addr); err != nil {
		return fmt.Errorf("place KVM's identity map at 0x%x: %w", addr, err)
	}
	if err := gokvm.SetTSSAddr(uintptr(vm.fd), addr+ident.PageSize); err != nil {
		return fmt.Errorf("place KVM's task state at 0x%x: %w", addr+ident.PageSize, err)
	}
	return nil
}

// SignalMSI delivers a message-signalled interrupt to the local APICs of this VM. It reports whether one took it: an interrupt that is
// masked, or for an APIC that is not here, is dropped as a bus would drop it. Any thread may call it.
func (vm *VM) SignalMSI(addr uint64, data uint32) (bool, error) {
	arg := msi{addressLow: uint32(addr), addressHigh: uint32(addr >> 32), data: data}
	n, err := ioctlPointer(vm.fd, ioctlSignalMSI, unsafe.Pointer(&arg))
	if err != nil {
		return false, fmt.Errorf("signal MSI 0x%x to 0x%x: %w", data, addr, err)
	}
	return n > 0, nil
}

// HasTSCDeadline tells whether local APIC timers can be armed by the time stamp counter, which needs no calibration of another clock.
func (s *System) HasTSCDeadline() bool {
	n, err := gokvm.CheckExtension(uintptr(s.fd), capTSCDeadline)
	return err == nil && n != 0
}

// TSCKHz is the frequency of the vCPU's time stamp counter.
func (v *VCPU) TSCKHz() (uint32, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), ioctlGetTSCKHz, 0)
	if errno != 0 {
		return 0, fmt.Errorf("frequency of vCPU %d's time stamp counter: %w", v.id, errno)
	}
	return uint32(n), nil
}

// TSCOffset is what the vCPU's time stamp counter is ahead of the host's.
func (v *VCPU) TSCOffset() (uint64, error) {
	var value uint64
	if err := v.tscAttr(ioctlGetDeviceAttr, &value); err != nil {
		return 0, fmt.Errorf("read vCPU %d's TSC offset: %w", v.id, err)
	}
	return value, nil
}

// SetTSCOffset makes the vCPU's time stamp counter the host's plus offset.
func (v *VCPU) SetTSCOffset(offset uint64) error {
	if err := v.tscAttr(ioctlSetDeviceAttr, &offset); err != nil {
		return fmt.Errorf("set vCPU %d's TSC offset: %w", v.id, err)
	}
	return nil
}

// tscAttr moves the offset between the kernel and value, whose address is in the argument: pinned, since a stack may move.
func (v *VCPU) tscAttr(op uintptr, value *uint64) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(value)
	arg := deviceAttr{group: tscGroup, attr: tscOffset, addr: uint64(uintptr(unsafe.Pointer(value)))}
	_, err := ioctlPointer(v.fd, op, unsafe.Pointer(&arg))
	return err
}

// LAPIC captures the vCPU's local APIC.
func (v *VCPU) LAPIC() (*LAPIC, error) {
	out := new(LAPIC)
	if _, err := ioctlPointer(v.fd, ioctlGetLAPIC, unsafe.Pointer(out)); err != nil {
		return nil, fmt.Errorf("read vCPU %d's local APIC: %w", v.id, err)
	}
	return out, nil
}

// SetLAPIC replaces the vCPU's local APIC. Its mode, xAPIC or x2APIC, is that of the special registers: set those first. A deadline of
// its timer is an MSR that takes effect only in the timer mode that the LAPIC carries: see RestoreDeadline.
func (v *VCPU) SetLAPIC(state *LAPIC) error {
	if _, err := ioctlPointer(v.fd, ioctlSetLAPIC, unsafe.Pointer(state)); err != nil {
		return fmt.Errorf("set vCPU %d's local APIC: %w", v.id, err)
	}
	return nil
}

// RestoreDeadline arms the timer again as s had it, after SetState(s) and SetLAPIC.
func (v *VCPU) RestoreDeadline(s *VCPUState) error {
	for _, m := range s.MSRs {
		if m.Index == msrTSCDeadline && m.Data != 0 {
			return v.setMSRs([]gokvm.MSREntry{m})
		}
	}
	return nil
}

// NMI raises a non-maskable interrupt.
func (v *VCPU) NMI() error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), ioctlNMI, 0); errno != 0 {
		return fmt.Errorf("NMI to vCPU %d: %w", v.id, errno)
	}
	return nil
}
