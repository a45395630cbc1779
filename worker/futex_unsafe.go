package worker

import (
	"math"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	futexWaitPrivate = 0 | 128 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG, linux/futex.h
	futexWakePrivate = 1 | 128
)

// futexWait blocks the calling thread while the word has the value, until futexWakeAll or for the given time.
func futexWait(word *atomic.Uint32, value uint32, atMost time.Duration) {
	ts := unix.NsecToTimespec(int64(atMost))
	_, _, _ = syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, uintptr(value), uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// futexWakeAll wakes all threads that wait on the word.
func futexWakeAll(word *atomic.Uint32) { futexWake(word, math.MaxInt32) }

// futexWake wakes at most so many of them.
func futexWake(word *atomic.Uint32, threads uintptr) {
	_, _, _ = syscall.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWakePrivate, threads)
}
