// Package vmmtest helps tests that need real KVM: it skips them where there is none, and runs a payload in the plainest host that keeps the
// payload ABI, with one process, all of memory present, and every vCPU a thread.
package vmmtest

import (
	"os"
	"testing"

	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/uffd"
)

// RequireKVM skips the test, with the reason, when this machine has no usable KVM; with REQUIRE_KVM=1 in the environment it fails instead.
func RequireKVM(t testing.TB) *kvm.System {
	t.Helper()
	s, err := kvm.Open()
	if err != nil {
		skipOrFail(t, err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// RequireUserfaultfd is RequireKVM for what vmm/uffd needs.
func RequireUserfaultfd(t testing.TB) {
	t.Helper()
	if err := uffd.Check(); err != nil {
		skipOrFail(t, err)
	}
}

func skipOrFail(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("REQUIRE_KVM") == "1" {
		t.Fatalf("REQUIRE_KVM=1, and: %v", err)
	}
	t.Skipf("skipped: %v", err)
}
