package futex

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who waits until a time is woken before it, comes back after it, and does not wait if the word has changed or the time has passed.
func TestWaitUntil(t *testing.T) {
	now := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano()
	}
	var word atomic.Uint32
	WaitUntil(&word, 1, now()+int64(time.Hour))
	WaitUntil(&word, 0, now())
	for deadline := now() + int64(time.Millisecond); now() < deadline; {
		WaitUntil(&word, 0, deadline) // which may return for no reason
	}
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		for word.Load() == 0 {
			WaitUntil(&word, 0, now()+int64(time.Hour))
		}
	}()
	word.Store(1)
	for {
		WakeAll(&word)
		select {
		case <-woken:
			return
		case <-time.After(time.Millisecond):
		}
	}
}
