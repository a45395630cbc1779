package futex

import (
	"math"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	waitPrivate = 0 | 128 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG, linux/futex.h
	wakePrivate = 1 | 128
	waitUntil   = 9 | 128 // FUTEX_WAIT_BITSET: the time is one on CLOCK_MONOTONIC
	anyBit      = 0xffffffff
)

// Wait blocks the calling thread while the word has the value, until somebody wakes it or for the given time; it may also return for no reason. The
// caller looks at the word again.
func Wait(word *atomic.Uint32, value uint32, atMost time.Duration) {
	ts := unix.NsecToTimespec(int64(atMost))
	_, _, _ = syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), waitPrivate, uintptr(value), uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// Now is the time by which WaitUntil goes: CLOCK_MONOTONIC, in nanoseconds.
func Now() int64 {
	var ts unix.Timespec
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0) // cannot fail
	return ts.Nano()
}

// WaitUntil is Wait until a time, as Now tells it: who is kept off the CPU on the way to its sleep wakes in time all the same.
func WaitUntil(word *atomic.Uint32, value uint32, deadline int64) {
	ts := unix.NsecToTimespec(deadline)
	_, _, _ = syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), waitUntil, uintptr(value), uintptr(unsafe.Pointer(&ts)), 0, anyBit)
}

// Wake wakes one thread that waits on the word.
func Wake(word *atomic.Uint32) { wake(word, 1) }

// WakeAll wakes all threads that wait on the word.
func WakeAll(word *atomic.Uint32) { wake(word, math.MaxInt32) }

func wake(word *atomic.Uint32, threads uintptr) {
	_, _, _ = syscall.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), wakePrivate, threads)
}
