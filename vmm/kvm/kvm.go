// Package kvm drives Linux KVM for one VM part: the system, a VM, its vCPUs, their exits, kicks and state. It has no policy and no devices.
//
// It stands on the thin ioctl functions and structs of gokvm's kvm package, and has its own where those do not fit: KVM_RUN (theirs hides
// EINTR, which here means "you were kicked: ask why"), XSAVE2, and the copies of state that must not lose an error.
//
// A vCPU belongs to the one OS thread that called Bind; only Kick may come from others:
//
//	          Bind, SetState or Start
//	created ───────────────────────────► ready ──Run──► in the guest
//	                                       ▲                 │
//	                                       │  IO, MMIO: answer by SetIO / SetMMIO
//	                                       │  Halt
//	                                       │  Interrupted: kicked, ask why
//	                                       └─────────────────┤
//	                                                         ▼
//	                                 Shutdown, InternalError, FailEntry, Unknown: the guest is over, see Dump
//
// The kick protocol closes the window between "asked for nothing" and "entered the guest":
//
//	kicker: store request; immediate_exit = 1; tgkill(thread)
//	vCPU:   loop { load request; KVM_RUN -> EINTR; immediate_exit = 0 }
//
// A kick before KVM_RUN is seen by KVM_RUN itself, one during it by the signal; as immediate_exit is cleared before the request is looked
// at again, none is lost. The signal is SIGURG: the Go runtime owns a handler for it on every thread, uses it to preempt goroutines, and
// so must take a stray one without effect; and its handler costs no goroutine wake-up, as one through os/signal would.
//
// Invariants: every fd is close-on-exec; Run allocates nothing; state is read only when no exit is half done (State completes it).
package kvm

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// DevicePath is where KVM is found.
const DevicePath = "/dev/kvm"

// apiVersion has been 12 since Linux 2.6.22; KVM's documentation says to refuse any other.
const apiVersion = 12

var (
	// ErrNotAvailable is wrapped by Open when this host offers no KVM at all: no device, no permission, or no module behind it.
	ErrNotAvailable = errors.New("KVM is not available")
	// ErrUnsupported is wrapped by Open when KVM is there but lacks something that Cellvisor needs.
	ErrUnsupported = errors.New("KVM lacks what is needed")
)

// The capabilities without which Open refuses. The numbers are those of <linux/kvm.h>.
var neededCapabilities = []struct {
	cap  gokvm.Capability
	name string
}{
	{gokvm.CapUserMemory, "USER_MEMORY"},
	{gokvm.CapEXTCPUID, "EXT_CPUID"},
	{gokvm.CapSyncMMU, "SYNC_MMU"}, // what is unmapped here is unmapped in the guest: revocation stands on it
	{gokvm.CapMPState, "MP_STATE"},
	{gokvm.CapVCPUEvents, "VCPU_EVENTS"},
	{gokvm.CapDebugRegs, "DEBUGREGS"},
	{gokvm.CapXSave, "XSAVE"},
	{gokvm.CapXCRS, "XCRS"},
	{gokvm.CapImmediateExit, "IMMEDIATE_EXIT"},
}

// System is the open KVM device and what was found out about it. It may be shared by any number of VMs.
type System struct {
	fd      int
	runSize int
	maxVCPU int
	cpuid   *gokvm.CPUID
	msrs    []uint32
	msrList gokvm.MSRList // an argument of gokvm's, which must not lie on a stack (see stateArgs)
}

// Open opens KVM and checks that it has what Cellvisor needs. Errors say what is missing and what to do about it.
func Open() (*System, error) {
	fd, err := unix.Open(DevicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(err)
	}
	s := &System{fd: fd}
	if err := s.check(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func openError(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: no %s: load the module kvm_intel or kvm_amd, and enable virtualization in the firmware or the outer hypervisor", ErrNotAvailable, DevicePath)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: no permission to open %s: run as root or add the user to the group that owns it (usually kvm)", ErrNotAvailable, DevicePath)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %s exists but no KVM module is behind it: load kvm_intel or kvm_amd", ErrNotAvailable, DevicePath)
	}
	return fmt.Errorf("%w: open %s: %w", ErrNotAvailable, DevicePath, err)
}

func (s *System) check() error {
	version, err := gokvm.GetAPIVersion(uintptr(s.fd))
	if err != nil {
		return fmt.Errorf("%w: %s does not answer KVM_GET_API_VERSION: %w", ErrNotAvailable, DevicePath, err)
	}
	if version != apiVersion {
		return fmt.Errorf("%w: KVM API version %d, want %d", ErrUnsupported, version, apiVersion)
	}
	for _, c := range neededCapabilities {
		if n, err := gokvm.CheckExtension(uintptr(s.fd), c.cap); err != nil || n == 0 {
			return fmt.Errorf("%w: capability KVM_CAP_%s", ErrUnsupported, c.name)
		}
	}
	size, err := gokvm.GetVCPUMMmapSize(uintptr(s.fd))
	if err != nil {
		return fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	s.runSize = int(size)
	if n, err := gokvm.CheckExtension(uintptr(s.fd), gokvm.CapMAXVCPUS); err == nil {
		s.maxVCPU = int(n)
	}
	if s.cpuid, err = supportedCPUID(s.fd); err != nil {
		return err
	}
	s.msrs, err = s.stateMSRs()
	return err
}

// MaxVCPUs is how many vCPUs KVM allows in one VM.
func (s *System) MaxVCPUs() int { return s.maxVCPU }

// Close closes the device; VMs made from it live on.
func (s *System) Close() error { return unix.Close(s.fd) }

// CreateVM makes a VM without memory, vCPUs or an interrupt controller.
func (s *System) CreateVM() (*VM, error) {
	for {
		fd, err := gokvm.CreateVM(uintptr(s.fd))
		switch {
		case err == nil:
			return &VM{system: s, fd: int(fd)}, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOMEM):
			return nil, fmt.Errorf("create VM: too little memory on this host: %w", err)
		case errors.Is(err, unix.EBUSY):
			return nil, fmt.Errorf("create VM: another hypervisor holds the CPUs' virtualization: %w", err)
		}
		return nil, fmt.Errorf("create VM: %w", err)
	}
}

// VM is one KVM virtual machine: one VM part's.
type VM struct {
	system *System
	fd     int
	closed atomic.Bool
	// region is the argument of SetMemory. gokvm passes it on as a bare address, so it must not lie on a stack, which may move.
	region gokvm.UserspaceMemoryRegion
}

// SetMemory makes the size bytes at hostAddr of this process the guest's physical memory from guestAddr on, as memory slot number slot. The
// caller keeps that mapping until the VM is closed. Slot 0 at guest address 0 is a VM's RAM. Not for concurrent use.
func (vm *VM) SetMemory(slot uint32, guestAddr uint64, size ident.Bytes, hostAddr uintptr) error {
	vm.region = gokvm.UserspaceMemoryRegion{Slot: slot, GuestPhysAddr: guestAddr, MemorySize: uint64(size), UserspaceAddr: uint64(hostAddr)}
	if err := gokvm.SetUserMemoryRegion(uintptr(vm.fd), &vm.region); err != nil {
		return fmt.Errorf("give the VM %s of memory at guest address 0x%x (slot %d): %w", size, guestAddr, slot, err)
	}
	return nil
}

// Close drops the VM. The kernel frees it when its last vCPU is closed too.
func (vm *VM) Close() error {
	if vm.closed.Swap(true) {
		return nil
	}
	return unix.Close(vm.fd)
}
