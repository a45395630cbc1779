package worker

import (
	"fmt"
	"io"

	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/pci"
)

// hasDevices tells whether a payload guest has a PCI bus: it has one if it has disks.
func (w *Worker) hasDevices() bool { return len(w.spec.Disks) > 0 }

// newBoard makes the PCI bus of a payload guest, with its disks. A payload polls: its devices' interrupts go nowhere.
func (w *Worker) newBoard(disks *disks) (*machine.Board, error) {
	board := machine.NewBoard(machine.BoardConfig{
		VCPUs: w.spec.VCPUs, Memory: w.spec.MemoryBytes, Backing: deviceMemory{w}, Console: io.Discard, Signal: func(uint64, uint32) {},
	})
	return board, disks.addTo(board, w.cached)
}

// addDevices gives home the PCI bus, if the guest has one.
func (w *Worker) addDevices(h *home) error {
	if !w.hasDevices() {
		return nil
	}
	if h.board != nil {
		return nil // the guest boots again
	}
	disks, err := openDisks(w.spec.DiskDir, w.spec.Disks)
	if err != nil {
		return err
	}
	board, err := w.newBoard(disks)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.board = board
	return nil
}

// resetDevices puts the devices into their power-on state, for a new boot. All vCPUs must be parked, and none of the devices waits for a page.
func (h *home) resetDevices() {
	h.accessMu.Lock()
	defer h.accessMu.Unlock()
	if h.board != nil {
		h.board.PCI.Reset()
	}
}

// closeDevices ends the devices and closes what they hold. None of them may wait for a page.
func (h *home) closeDevices() {
	h.mu.Lock()
	board := h.board
	h.board = nil
	h.mu.Unlock()
	if board != nil {
		_ = board.Close() // what a disk could not write its guest knows
	}
}

// isDeviceAccess tells whether an exit of a payload guest is an access to the PCI bus, and which.
func (w *Worker) isDeviceAccess(exit kvm.Exit) (machine.Access, bool) {
	a := machine.Access{Data: exit.Data, Size: exit.Size, Write: exit.Write}
	switch {
	case !w.hasDevices():
	case exit.Reason == kvm.IO && exit.Count == 1 && pci.Owns(exit.Port):
		a.Addr, a.Port = uint64(exit.Port), true
		return a, true
	case exit.Reason == kvm.MMIO && exit.Addr >= boot.WindowAddr && exit.Addr < boot.WindowAddr+boot.WindowBytes:
		a.Addr = exit.Addr
		return a, true
	}
	return a, false
}

// accessDevice has home's devices carry out an access of a vCPU of this part.
func (w *Worker) accessDevice(v *vcpu, a machine.Access) error {
	value, err := w.request(v, deviceRequest{op: opAccess, access: a})
	switch {
	case err != nil || a.Write:
	case a.Port:
		v.cpu.SetIO(uint32(value))
	default:
		v.cpu.SetMMIO(value)
	}
	return err
}

// access carries out one access to the devices, once. It does not hold mu meanwhile: a device that is reset waits for the work that it has under
// way, which may wait for a page that comes only if output, which takes mu, goes on.
func (h *home) access(r deviceRequest) (uint64, error) {
	h.accessMu.Lock()
	defer h.accessMu.Unlock()
	h.mu.Lock()
	answer, done, err := h.known(r)
	board := h.board
	h.mu.Unlock()
	if done || err != nil {
		return answer, err
	}
	if board == nil {
		return 0, fmt.Errorf("%w: an access to devices, there are none", errBadRequest)
	}
	if answer, err = board.Do(r.access); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done[r.vcpu] = doneRequest{Seq: r.seq, Value: answer}
	return answer, nil
}

// known looks a request up: whether it was done before, with which answer, or why it cannot be done. It requires mu.
func (h *home) known(r deviceRequest) (answer uint64, done bool, err error) {
	last := &h.done[r.vcpu]
	switch {
	case h.down:
		return 0, false, errEnded
	case r.seq == last.Seq:
		return last.Value, true, nil
	case r.seq < last.Seq:
		return 0, false, fmt.Errorf("%w: number %d of vCPU %d after %d", errBadRequest, r.seq, r.vcpu, last.Seq)
	case h.exited || h.closed:
		return 0, false, errEnded
	}
	return 0, false, nil
}
