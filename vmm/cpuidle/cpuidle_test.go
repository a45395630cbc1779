package cpuidle_test

import (
	"testing"

	"github.com/cellvisor/cellvisor/vmm/cpuidle"
)

func TestHoldAndRelease(t *testing.T) {
	l, err := cpuidle.Open()
	if err != nil {
		t.Skipf("CPUs cannot be kept awake here: %v", err)
	}
	defer l.Close()
	for range 2 {
		l.Hold()
		if !l.Held() {
			t.Fatal("the kernel refused the request")
		}
		l.Release()
		if l.Held() {
			t.Fatal("the kernel refused to take the request back")
		}
	}
}

// A host without the device has no Latency: everything goes on without.
func TestNone(t *testing.T) {
	var l *cpuidle.Latency
	l.Hold()
	if l.Held() {
		t.Fatal("nothing holds something")
	}
	l.Release()
	l.Close()
}
