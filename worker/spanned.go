package worker

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/wire"
)

// spanned is what a part of a Linux machine has that lies on several servers: local APICs outside KVM, and the way to the others'.
type spanned struct {
	interrupts *machine.Interrupts
	notes      *notes
	host       [bootIDBytes]byte           // this host's boot, by which parts on one host know each other
	clock      atomic.Pointer[clockOrigin] // which the vCPUs here count by, in this boot
}

const bootIDBytes = 36

// homeOfSpanned is the part that has the devices of a machine over several servers, which stays where it was created.
const homeOfSpanned = ident.Part(0)

// isSpanned tells whether this is a part of a Linux machine that lies on several servers.
func (w *Worker) isSpanned() bool { return w.linux != nil && w.linux.span != nil }

// setUpSpanned makes this part's processors.
func (w *Worker) setUpSpanned(system *kvm.System, memory *ram.RAM) error {
	if err := machine.SetUpSpanned(w.vm, w.spec.MemoryBytes, memory.GuestAddr()); err != nil {
		return err
	}
	s := &spanned{notes: newNotes(w)}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("which boot of this host it is: %w", err)
	}
	copy(s.host[:], strings.TrimSpace(string(id)))
	s.interrupts = machine.NewInterrupts(machine.InterruptsConfig{VCPUs: w.spec.VCPUs, Self: w.spec.Part, Forward: w.forward, Passed: w.passed, Renamed: w.renamed, Wake: w.wakeVCPU}, w.spec.LocalVCPUs)
	w.linux = &linuxGuest{system: system, span: s}
	if w.vcpus, err = w.newSeats(w.spec.LocalVCPUs); err != nil {
		return err
	}
	w.cutter.log = machine.DirtyLogs(w.vm, w.spec.MemoryBytes, memory.GuestAddr())
	if w.spec.Part != homeOfSpanned {
		return nil
	}
	return w.listenNet()
}

// newSeats makes vCPUs with local APICs outside KVM.
func (w *Worker) newSeats(ids []ident.VCPU) ([]*vcpu, error) {
	var all []*vcpu
	for _, id := range ids {
		cpu, err := machine.NewSpannedVCPU(w.linux.system, w.vm, id, w.spec.VCPUs, linux.Model(w.spec.Linux.CPU))
		if err != nil {
			return nil, err
		}
		seat, err := machine.NewSeat(cpu, w.linux.span.interrupts)
		if err != nil {
			return nil, err
		}
		all = append(all, &vcpu{cpu: cpu, seat: seat, wake: make(chan struct{}, 1)})
	}
	return all, nil
}

// wakeVCPU makes a vCPU of this part look at its local APIC.
func (w *Worker) wakeVCPU(id ident.VCPU) {
	if v := w.resident(id); v != nil {
		w.plane.kick(v)
		v.rouse()
	}
}

// runSeat lets a vCPU with a local APIC of ours run to its next exit, or wait until it has something to run.
func (w *Worker) runSeat(v *vcpu) error {
	run, err := v.seat.Enter()
	if err != nil {
		return err
	}
	if !run {
		v.queue.leave()
		w.rest(v)
		return nil
	}
	began := time.Now()
	v.inside.Store(true)
	w.spins.enters()
	exit, known, err := v.seat.Run()
	v.left(began)
	switch {
	case err != nil:
		return err
	case exit.Reason == kvm.Interrupted:
		return w.standBack(v)
	case known:
		return nil
	}
	return w.handleLinux(v, exit)
}

// rest keeps a halted vCPU, or one that was not started yet, out of the guest until its local APIC has something for it, or the guard wants it.
func (w *Worker) rest(v *vcpu) {
	w.yield()
	timer := time.NewTimer(leavesGang)
	defer timer.Stop()
	left := timer.C
	for {
		if life, ok := w.guard.enterIdle(v.life, &v.called); !ok || life != v.life || v.called.Load() || v.seat.Ready() || w.drill.wanted.Load() {
			return
		}
		select {
		case <-v.wake:
		case <-left:
			left = nil
			v.alarm.set(0)
			w.slices.idles(v, true)
			defer w.slices.idles(v, false)
		}
	}
}

// farBoard is the devices as a vCPU of another part than home reaches them.
type farBoard struct {
	w *Worker
	v *vcpu
}

// Do implements machine.Accessor.
func (b farBoard) Do(a machine.Access) (uint64, error) {
	return b.w.request(b.v, deviceRequest{op: opAccess, access: a})
}

// accessor is how a vCPU reaches the devices.
func (w *Worker) accessor(v *vcpu) machine.Accessor {
	if w.atHome() {
		return w.linux.devices()
	}
	return farBoard{w, v}
}

// clockOrigin is the time stamp counter that all vCPUs of a machine over several servers share, as home tells it.
type clockOrigin struct {
	host   [bootIDBytes]byte
	khz    uint32
	offset uint64 // to home's counter
}

const clockOriginBytes = bootIDBytes + 12

// originClock begins an origin that is an encoded clockOrigin.
const originClock = 4

func (c clockOrigin) encode() []byte {
	b := append(make([]byte, 0, 1+clockOriginBytes), originClock)
	b = append(b, c.host[:]...)
	b = binary.LittleEndian.AppendUint32(b, c.khz)
	return binary.LittleEndian.AppendUint64(b, c.offset)
}

func decodeClockOrigin(b []byte) (c clockOrigin, err error) {
	if len(b) != 1+clockOriginBytes || b[0] != originClock {
		return c, fmt.Errorf("home sent %d bytes that are no origin of a clock", len(b))
	}
	copy(c.host[:], b[1:])
	c.khz = binary.LittleEndian.Uint32(b[1+bootIDBytes:])
	c.offset = binary.LittleEndian.Uint64(b[1+bootIDBytes+4:])
	return c, nil
}

// clock is what home's vCPUs count by, and those of all others should.
func (w *Worker) clock() (c clockOrigin, err error) {
	cpu := w.vcpus[0].cpu
	c.host = w.linux.span.host
	if c.khz, err = cpu.TSCKHz(); err != nil {
		return c, err
	}
	c.offset, err = cpu.TSCOffset()
	return c, err
}

// linuxOrigins is what the vCPUs of a Linux machine begin with: the clock, if it lies on several servers.
func (w *Worker) linuxOrigins() ([][]byte, error) {
	all := make([][]byte, w.spec.VCPUs)
	if !w.isSpanned() {
		return all, nil
	}
	c, err := w.clock()
	if err != nil {
		return nil, err
	}
	w.linux.span.clock.Store(&c)
	for _, v := range w.vcpus {
		if err := v.cpu.SetTSCOffset(c.offset); err != nil {
			return nil, err
		}
	}
	for i := range all {
		all[i] = c.encode()
	}
	return all, nil
}

// beginFar makes a vCPU on another part than home as new, with home's clock.
func (w *Worker) beginFar(v *vcpu, life uint64) error {
	origin, err := w.askHome(life, deviceRequest{vcpu: v.cpu.ID(), op: opOrigin}, &v.asking)
	if err != nil {
		return err
	}
	c, err := decodeClockOrigin(origin)
	if err != nil {
		return err
	}
	v.deviceSeq = 0
	if err := v.seat.Reset(); err != nil {
		return err
	}
	w.linux.span.clock.Store(&c)
	return w.setClock(v, c, life)
}

// tooFast is how far apart the frequencies of two servers' counters may be: in thousandths.
const tooFast = 1

func (w *Worker) setClock(v *vcpu, c clockOrigin, life uint64) error {
	khz, err := v.cpu.TSCKHz()
	if err != nil {
		return err
	}
	if diff := max(khz, c.khz) - min(khz, c.khz); uint64(diff)*1000 > uint64(c.khz)*tooFast {
		return fmt.Errorf("the time stamp counter of %s runs at %d kHz, that of the VM's home at %d: one Linux guest cannot lie on both", w.spec.ServerName, khz, c.khz)
	}
	if !w.atHome() && (c.host != w.linux.span.host || w.spec.Options["clock"] == "measured") { // the option is for tests
		return w.measureClock(v, life)
	}
	return v.cpu.SetTSCOffset(c.offset)
}

// restSpan begins the boot that an epoch begins, with the vCPUs where its members say: all are parked.
func (w *Worker) restSpan(m wire.WorkerMembers) {
	if w.isSpanned() {
		w.linux.span.notes.reset(m.Epoch)
		w.linux.span.interrupts.Reset(w.placement(m))
	}
}
