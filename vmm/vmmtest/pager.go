package vmmtest

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/uffd"
)

// Pager serves a host's page faults from its own memory. Whoever takes pages away meanwhile (RAM.Revoke, FD.Protect) makes the guest fault again.
type Pager struct {
	FD     *uffd.FD
	Faults map[uffd.Kind]int // complete once Stop has returned
	done   chan error
}

// Watch registers the host's memory with userfaultfd and starts serving it. It is called before the guest runs; faults that ask to write, and
// faults of pages that exist, are granted just the access that they ask for.
func (h *Host) Watch(t testing.TB) *Pager {
	t.Helper()
	RequireUserfaultfd(t)
	fd, err := uffd.Open(h.RAM)
	if err != nil {
		t.Fatal(err)
	}
	p := &Pager{FD: fd, Faults: map[uffd.Kind]int{}, done: make(chan error, 1)}
	go func() { p.done <- p.serve() }()
	t.Cleanup(func() {
		h.Stop() // before anything of the userfaultfd goes away
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		fd.Close()
	})
	return p
}

// Stop ends the serving. The guest must have been stopped.
func (p *Pager) Stop() error {
	p.FD.Interrupt()
	err := <-p.done
	p.done <- err
	return err
}

func (p *Pager) serve() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var faults [16]uffd.Fault
	for {
		n, err := p.FD.ReadFaults(faults[:])
		if errors.Is(err, uffd.ErrInterrupted) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range faults[:n] {
			p.Faults[f.Kind]++
			if err := p.grant(f); err != nil {
				return fmt.Errorf("serve %s fault of page 0x%x: %w", f.Kind, uint64(f.Page), err)
			}
		}
	}
}

func (p *Pager) grant(f uffd.Fault) error {
	if f.Kind == uffd.Missing {
		return p.FD.MapZero(f.Page, 1, f.Write)
	}
	return p.FD.Map(f.Page, 1, f.Write)
}

// Pages is how many pages the host's memory has.
func (h *Host) Pages() ident.PageNo { return ident.PageNo(h.RAM.Pages()) }
