package kvm_test

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// A guest that increments shared counters for ever writes the same few pages in every round, and nothing else.
func TestDirtyLogHasWhatTheGuestWrites(t *testing.T) {
	system := vmmtest.RequireKVM(t)
	image, err := payload.Open("lock")
	if err != nil {
		t.Fatal(err)
	}
	h := vmmtest.NewHost(t, system, image, boot.Config{Memory: 64 * ident.MiB, VCPUs: 1, Args: "1000000000"})
	log := h.VM.NewDirtyLog(0, 0, h.RAM.Size(), h.RAM.GuestAddr(), 0)
	if err := log.Enable(true); err != nil {
		t.Fatal(err)
	}
	h.Go()
	defer h.Stop()
	for round := range 3 {
		var pages []ident.PageNo
		for deadline := time.Now().Add(time.Minute); len(pages) == 0; {
			if err := log.Read(func(p ident.PageNo) { pages = append(pages, p) }); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: no write seen", round)
			}
		}
		t.Logf("round %d: %d pages: %x", round, len(pages), pages)
		if len(pages) > 64 {
			t.Fatalf("round %d: %d pages written, expected a few", round, len(pages))
		}
	}
}
