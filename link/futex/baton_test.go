package futex

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// Who hurries somebody waits until that one has dropped the baton, for a bounded time; nobody takes it meanwhile.
func TestBaton(t *testing.T) {
	var b Baton
	var dropped atomic.Bool
	taken, drop, done := make(chan bool), make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else gets the thread
		defer close(done)
		taken <- b.Take()
		<-drop
		dropped.Store(true)
		b.Drop()
	}()
	if !<-taken || !b.Held() || b.Take() {
		t.Fatal("the baton was not taken, or twice")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.Hurry(time.Millisecond) // in vain
	if !b.Held() || dropped.Load() {
		t.Fatal("nobody holds the baton any more")
	}
	close(drop)
	b.Hurry(time.Minute)
	if !dropped.Load() {
		t.Error("who hurries came back too early")
	}
	<-done
	if b.Held() || !b.Take() {
		t.Error("the baton is not free again")
	}
	b.Drop()
	b.Hurry(time.Minute) // of nobody
	if b.Held() {
		t.Error("who hurries nobody keeps the baton")
	}
}
