package worker

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/platform"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// Options of a VM whose guest is a Linux kernel instead of a payload. Files are those of the home part's server.
const (
	optionKernel  = "linux.kernel"  // bzImage or vmlinux; its presence makes the VM a Linux machine
	optionInitrd  = "linux.initrd"  // initial RAM disk
	optionCmdline = "linux.cmdline" // kernel command line
	optionDisks   = "linux.disks"   // raw images, separated by colons
	optionCPU     = "linux.cpu"     // processor model, see linux.Model
)

// linuxGuest is what a worker has when its guest is a Linux machine: vCPUs with local APICs, and a board of devices whose serial port is the
// VM's console. It is a VM of one part.
type linuxGuest struct {
	board *machine.Board
	entry linux.Entry // of the boot vCPU; valid once home says that the image is loaded
}

func (w *Worker) isLinux() bool { return w.spec.Options[optionKernel] != "" }

// physicalSize is how much guest-physical memory the VM has.
func (w *Worker) physicalSize() (ident.Bytes, error) {
	if w.isLinux() {
		return w.spec.MemoryBytes, nil
	}
	return boot.PhysicalSize(w.spec.MemoryBytes, w.spec.VCPUs)
}

// setUpLinux makes the processors of a Linux machine.
func (w *Worker) setUpLinux(system *kvm.System, memory *ram.RAM) error {
	if len(w.spec.LocalVCPUs) < w.spec.VCPUs || w.spec.Standby {
		return errors.New("a Linux guest lives on one server: give it no --span and no --protect")
	}
	if err := machine.SetUpVM(w.vm, w.spec.MemoryBytes, memory.GuestAddr()); err != nil {
		return err
	}
	for _, id := range w.spec.LocalVCPUs {
		cpu, err := machine.NewVCPU(system, w.vm, id, w.spec.VCPUs, linux.Model(w.spec.Options[optionCPU]))
		if err != nil {
			return err
		}
		w.vcpus = append(w.vcpus, &vcpu{cpu: cpu, wake: make(chan struct{}, 1)})
	}
	w.linux = &linuxGuest{}
	return nil
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
	return len(b), nil
}

// loadLinux makes the board and writes the kernel into memory.
func (w *Worker) loadLinux() error {
	h, memory := w.home.Load(), w.plane.ram
	board := machine.NewBoard(machine.BoardConfig{
		VCPUs: w.spec.VCPUs, Memory: w.spec.MemoryBytes, Backing: memory, Console: homeConsole{h},
		Signal: w.signalLinux, Event: w.linuxEvent,
	})
	if err := w.addLinuxDevices(board); err != nil {
		return errors.Join(err, board.Close())
	}
	c := linux.Config{Memory: w.spec.MemoryBytes, VCPUs: w.spec.VCPUs, Cmdline: w.spec.Options[optionCmdline]}
	var err error
	if c.Kernel, err = os.ReadFile(w.spec.Options[optionKernel]); err != nil {
		return err
	}
	if path := w.spec.Options[optionInitrd]; path != "" {
		if c.Initrd, err = os.ReadFile(path); err != nil {
			return err
		}
	}
	if c, err = machine.WithTSC(c, w.vcpus[0].cpu); err != nil {
		return err
	}
	image, err := linux.Load(c)
	if err != nil {
		return err
	}
	if err := machine.WriteImage(image, memory, w.spec.MemoryBytes); err != nil {
		return err
	}
	w.linux.board, w.linux.entry = board, image.Entry
	h.setLoaded(make([][]byte, w.spec.VCPUs))
	return nil
}

func (w *Worker) addLinuxDevices(board *machine.Board) error {
	if err := board.AddEntropy(); err != nil {
		return err
	}
	for i, path := range strings.FieldsFunc(w.spec.Options[optionDisks], func(r rune) bool { return r == ':' }) {
		disk, err := virtio.OpenDisk(path, false)
		if err != nil {
			return err
		}
		if err := board.AddDisk(disk, fmt.Sprintf("disk%d", i), false); err != nil {
			return errors.Join(err, disk.Close())
		}
	}
	return nil
}

func (w *Worker) signalLinux(addr uint64, data uint32) {
	if _, err := w.vm.SignalMSI(addr, data); err != nil {
		w.fail(err)
	}
}

// linuxEvent ends the VM as its guest asked.
func (w *Worker) linuxEvent(e platform.Event) {
	if e == platform.PowerOff {
		w.guestExit(0)
		return
	}
	w.failGuest(fmt.Errorf("the guest asked for a %s", e), "")
}

// beginLinux puts a vCPU at its start: the boot vCPU at the kernel's entry; all others wait, in KVM, for the guest to start them.
func (w *Worker) beginLinux(v *vcpu) error {
	if _, err := w.home.Load().origin(w.ctx, v.cpu.ID()); err != nil {
		return err
	}
	if v.cpu.ID() != ident.VCPU(0) {
		return nil
	}
	return machine.Enter(v.cpu, w.linux.entry)
}

// handleLinux acts on one exit of a Linux machine's vCPU.
func (w *Worker) handleLinux(v *vcpu, exit kvm.Exit) error {
	known, err := machine.Dispatch(v.cpu, exit, w.linux.board)
	if known || err != nil {
		return err
	}
	return fmt.Errorf("guest failed: %s", exit)
}

// closeLinux ends the devices.
func (w *Worker) closeLinux() {
	if w.linux != nil && w.linux.board != nil {
		if err := w.linux.board.Close(); err != nil {
			w.log.Warn().Err(err).Msg("close devices")
		}
	}
}
