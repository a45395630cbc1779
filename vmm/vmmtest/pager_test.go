package vmmtest_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// TestGuestUnderThrashing runs the lock payload while another thread takes random pages away from it, by revocation and by write protection, as
// fast as it can. Every sum must still be exact: no write may land in a page that was taken, and none may be lost.
func TestGuestUnderThrashing(t *testing.T) {
	image, err := payload.Open("lock")
	if err != nil {
		t.Fatal(err)
	}
	h := vmmtest.NewHost(t, vmmtest.RequireKVM(t), image, boot.Config{Memory: 16 * ident.MiB, VCPUs: 3, Args: "3000"})
	p := h.Watch(t)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- thrash(h, p.FD, stop) }()
	h.Go()
	r := h.Wait(t, 60*time.Second)
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if r.Failure != "" || r.Status != 0 || strings.Count(r.Console, ", exact") != 4 {
		t.Fatalf("status %d %s\n%s", r.Status, r.Failure, r.Console)
	}
	t.Logf("%v, faults %v", r.Took, p.Faults)
	for _, kind := range []uffd.Kind{uffd.Missing, uffd.Minor, uffd.WriteProtect} {
		if p.Faults[kind] == 0 {
			t.Errorf("no %s fault at all", kind)
		}
	}
}

func thrash(h *vmmtest.Host, fd *uffd.FD, stop <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(1, 2))
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		// The loader's pages, stacks, program and counters all lie in the first 4 MiB and a little more.
		page := ident.PageNo(rng.Uint64N(1100))
		if rng.Uint64N(2) == 0 {
			page = 1020 + page%40
		}
		if rng.Uint64N(2) == 0 {
			if err := h.RAM.Revoke(page, 1); err != nil {
				return err
			}
		} else if err := fd.Protect(page, 1, true); err != nil {
			return err
		}
	}
}
