package worker

import (
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/machine"
)

// A Linux machine moves as any VM does: the standby takes over from a last checkpoint. What differs is what a vCPU is, with its local APIC, and
// that a board of devices goes along: it rests while the part is held.

// originProcessor begins an origin that is an encoded machine.Processor.
const originProcessor = 3

// captureLinux encodes a vCPU of a Linux machine as an origin. The guard must hold it.
func (v *vcpu) captureLinux(tscOf func(ident.VCPU) (uint64, bool)) ([]byte, error) {
	p, err := machine.CaptureProcessor(v.cpu)
	if err != nil {
		return nil, err
	}
	if tsc, ok := tscOf(v.cpu.ID()); ok {
		p.SetTSC(tsc)
	}
	b, err := p.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("vCPU %d: %w", v.cpu.ID(), err)
	}
	return append([]byte{originProcessor}, b...), nil
}

// takeOverLinux makes this part's vCPUs, none of which has run yet, and its devices what the checkpoint captured. All vCPUs come before any device
// or vCPU goes on: an interrupt to one whose state comes later would be lost.
func (w *Worker) takeOverLinux(r *replica) error {
	for _, v := range w.vcpus {
		origin := r.vcpus[v.cpu.ID()]
		if len(origin) == 0 || origin[0] != originProcessor {
			return fmt.Errorf("the checkpoint has no state of vCPU %d", v.cpu.ID())
		}
		var p machine.Processor
		if err := p.UnmarshalBinary(origin[1:]); err != nil {
			return err
		}
		if err := p.Restore(v.cpu); err != nil {
			return err
		}
	}
	h := w.home.Load()
	if h.moved == nil {
		return errors.New("the checkpoint has no state of devices")
	}
	if before := w.linux.devices(); before != nil { // it was taken over before, and gave that up
		if err := before.Close(); err != nil {
			return err
		}
	}
	disks, err := w.disksOf(r)
	if err != nil {
		return err
	}
	if err := w.makeBoard(disks); err != nil {
		return err
	}
	return w.linux.devices().SetState(*h.moved)
}

// holdDevices makes a Linux machine's devices rest; it ends early, with false, when over says so.
func (w *Worker) holdDevices(over func() bool) bool {
	if w.linux == nil {
		return true
	}
	board := w.linux.devices()
	return board == nil || board.HoldDevices(over)
}

// releaseDevices ends that.
func (w *Worker) releaseDevices() {
	if w.linux == nil {
		return
	}
	if board := w.linux.devices(); board != nil {
		board.ReleaseDevices()
	}
}
