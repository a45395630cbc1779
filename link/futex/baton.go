package futex

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Baton lets a thread lend its priority to another one that it has just woken: who holds the baton runs with the priority of who waits for it (priority
// inheritance, futex(2), FUTEX_LOCK_PI). That needs no right to become a real-time thread. Each thread that takes it is locked to its goroutine.
//
// The zero value is held by nobody. It must not be copied.
type Baton struct{ word atomic.Uint32 } // the thread that holds it, and the kernel's mark if somebody waits

// Take takes the baton if nobody has it.
func (b *Baton) Take() bool { return b.word.CompareAndSwap(0, uint32(unix.Gettid())) }

// Held tells whether somebody has it.
func (b *Baton) Held() bool { return b.word.Load() != 0 }

// Drop gives it up, which only the thread that took it can.
func (b *Baton) Drop() {
	if !b.word.CompareAndSwap(uint32(unix.Gettid()), 0) {
		unlockInherit(&b.word)
	}
}

// Hurry lends the calling thread's priority to who has the baton until that one drops it, but not for longer than the given time.
func (b *Baton) Hurry(atMost time.Duration) {
	var until unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &until) != nil {
		return
	}
	until = unix.NsecToTimespec(until.Nano() + int64(atMost))
	if lockInherit(&b.word, &until) {
		b.Drop()
	}
}
