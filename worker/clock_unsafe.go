package worker

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// bootMicros reads CLOCK_BOOTTIME: the clock that serve and its workers share, which also counts the time that a machine was suspended.
func bootMicros() ident.Micros { return ident.Micros(clockNanos(unix.CLOCK_BOOTTIME) / 1000) }

// threadNanos is the CPU time of the calling thread.
func threadNanos() int64 { return clockNanos(unix.CLOCK_THREAD_CPUTIME_ID) }

// clockNanos reads a clock that every supported kernel has. A vCPU does so several times a turn: the Go runtime need not know that, and wake its monitor each time.
func clockNanos(clock uintptr) int64 {
	var ts unix.Timespec
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		panic("worker: clock_gettime: " + errno.Error())
	}
	return ts.Nano()
}
