package worker

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// alarm throws the thread that sets it out of the guest at a time: the end of its turn, say. It is a timer of the kernel's that signals the very thread
// (timer_create(2), SIGEV_THREAD_ID), so nobody else has to be woken to end a turn. It rings once. A signal that comes just before the thread enters the guest makes
// it leave at once (see kvm.VCPU.Bind). The zero value is not set.
type alarm struct {
	at   ident.Micros // CLOCK_BOOTTIME; 0: not set
	id   int32
	made bool
}

// sigevent is struct sigevent of <asm-generic/siginfo.h>.
type sigevent struct {
	value  uint64
	signo  int32
	notify int32
	tid    int32
	_      [11]int32
}

const sigevThreadID = 4

// set sets the alarm, or stops it with 0. Only the thread whose alarm it is calls it. It tells whether the kernel has such timers.
func (a *alarm) set(at ident.Micros) bool {
	if a.at == at {
		return true
	}
	if !a.made {
		ev := sigevent{signo: int32(unix.SIGURG), notify: sigevThreadID, tid: int32(unix.Gettid())} // the signal with which vCPUs are kicked
		if _, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&a.id))); errno != 0 {
			return false
		}
		a.made = true
	}
	spec := struct{ interval, value unix.Timespec }{}
	if at != 0 {
		spec.value = unix.NsecToTimespec(int64(at) * 1000)
	}
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(a.id), 1 /* TIMER_ABSTIME */, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return false
	}
	a.at = at
	return true
}

// drop gives the timer back.
func (a *alarm) drop() {
	if a.made {
		_, _, _ = unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(a.id), 0, 0)
	}
	*a = alarm{}
}
