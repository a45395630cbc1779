package futex

import (
	"sync/atomic"
	"time"
)

// Mutex is a mutual exclusion lock for goroutines that are locked to their threads, such as those that serve pages. A contended
// sync.Mutex parks its goroutine; to wake it again the scheduler needs a free P, an idle thread to look for work, and that thread's
// hand-over to the one that the goroutine is locked to: two or three wake-ups, at whatever priority. Here the waiter spins for about
// as long as the lock is usually held, then sleeps on a futex, and is woken by the holder itself.
//
// The zero value is unlocked. It must not be copied, and is neither fair nor recursive.
type Mutex struct {
	state atomic.Uint32 // lockFree, lockHeld or lockContended
}

const (
	lockFree      = iota
	lockHeld      // nobody sleeps
	lockContended // somebody may sleep
)

// lockSpins is how often a waiter looks before it sleeps: some microseconds, about one send of a page.
const lockSpins = 2000

// lockSleep bounds one sleep. Wake-ups are not lost; the bound only keeps a bug from becoming a hang.
const lockSleep = time.Second

// Lock locks m.
func (m *Mutex) Lock() {
	if m.state.CompareAndSwap(lockFree, lockHeld) {
		return
	}
	for range lockSpins {
		if m.state.Load() == lockFree && m.state.CompareAndSwap(lockFree, lockHeld) {
			return
		}
	}
	// As in Drepper, "Futexes Are Tricky", mutex 2: whoever has slept takes the lock as contended, since others may sleep on.
	for m.state.Swap(lockContended) != lockFree {
		Wait(&m.state, lockContended, lockSleep)
	}
}

// Unlock unlocks m, which must be locked.
func (m *Mutex) Unlock() {
	switch m.state.Swap(lockFree) {
	case lockFree:
		panic("futex: unlock of a Mutex that is not locked")
	case lockContended:
		Wake(&m.state)
	}
}
