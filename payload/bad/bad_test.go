package bad_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload/bad"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// TestEndings: each program ends as its name says, by a failure with a register dump or by a status.
func TestEndings(t *testing.T) {
	s := vmmtest.RequireKVM(t)
	for _, c := range []struct {
		name    string
		failure string // part of it, empty for a program that ends by itself
		status  uint32
		console string
	}{
		{"triplefault", "rbx 0000000000001234", 0, "about to fault\n"},
		{"jump", "at rip 0x7000deadb000", 0, ""},
		{"outside", "last page fault at 0xc1000000, where it has no memory", 0, ""},     // 16 MiB + 3 GiB
		{"outside-read", "last page fault at 0x1000000, where it has no memory", 0, ""}, // 16 MiB
		{"unknown-port", "write of 4 bytes, port 0x1234, value 0xdeadbeef", 0, ""},
		{"unknown-input", "read of 4 bytes, port 0x1234", 0, ""},
		{"wreck-tables", "shutdown (triple fault)", 0, ""},
		{"string-io", "", 0, "a string at once\n"},
		{"exit-7", "", 7, ""},
		{"registers", "", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := vmmtest.NewHost(t, s, open(t, c.name), boot.Config{Memory: 16 * ident.MiB, VCPUs: 2})
			h.Go()
			r := h.Wait(t, 30*time.Second)
			if c.failure == "" && (r.Failure != "" || !r.Exited || r.Status != c.status) {
				t.Errorf("status %d, want %d, failure %s", r.Status, c.status, r.Failure)
			}
			if c.failure != "" && (r.Exited || !strings.Contains(r.Failure, c.failure) || !strings.Contains(r.Failure, "cr0 80050033")) {
				t.Errorf("exited %t, failure %q, want it to say %q with a register dump", r.Exited, r.Failure, c.failure)
			}
			if r.Console != c.console {
				t.Errorf("console %q, want %q", r.Console, c.console)
			}
		})
	}
}

// TestEndlessGuestsCanBeStopped: a guest that never exits, or does nothing but exit, is stopped by a kick.
func TestEndlessGuestsCanBeStopped(t *testing.T) {
	s := vmmtest.RequireKVM(t)
	for _, name := range []string{"spin", "ports"} {
		h := vmmtest.NewHost(t, s, open(t, name), boot.Config{Memory: 16 * ident.MiB, VCPUs: 3})
		h.Go()
		h.Stop()
	}
}

func TestNames(t *testing.T) {
	for _, name := range bad.Names {
		open(t, name)
	}
	if _, err := bad.Open("nosuch"); err == nil {
		t.Error("a payload that is none was opened")
	}
}

func open(t *testing.T, name string) []byte {
	t.Helper()
	image, err := bad.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return image
}
