package probe

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

func TestNewEnough(t *testing.T) {
	for release, want := range map[string]bool{
		"6.6.0": true, "6.5.13": false, "6.10.2-amd64": true, "6.18.44-fc": true, "7.0": true, "5.15.0": false, "6.6-rc1": true, "mainline": true, "6.1": false,
	} {
		if got := newEnough(release, "6.6"); got != want {
			t.Errorf("newEnough(%q) = %t, want %t", release, got, want)
		}
	}
}

func TestAllOnThisHost(t *testing.T) {
	vmmtest.RequireKVM(t)
	vmmtest.RequireUserfaultfd(t)
	checks := All(0)
	for _, c := range checks {
		t.Log(c)
	}
	if err := Err(checks); err != nil {
		t.Error(err)
	}
}

func TestErrNamesWhatFails(t *testing.T) {
	if err := Err([]Check{{Name: "priority"}, {Name: "kvm", OK: true, Needed: true}}); err != nil {
		t.Errorf("a check that is not needed failed the host: %v", err)
	}
	err := Err([]Check{{Name: "kvm", Needed: true, Detail: "no device", Fix: "load the module"}})
	if err == nil || !strings.Contains(err.Error(), "kvm: no device (load the module)") {
		t.Errorf("got %v", err)
	}
}

func TestMoreMemoryThanThereIs(t *testing.T) {
	c := capacity(1 << 50)
	if c.OK || !c.Needed || c.Fix == "" {
		t.Errorf("a PiB of memory passed: %+v", c)
	}
	if c := capacity(ident.MiB); !c.OK {
		t.Errorf("a MiB of memory failed: %+v", c)
	}
}
