package machine

import (
	"errors"
	"os"
	"testing"

	"github.com/cellvisor/cellvisor/vmm/kvm"
)

func openKVM(t *testing.T) *kvm.System {
	t.Helper()
	system, err := kvm.Open()
	if errors.Is(err, kvm.ErrNotAvailable) && os.Getenv("REQUIRE_KVM") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { system.Close() })
	return system
}

func TestParseAccess(t *testing.T) {
	for _, a := range []Access{{Addr: 0x3f8, Data: 'x', Size: 1, Port: true, Write: true}, {Addr: 0xfec00010, Size: 4}, {Addr: 0xc0000000, Data: 1 << 40, Size: 8, Write: true}} {
		got, err := ParseAccess(a.Append(nil))
		if err != nil || got != a {
			t.Errorf("%+v came back as %+v, %v", a, got, err)
		}
	}
	for _, a := range []Access{{Addr: 0x10000, Size: 1, Port: true}, {Size: 3}, {Size: 8, Port: true}, {}} {
		if _, err := ParseAccess(a.Append(nil)); err == nil {
			t.Errorf("%+v: no error", a)
		}
	}
	if _, err := ParseAccess(nil); err == nil {
		t.Error("no error for nothing")
	}
}
