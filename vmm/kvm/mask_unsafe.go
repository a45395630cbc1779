package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The thread of a vCPU has kickSignal blocked, except during KVM_RUN, where KVM_SET_SIGNAL_MASK lets it through (api.rst of the kernel's KVM documentation,
// 4.21). So a signal that comes at any moment before KVM_RUN makes KVM_RUN return, a timer's too, which cannot set immediate_exit first; and no
// signal runs the Go runtime's handler, which would take twice as long as to fetch it. The runtime cannot preempt such a thread's goroutine
// by a signal then: it does so at the next call of a function.

// signalSet is the kernel's sigset_t.
type signalSet uint64

const kickSet = signalSet(1) << (kickSignal - 1)

const signalSetBytes = unsafe.Sizeof(signalSet(0))

// maskSignals changes the calling thread's signal mask (how: unix.SIG_BLOCK and the like) and returns the former one; nil set: changes nothing.
func maskSignals(how uintptr, set *signalSet) (former signalSet) {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, how, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(&former)), signalSetBytes, 0, 0)
	if errno != 0 {
		panic("kvm: rt_sigprocmask: " + errno.Error()) // cannot fail with these arguments
	}
	return former
}

// takeKick fetches the kick signal if it is pending for the calling thread, which has it blocked.
func takeKick() {
	set, none := kickSet, unix.Timespec{}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(&none)), signalSetBytes, 0, 0)
}

// ioctlSetSignalMask is KVM_SET_SIGNAL_MASK, _IOW(0xAE, 0x8b, struct kvm_signal_mask), whose set is behind the struct.
const ioctlSetSignalMask = 0x4004ae8b

// letKicksIn has the vCPU's KVM_RUN take the kick signal, and any other that the calling thread takes.
func (v *VCPU) letKicksIn() error {
	set := uint64(maskSignals(unix.SIG_BLOCK, nil) &^ kickSet)
	mask := struct{ bytes, low, high uint32 }{uint32(signalSetBytes), uint32(set), uint32(set >> 32)} // the set is not aligned
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), ioctlSetSignalMask, uintptr(unsafe.Pointer(&mask))); errno != 0 {
		return errno
	}
	return nil
}
