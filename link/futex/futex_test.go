package futex

import (
	"sync/atomic"
	"testing"
	"time"
)

// Who waits until a time is woken before it, comes back after it, and does not wait if the word has changed or the time has passed.
func TestWaitUntil(t *testing.T) {
	var word atomic.Uint32
	WaitUntil(&word, 1, Now()+int64(time.Hour))
	WaitUntil(&word, 0, Now())
	for deadline := Now() + int64(time.Millisecond); Now() < deadline; {
		WaitUntil(&word, 0, deadline) // which may return for no reason
	}
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		for word.Load() == 0 {
			WaitUntil(&word, 0, Now()+int64(time.Hour))
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
