package machine

import (
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/vmm/ioapic"
	"github.com/cellvisor/cellvisor/vmm/pci"
	"github.com/cellvisor/cellvisor/vmm/platform"
	"github.com/cellvisor/cellvisor/vmm/serial"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// BusState is what the PCI bus and its devices carry when their VM moves or goes back to a checkpoint.
type BusState struct {
	Root      uint32
	Functions []pci.State
	Devices   []virtio.State
}

// HoldDevices makes the PCI devices rest until ReleaseDevices: when it returns true none of them touches guest memory or its host side. It waits for those
// that do no longer when over says that they need not rest any more.
func (b *Board) HoldDevices(over func() bool) bool {
	for _, d := range b.virtio {
		if !d.Hold(over) {
			return false
		}
	}
	return true
}

// ReleaseDevices ends HoldDevices.
func (b *Board) ReleaseDevices() {
	for _, d := range b.virtio {
		d.Release()
	}
}

// PauseDevices lets the PCI devices take up nothing any more, whether or not they are held besides, or go on.
func (b *Board) PauseDevices(on bool) {
	for _, d := range b.virtio {
		d.Pause(on)
	}
}

// AwaitRest waits until devices that are paused rest, as HoldDevices does.
func (b *Board) AwaitRest(over func() bool) bool {
	for _, d := range b.virtio {
		if !d.AwaitRest(over) {
			return false
		}
	}
	return true
}

// StoodStill says that the machine stood still for a while: its own timers have not seen that time pass.
func (b *Board) StoodStill(d time.Duration) { b.switchedOn.Add(int64(d)) }

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

// BoardState is all that a board carries when its VM moves.
type BoardState struct {
	Version  int
	Serial   serial.State
	IOAPIC   ioapic.State
	Platform platform.State
	Bus      BusState
}

// boardVersion is of BoardState.
const boardVersion = 1

// State captures the board. The devices must be held, and all vCPUs out of the guest.
func (b *Board) State() BoardState {
	return BoardState{boardVersion, b.Serial.State(), b.ioapic.State(), b.platform.State(), b.BusState()}
}

// SetState makes a fresh board, with the same devices, what the captured one was, and lets the devices go on. The processors' states must be in
// place: what devices send from here on must not be overwritten.
func (b *Board) SetState(s BoardState) error {
	if s.Version != boardVersion {
		return fmt.Errorf("devices' state of version %d, this program knows %d", s.Version, boardVersion)
	}
	b.switchedOn.Add(-s.Platform.ElapsedNanos)
	b.platform.SetState(s.Platform)
	// The serial port's line rises again if it was high: what was typed between the capture of the processors and that of the devices has interrupted none of
	// the former. One interrupt too many does no harm.
	s.IOAPIC.High = [ioapic.Pins]bool{}
	b.ioapic.SetState(s.IOAPIC)
	b.Serial.SetState(s.Serial)
	return b.SetBusState(s.Bus)
}
