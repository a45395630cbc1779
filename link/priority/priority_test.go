package priority

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func policy(t *testing.T) uint32 {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a.Policy
}

// A thread that was raised is an ordinary one again once it was lowered; one that could not be raised is left as it was.
func TestRaiseAndLower(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: nobody else gets the thread
	want := uint32(unix.SCHED_NORMAL)
	if Raise(unix.Gettid()) {
		want = unix.SCHED_FIFO
	}
	if got := policy(t); got != want {
		t.Errorf("policy %d, want %d", got, want)
	}
	Lower(unix.Gettid())
	if got := policy(t); got != unix.SCHED_NORMAL {
		t.Errorf("policy %d after it was lowered", got)
	}
}

// What takes long is done by an ordinary thread, which then comes first again.
func TestApart(t *testing.T) {
	runtime.LockOSThread()
	First()
	was, ran := policy(t), false
	Apart(func() { ran = policy(t) == unix.SCHED_NORMAL })
	if !ran || policy(t) != was {
		t.Errorf("ran as an ordinary thread: %v; policy %d, before %d", ran, policy(t), was)
	}
}

// Threads that a first one starts are ordinary ones.
func TestFirstIsNotInherited(t *testing.T) {
	runtime.LockOSThread()
	First()
	if a, err := unix.SchedGetAttr(0, 0); err != nil || a.Policy == unix.SCHED_FIFO && a.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
		t.Errorf("%+v, %v", a, err)
	}
}
