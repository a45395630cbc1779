package worker

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/platform"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/vswitch"
	"github.com/cellvisor/cellvisor/wire"
)

// linuxGuest is what a worker has when its guest is a Linux machine: vCPUs with local APICs, and a board of devices whose serial port is the
// VM's console. What a machine over several parts has besides is in span.
//
//	loading ──setLoaded──► running ──power off──► ended
//	   ▲                      └──reset, triple fault──► halted ──the registry's word: a new boot─┐
//	   └───────────────────────────────────────────────────────────────────────────────────────┘
type linuxGuest struct {
	system *kvm.System
	fresh  []*machine.Processor // each vCPU before it ever ran
	ports  *vswitch.Listener    // nil without a card on the built-in switch
	span   *spanned             // nil unless the machine lies on several servers

	mu    sync.Mutex     // protects everything below
	board *machine.Board // nil before the image is first loaded
	typed wire.WorkerTook
	peers wire.WorkerPeers
}

func (w *Worker) isLinux() bool { return w.spec.Linux != nil }

// physicalSize is how much guest-physical memory the VM has.
func (w *Worker) physicalSize() (ident.Bytes, error) {
	if w.isLinux() {
		return w.spec.MemoryBytes, nil
	}
	return boot.PhysicalSize(w.spec.MemoryBytes, w.spec.VCPUs, w.hasDevices())
}

// setUpLinux makes the processors of a Linux machine.
func (w *Worker) setUpLinux(system *kvm.System, memory *ram.RAM) error {
	if len(w.spec.LocalVCPUs) < w.spec.VCPUs && !w.spec.Standby {
		return w.setUpSpanned(system, memory)
	}
	if err := machine.SetUpVM(w.vm, w.spec.MemoryBytes, memory.GuestAddr()); err != nil {
		return err
	}
	w.linux = &linuxGuest{system: system}
	var err error
	if w.vcpus, err = w.newProcessors(w.spec.LocalVCPUs); err != nil {
		return err
	}
	w.cutter.log = machine.DirtyLogs(w.vm, w.spec.MemoryBytes, memory.GuestAddr())
	return w.listenNet()
}

// newProcessors makes vCPUs of a Linux machine.
func (w *Worker) newProcessors(ids []ident.VCPU) ([]*vcpu, error) {
	var all []*vcpu
	for _, id := range ids {
		cpu, err := machine.NewVCPU(w.linux.system, w.vm, id, w.spec.VCPUs, linux.Model(w.spec.Linux.CPU))
		if err != nil {
			return nil, err
		}
		all = append(all, &vcpu{cpu: cpu, wake: make(chan struct{}, 1)})
	}
	for _, v := range all { // once all are there: the state of an APIC depends on the others
		fresh, err := machine.CaptureProcessor(v.cpu)
		if err != nil {
			return nil, err
		}
		w.linux.fresh = append(w.linux.fresh, fresh)
	}
	return all, nil
}

// homeConsole writes a Linux guest's console where a payload's goes.
type homeConsole struct{ h *home }

// Write implements io.Writer.
func (c homeConsole) Write(b []byte) (int, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if err := c.h.console.put(b, c.h.holding); err != nil {
		return 0, err
	}
	c.h.checkHeld()
	return len(b), nil
}

// loadLinux loads the kernel, which home does once in each boot, into fresh memory; the first time it makes the board. The vCPUs wait for it.
func (w *Worker) loadLinux() error {
	if w.linux.devices() == nil {
		disks, err := openDisks(w.openImage, w.spec.Disks)
		if err != nil {
			return err
		}
		if err := w.makeBoard(disks); err != nil {
			return err
		}
	} else if err := w.freshProcessors(); err != nil {
		return err
	}
	if err := w.writeKernel(); err != nil {
		return err
	}
	if err := w.pauses.bootedAnew(w); err != nil {
		return err
	}
	origins, err := w.linuxOrigins()
	if err != nil {
		return err
	}
	w.home.Load().setLoaded(origins)
	return nil
}

// makeBoard makes the board, with disks that are open.
func (w *Worker) makeBoard(disks *disks) error {
	board := machine.NewBoard(machine.BoardConfig{
		VCPUs: w.spec.VCPUs, Memory: w.spec.MemoryBytes, Backing: deviceMemory{w}, Console: homeConsole{w.home.Load()},
		Signal: w.signalLinux, Event: w.linuxEvent,
	})
	if err := w.addLinuxDevices(board, disks); err != nil {
		return errors.Join(err, board.Close())
	}
	w.linux.mu.Lock()
	w.linux.board = board
	w.linux.mu.Unlock()
	h := w.home.Load()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.machine = w.linux.devices
	return nil
}

// freshProcessors makes all vCPUs what they were before they ever ran.
func (w *Worker) freshProcessors() error {
	for i, v := range w.vcpus {
		if v.seat != nil {
			if err := v.seat.Reset(); err != nil {
				return err
			}
			continue
		}
		if err := v.cpu.Complete(); err != nil {
			return err
		}
		if err := w.linux.fresh[i].Restore(v.cpu); err != nil {
			return err
		}
	}
	return nil
}

// restDevices puts the devices into their power-on state, before memory is cleared for a new boot: what they had under way ends.
func (g *linuxGuest) restDevices() {
	if board := g.devices(); board != nil {
		board.Reset()
	}
}

// linuxEvent does what the guest asked of its machine, on the thread of the vCPU that did, which enters the guest no more in this boot.
func (w *Worker) linuxEvent(e platform.Event) {
	switch e {
	case platform.PowerOff:
		if h := w.home.Load(); h != nil { // else it goes back to a checkpoint, and will switch itself off again
			h.switchOff()
		}
	case platform.Reset:
		w.crash(errors.New("the guest reset its machine"), "")
	}
}

// writeKernel writes the kernel into fresh memory and puts the boot vCPU, which is not in the guest, at its entry. All other vCPUs wait, in
// KVM, for the guest to start them.
func (w *Worker) writeKernel() error {
	from := &loader{deviceMemory: deviceMemory{w}}
	defer from.close()
	c := linux.Config{Memory: w.spec.MemoryBytes, VCPUs: w.spec.VCPUs, Cmdline: w.spec.Linux.Cmdline}
	var err error
	if c.Kernel, err = from.read(w.spec.PayloadPath); err != nil {
		return err
	}
	if path := w.spec.Linux.InitrdPath; path != "" {
		if c.Initrd, err = from.read(path); err != nil {
			return err
		}
	}
	boot := w.vcpus[0].cpu
	if c, err = machine.WithTSC(c, boot); err != nil {
		return err
	}
	image, err := linux.Load(c)
	if err != nil {
		return err
	}
	if err := machine.WriteImage(image, from, w.spec.MemoryBytes); err != nil {
		return err
	}
	return machine.Enter(boot, image.Entry)
}

// optionBalloon gives a Linux machine a balloon, "on".
const optionBalloon = "balloon"

func (w *Worker) addLinuxDevices(board *machine.Board, disks *disks) error {
	if err := board.AddEntropy(); err != nil {
		return err
	}
	if err := disks.addTo(board, w.cached); err != nil {
		return err
	}
	if len(w.spec.Disks) > 0 {
		if err := w.haveDisks(w.home.Load(), disks); err != nil {
			return err
		}
	}
	if err := w.addNets(board); err != nil {
		return err
	}
	if w.spec.Options[optionBalloon] != "on" {
		return nil
	}
	return board.AddBalloon()
}

func (w *Worker) signalLinux(addr uint64, data uint32) {
	if w.isSpanned() {
		w.linux.span.interrupts.Signal(addr, data)
		return
	}
	if _, err := w.vm.SignalMSI(addr, data); err != nil {
		w.fail(err)
	}
}

// beginLinux is called by a vCPU at the begin of each of its lives.
func (w *Worker) beginLinux(v *vcpu, life uint64) error {
	if !w.atHome() {
		return w.beginFar(v, life)
	}
	_, err := w.home.Load().origin(w.ctx, v.cpu.ID()) // waits for the image
	return err
}

// handleLinux acts on one exit of a Linux machine's vCPU.
func (w *Worker) handleLinux(v *vcpu, exit kvm.Exit) error {
	known, err := machine.Dispatch(v.cpu, exit, w.accessor(v))
	switch {
	case err != nil:
		return err
	case !known && exit.Reason == kvm.Shutdown:
		w.crash(fmt.Errorf("vCPU %d: triple fault", v.cpu.ID()), v.cpu.Dump()) // a processor that does so resets its machine
	case !known:
		return fmt.Errorf("guest failed: %s", exit)
	}
	if h := w.home.Load(); h != nil && h.off.Load() {
		return errEnded
	}
	return nil
}

func (g *linuxGuest) devices() *machine.Board {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.board
}

// typeLinux hands input to the serial port. A piece that comes again, on a new connection, is answered as before.
func (w *Worker) typeLinux(m wire.WorkerTyped) {
	var took wire.WorkerTook
	if g := w.linux; g != nil {
		g.mu.Lock()
		if g.typed.Seq != m.Seq && g.board != nil {
			g.typed = wire.WorkerTook{Seq: m.Seq, Bytes: g.board.Serial.Receive(m.Data)}
		}
		took = g.typed
		g.mu.Unlock()
	}
	took.Seq = m.Seq
	w.control.send(wire.FromWorker{Took: &took})
}

// closeLinux ends the devices.
func (w *Worker) closeLinux() {
	if w.linux == nil {
		return
	}
	if w.isSpanned() {
		w.linux.span.interrupts.Close()
	}
	if err := w.linux.closeNet(); err != nil {
		w.log.Warn().Err(err).Msg("close network")
	}
	if board := w.linux.devices(); board != nil {
		if err := board.Close(); err != nil {
			w.log.Warn().Err(err).Msg("close devices")
		}
	}
}
