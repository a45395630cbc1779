package kvm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// kickSignal interrupts KVM_RUN; the package comment says why it is this one.
const kickSignal = unix.SIGURG

// VCPU is one virtual CPU. Its methods belong to the thread that called Bind (or, before that, to its creator), except Kick.
type VCPU struct {
	id   ident.VCPU
	fd   int
	run  *runPage // the kernel's struct kvm_run, mapped; nil once closed
	area []byte   // the whole mapping, with the data of port I/O behind the struct
	pid  int

	tid     atomic.Int32  // the bound thread, 0 if none
	inGuest atomic.Bool   // between the last look at requests and KVM_RUN's return
	mu      sync.Mutex    // protects run and area against Kick while Close takes them away
	kicks   atomic.Uint64 // kicks that had to send a signal

	former  signalSet // signals that the bound thread had blocked before
	pending bool      // the last exit's instruction is finished by the next KVM_RUN only
	args    stateArgs

	ioPrivilege uint64   // RFLAGS.IOPL that the guest was started with, see keepIOPL
	msrs        []uint32 // model-specific registers that State carries
}

// CreateVCPU makes the VM's virtual CPU number id, with the CPUID that this host's KVM supports, less the paravirtual features by which the
// kernel would write guest memory behind the page protocol's back (kvmclock, PV EOI, steal time, asynchronous page faults).
func (vm *VM) CreateVCPU(id ident.VCPU) (*VCPU, error) {
	fd, err := gokvm.CreateVCPU(uintptr(vm.fd), int(id))
	if err != nil {
		switch {
		case errors.Is(err, unix.EEXIST):
			return nil, fmt.Errorf("create vCPU %d: the VM has it already: %w", id, err)
		case errors.Is(err, unix.EINVAL):
			return nil, fmt.Errorf("create vCPU %d: KVM here allows at most %d in a VM: %w", id, vm.system.maxVCPU, err)
		}
		return nil, fmt.Errorf("create vCPU %d: %w", id, err)
	}
	v := &VCPU{id: id, fd: int(fd), pid: os.Getpid(), msrs: append([]uint32(nil), vm.system.msrs...)}
	if err := v.init(vm); err != nil {
		v.Close()
		return nil, fmt.Errorf("set up vCPU %d: %w", id, err)
	}
	return v, nil
}

func (v *VCPU) init(vm *VM) error {
	area, err := unix.Mmap(v.fd, 0, vm.system.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map its run area: %w", err)
	}
	v.area, v.run = area, runPageOf(area)
	if err := v.letKicksIn(); err != nil {
		return fmt.Errorf("set its signal mask: %w", err)
	}
	v.args.xsave = make([]byte, xsaveSize(vm.fd))
	if err := gokvm.SetCPUID2(uintptr(v.fd), guestCPUID(vm.system.cpuid, v.id)); err != nil {
		return fmt.Errorf("set its CPUID: %w", err)
	}
	return nil
}

// ID is the vCPU's number in its VM.
func (v *VCPU) ID() ident.VCPU { return v.id }

// Bind makes the calling goroutine's OS thread the vCPU's, and locks the goroutine to it. Unbind ends that. A SIGURG that comes to the thread meanwhile, of
// a timer say, is a kick: the present Run, or else the next one, returns Interrupted.
func (v *VCPU) Bind() {
	runtime.LockOSThread()
	set := kickSet
	v.former = maskSignals(unix.SIG_BLOCK, &set)
	v.tid.Store(int32(unix.Gettid()))
}

// Unbind releases the thread. Kicks still make the next Run return Interrupted.
func (v *VCPU) Unbind() {
	v.tid.Store(0)
	maskSignals(unix.SIG_SETMASK, &v.former)
	runtime.UnlockOSThread()
}

// TID is the bound thread's number, as in uffd.Fault, or 0.
func (v *VCPU) TID() uint32 { return uint32(v.tid.Load()) }

// Kick makes the current Run, or else the next one, return Interrupted soon. Any goroutine may call it, at any time; after Close it does
// nothing. Store what is wanted of the vCPU before the kick: the vCPU looks for it after Run has returned.
func (v *VCPU) Kick() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run == nil {
		return
	}
	v.run.setImmediateExit(true)
	tid := v.tid.Load()
	if tid == 0 || !v.inGuest.Load() {
		// Not in KVM_RUN yet: it will set inGuest first and read immediate_exit then, so it cannot miss this kick.
		return
	}
	v.kicks.Add(1)
	// The thread may be gone by now, and its number another's of this process: a stray SIGURG does nothing, or makes another vCPU look.
	_ = unix.Tgkill(v.pid, int(tid), kickSignal)
}

// Run lets the guest run until something stops it. The caller loops: look for requests, Run, act on the exit. An error means that KVM_RUN
// itself failed and the guest is over: it wraps unix.EFAULT when the guest's memory could not be reached.
func (v *VCPU) Run() (Exit, error) {
	v.inGuest.Store(true)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), ioctlRun, 0)
	v.inGuest.Store(false)
	v.pending = false
	switch errno {
	case 0:
		exit := v.decode()
		v.pending = exit.Reason == IO || exit.Reason == MMIO || exit.Reason == MSR
		return exit, nil
	case unix.EINTR, unix.EAGAIN:
		// EAGAIN: the vCPU waited to be started and was woken; run again.
		v.run.setImmediateExit(false)
		if v.tid.Load() != 0 {
			takeKick()
		}
		return Exit{Reason: Interrupted}, nil
	}
	return Exit{Reason: Unknown, Code: v.run.exitReason}, fmt.Errorf("KVM_RUN of vCPU %d: %w", v.id, errno)
}

// Complete finishes the instruction of the last IO, MMIO or MSR exit (after SetIO, SetMMIO or SetMSR) without running the guest any further, so that the
// registers are consistent. It does nothing after any other exit. A kick that comes meanwhile stays due.
func (v *VCPU) Complete() error {
	for v.pending {
		v.run.setImmediateExit(true)
		exit, err := v.Run()
		if err != nil {
			return err
		}
		if exit.Reason != Interrupted {
			// REP INS and REP OUTS exit once a chunk and the like: there is more of the same instruction, and its device access with it.
			return fmt.Errorf("vCPU %d: %s while finishing the last exit", v.id, exit)
		}
		v.run.setImmediateExit(true)
	}
	return nil
}

// Signals tells how many kicks had to send a signal, for the metrics.
func (v *VCPU) Signals() uint64 { return v.kicks.Load() }

// Close frees the vCPU. The caller has left Run for good.
func (v *VCPU) Close() error {
	v.mu.Lock()
	area := v.area
	v.run, v.area = nil, nil
	v.mu.Unlock()
	if area != nil {
		if err := unix.Munmap(area); err != nil {
			return fmt.Errorf("unmap vCPU %d: %w", v.id, err)
		}
	}
	if v.fd < 0 {
		return nil
	}
	err := unix.Close(v.fd)
	v.fd = -1
	return err
}
