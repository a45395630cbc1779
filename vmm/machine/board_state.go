package machine

import (
	"fmt"

	"github.com/cellvisor/cellvisor/vmm/pci"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// BusState is what the PCI bus and its devices carry when their VM moves or goes back to a checkpoint.
type BusState struct {
	Root      uint32
	Functions []pci.State
	Devices   []virtio.State
}

// HoldDevices makes the PCI devices rest: when it returns none of them touches guest memory or its host side until ReleaseDevices.
func (b *Board) HoldDevices() {
	for _, d := range b.virtio {
		d.Hold()
	}
}

// ReleaseDevices ends HoldDevices.
func (b *Board) ReleaseDevices() {
	for _, d := range b.virtio {
		d.Release()
	}
}

// BusState captures the PCI bus. The devices must be held, and all vCPUs out of the guest.
func (b *Board) BusState() BusState {
	s := BusState{Root: b.PCI.State()}
	for _, d := range b.virtio {
		s.Functions = append(s.Functions, d.Function().State())
		s.Devices = append(s.Devices, d.State())
	}
	return s
}

// SetBusState makes the bus what the captured one, with the same devices, was.
func (b *Board) SetBusState(s BusState) error {
	if len(s.Functions) != len(b.virtio) || len(s.Devices) != len(b.virtio) {
		return fmt.Errorf("state of %d and %d PCI devices, the board has %d", len(s.Functions), len(s.Devices), len(b.virtio))
	}
	b.PCI.SetState(s.Root)
	for i, d := range b.virtio {
		if err := d.Function().SetState(s.Functions[i]); err != nil {
			return err
		}
		if err := d.SetState(s.Devices[i]); err != nil {
			return err
		}
	}
	return nil
}
