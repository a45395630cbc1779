package worker

import (
	"errors"
	"fmt"
	"io"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/pci"
	"github.com/cellvisor/cellvisor/wire"
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

// addDevices gives home the PCI bus, if the guest has one and it is not there yet.
func (w *Worker) addDevices(h *home) error {
	if !w.hasDevices() || h.board != nil {
		return nil
	}
	disks, err := openDisks(w.openImage, w.spec.Disks)
	if err != nil {
		return err
	}
	return w.plugDevices(h, disks)
}

func (w *Worker) plugDevices(h *home, disks *disks) error {
	board, err := w.newBoard(disks)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.board = board
	h.mu.Unlock()
	return w.haveDisks(h, disks)
}

// haveDisks gives home its disks, which are open. No device uses them yet.
func (w *Worker) haveDisks(h *home, disks *disks) error {
	disks.full, disks.mend, disks.mirrors = h.diskFull, w.mend, w.replica
	disks.note(w.cutter.isTracking() || w.replica.hasMirrors())
	w.disksOpened()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disks = disks
	return disks.hold(h.holding)
}

// disksOpened tells serve that the disks are open here.
func (w *Worker) disksOpened() {
	w.mu.Lock()
	w.opened = true
	w.mu.Unlock()
	w.control.send(wire.FromWorker{Disks: &wire.WorkerDisks{Opened: true}})
}

// restoreDevices gives a new home the PCI bus as a checkpoint captured it, with the disks as they were then. The devices rest until all vCPUs have
// asked for their state.
func (w *Worker) restoreDevices(h *home, r *replica) error {
	if !w.hasDevices() {
		return nil
	}
	disks, err := w.disksOf(r)
	if err != nil {
		return err
	}
	if err := w.plugDevices(h, disks); err != nil {
		return err
	}
	h.board.HoldDevices(never) // nobody works on their queues yet
	if h.bus == nil {
		return nil
	}
	return h.board.SetBusState(*h.bus)
}

// disksOf returns the disks as what was taken over has them. If they were used before, as not all members came then, they are opened again: nothing has been
// written since.
func (w *Worker) disksOf(r *replica) (*disks, error) {
	disks := r.disks
	if r.disks = nil; disks != nil {
		return disks, nil
	}
	return openDisks(w.openImage, w.spec.Disks)
}

// holdDevices makes the devices rest for a cut. It waits for them no longer when over says that the cut is not wanted: they may wait for a page of a part
// that is gone.
func (h *home) holdDevices(over func() bool) bool {
	board := h.boardNow()
	return board == nil || board.HoldDevices(over)
}

// releaseDevices ends that.
func (h *home) releaseDevices() {
	if board := h.boardNow(); board != nil {
		board.ReleaseDevices()
	}
}

func (h *home) boardNow() *machine.Board {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.board
}

// keepsDisks tells whether disk writes wait for a checkpoint. Then what is held back when the VM is switched off is lost, output and writes alike: the
// disks stay as they were at the last checkpoint, here and on the standbys, and nobody has seen anything that is later.
func (h *home) keepsDisks() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disks != nil && h.holding
}

// track begins to note what is written, for checkpoints, or ends it.
func (w *Worker) track(on bool) error {
	if h := w.home.Load(); h != nil {
		h.disksNow().note(on || w.replica.hasMirrors())
	}
	return w.cutter.track(on)
}

func (c *cutter) isTracking() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracking
}

// copyAllDisks brings the disks of standbys into step. Only home has disks.
func (r *replicas) copyAllDisks(to ident.PartSet, seq uint64, change <-chan struct{}) bool {
	disks, ok := r.w.homeDisks(), true
	to.Each(func(part ident.Part) { ok = ok && (disks == nil || r.copyDisks(disks, part, seq, change)) })
	return ok
}

// diskRequest answers home's requests for copies of disks, and a standby's for a block.
func (h replicaHandler) diskRequest(op replicaOp, body []byte, req link.DeviceRequest) {
	s := h.r.w.standby.Load()
	if s == nil && op != replicaBlock {
		req.Reply(wire.DeviceNotReady, nil)
		return
	}
	var answer []byte
	var err error
	switch {
	case s == nil:
		answer, err = h.r.w.homeDisks().blockOf(body)
	case op == replicaSums:
		answer, err = s.sums(body)
	case op == replicaBlock:
		answer, err = s.blockOf(body)
	default:
		err = s.takeBlocks(body)
	}
	switch {
	case err == nil:
		req.Reply(wire.DeviceOK, answer)
	case errors.Is(err, errEnded), errors.Is(err, errBadShare):
		req.Reply(wire.DeviceNotReady, nil)
	default:
		req.Reply(wire.DeviceNotReady, nil)
		h.r.w.fail(err)
	}
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
	board, life := h.board, h.since
	if h.machine != nil {
		board = h.machine()
	}
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
	if h.down || h.since != life { // the numbers begin anew in the next boot
		return 0, errEnded
	}
	h.done[r.vcpu] = doneRequest{Seq: r.seq, Value: answer}
	return answer, nil
}

// known looks a request up: whether it was done before, with which answer, or why it cannot be done. It requires mu.
func (h *home) known(r deviceRequest) (answer uint64, done bool, err error) {
	last := &h.done[r.vcpu]
	switch {
	case h.down, r.epoch != 0 && r.epoch < h.since:
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
