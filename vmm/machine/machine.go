package machine

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/platform"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// Config is what a whole machine on one server is made of.
type Config struct {
	Linux linux.Config
	Model linux.Model
	Board BoardConfig // VCPUs, Memory, Backing, Signal and Event are filled in
	// Restart decides what a reset by the guest does: true restarts it in place, false ends it.
	Restart bool
	// Devices adds devices to the board before the kernel is loaded; it may be nil.
	Devices func(*Board) error
}

// OutcomeKind says how a machine ended.
type OutcomeKind uint8

// The ends.
const (
	PoweredOff OutcomeKind = iota + 1
	WasReset               // and was not to be restarted
	Faulted                // triple fault
	Failed                 // KVM could not go on, or a device's host side
	Stopped                // by Stop
)

// Outcome is how a machine ended.
type Outcome struct {
	Kind      OutcomeKind
	Reason    string
	Registers string // of the vCPU that failed
	Resets    int    // restarts in place before
}

// Machine is a Linux machine all of whose vCPUs run on this server.
type Machine struct {
	Board *Board

	config Config
	vm     *kvm.VM
	ram    *ram.RAM
	cpus   []*kvm.VCPU
	fresh  []*Processor // of each vCPU, before it ever ran
	gate   *gate
	done   chan struct{}
	ended  sync.WaitGroup

	mu      sync.Mutex // protects outcome and resets
	outcome *Outcome
	resets  int
}

// New makes a machine and loads its kernel. Start lets it run.
func New(system *kvm.System, c Config) (*Machine, error) {
	m := &Machine{config: c, gate: newGate(), done: make(chan struct{})}
	if err := m.build(system); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) build(system *kvm.System) error {
	var err error
	if m.ram, err = ram.New(m.config.Linux.Memory); err != nil {
		return err
	}
	if m.vm, err = system.CreateVM(); err != nil {
		return err
	}
	if err := SetUpVM(m.vm, m.config.Linux.Memory, m.ram.GuestAddr()); err != nil {
		return err
	}
	for i := range m.config.Linux.VCPUs {
		cpu, err := NewVCPU(system, m.vm, ident.VCPU(i), m.config.Linux.VCPUs, m.config.Model)
		if err != nil {
			return err
		}
		m.cpus = append(m.cpus, cpu)
		state, err := CaptureProcessor(cpu)
		if err != nil {
			return err
		}
		m.fresh = append(m.fresh, state)
	}
	b := m.config.Board
	b.VCPUs, b.Memory, b.Backing, b.Event = m.config.Linux.VCPUs, m.config.Linux.Memory, m.ram, m.event
	b.Signal = func(addr uint64, data uint32) {
		if _, err := m.vm.SignalMSI(addr, data); err != nil {
			m.end(Outcome{Kind: Failed, Reason: err.Error()})
		}
	}
	m.Board = NewBoard(b)
	if m.config.Devices != nil {
		if err := m.config.Devices(m.Board); err != nil {
			return err
		}
	}
	return m.load()
}

// SetUpVM prepares a fresh KVM VM for a Linux machine: local APICs and memory slots. ramAddr is where RAM of that size lies in this process.
func SetUpVM(vm *kvm.VM, memory ident.Bytes, ramAddr uintptr) error {
	if err := vm.SetHidden(linux.HiddenAddr); err != nil {
		return err
	}
	if err := vm.EnableAPICs(); err != nil {
		return err
	}
	return setMemory(vm, memory, ramAddr)
}

func setMemory(vm *kvm.VM, memory ident.Bytes, ramAddr uintptr) error {
	for i, r := range linux.RAM(memory) {
		if err := vm.SetMemory(uint32(i), r.Addr, ident.Bytes(r.Size), ramAddr+uintptr(r.Offset)); err != nil {
			return err
		}
	}
	return nil
}

// DirtyLogs are those of the memory that setMemory gave the VM.
func DirtyLogs(vm *kvm.VM, memory ident.Bytes, ramAddr uintptr) []*kvm.DirtyLog {
	var logs []*kvm.DirtyLog
	for i, r := range linux.RAM(memory) {
		logs = append(logs, vm.NewDirtyLog(uint32(i), r.Addr, ident.Bytes(r.Size), ramAddr+uintptr(r.Offset), ident.PageNo(r.Offset>>ident.PageShift)))
	}
	return logs
}

// NewVCPU makes a vCPU of a Linux machine, with its CPUID.
func NewVCPU(system *kvm.System, vm *kvm.VM, id ident.VCPU, vcpus int, model linux.Model) (*kvm.VCPU, error) {
	return newVCPU(system, vm, model, linux.Topology{VCPU: int(id), VCPUs: vcpus, TSCDeadline: system.HasTSCDeadline()})
}

func newVCPU(system *kvm.System, vm *kvm.VM, model linux.Model, t linux.Topology) (*kvm.VCPU, error) {
	cpuid, err := linux.CPUID(system.SupportedCPUID(), model, t)
	if err != nil {
		return nil, err
	}
	cpu, err := vm.CreateVCPU(ident.VCPU(t.VCPU))
	if err != nil {
		return nil, err
	}
	if err := cpu.SetCPUID(cpuid); err != nil {
		cpu.Close()
		return nil, err
	}
	return cpu, nil
}

// load writes the kernel into fresh memory and sets the boot vCPU to its entry.
func (m *Machine) load() error {
	c, err := WithTSC(m.config.Linux, m.cpus[0])
	if err != nil {
		return err
	}
	image, err := linux.Load(c)
	if err != nil {
		return err
	}
	if err := WriteImage(image, m.ram, m.config.Linux.Memory); err != nil {
		return err
	}
	return Enter(m.cpus[0], image.Entry)
}

// WithTSC tells the kernel the frequency of its time stamp counter. Without a paravirtual clock it would have to measure it, which takes long,
// is not exact, and fails where an access to a timer's port takes longer than the kernel thinks a system management interrupt does.
func WithTSC(c linux.Config, cpu *kvm.VCPU) (linux.Config, error) {
	const option = "tsc_early_khz="
	if strings.Contains(c.Cmdline, option) {
		return c, nil
	}
	khz, err := cpu.TSCKHz()
	if err != nil {
		return c, err
	}
	c.Cmdline = strings.TrimLeft(fmt.Sprintf("%s %s%d", c.Cmdline, option, khz), " ")
	return c, nil
}

// WriteImage writes a kernel into fresh memory.
func WriteImage(image *linux.Image, backing Backing, size ident.Bytes) error {
	memory := newMemory(backing, size)
	for _, c := range image.Chunks {
		if _, err := memory.WriteAt(c.Data, int64(c.Addr)); err != nil {
			return fmt.Errorf("load %d bytes at 0x%x: %w", len(c.Data), c.Addr, err)
		}
	}
	return nil
}

// Start lets the vCPUs run.
func (m *Machine) Start() {
	m.ended.Add(len(m.cpus))
	for _, cpu := range m.cpus {
		go m.run(cpu)
	}
	m.gate.open()
}

// run is the life of a vCPU's thread.
func (m *Machine) run(cpu *kvm.VCPU) {
	defer m.ended.Done()
	cpu.Bind()
	defer cpu.Unbind()
	m.gate.join(cpu)
	defer m.gate.leave()
	for m.gate.enter(cpu) {
		exit, err := cpu.Run()
		if err == nil && exit.Reason == kvm.Interrupted {
			continue
		}
		var known bool
		if err == nil {
			known, err = Dispatch(cpu, exit, m.Board)
		}
		switch {
		case err != nil:
			m.fail(cpu, err.Error())
		case known:
		case exit.Reason == kvm.Shutdown && m.config.Restart:
			m.event(platform.Reset) // a processor that triple-faults resets its machine
		case exit.Reason == kvm.Shutdown:
			m.end(Outcome{Kind: Faulted, Reason: fmt.Sprintf("vCPU %d: triple fault", cpu.ID()), Registers: cpu.Dump()})
		default:
			m.fail(cpu, exit.String())
		}
	}
}

func (m *Machine) fail(cpu *kvm.VCPU, reason string) {
	m.end(Outcome{Kind: Failed, Reason: fmt.Sprintf("vCPU %d: %s", cpu.ID(), reason), Registers: cpu.Dump()})
}

// event handles what the guest asked of the machine, on a vCPU's thread, which must not go on as if nothing had happened.
func (m *Machine) event(e platform.Event) {
	switch {
	case e == platform.PowerOff:
		m.end(Outcome{Kind: PoweredOff, Reason: "the guest switched the machine off"})
	case e == platform.Reset && m.config.Restart:
		m.gate.hold()
		m.ended.Add(1) // Close waits for it as for the vCPUs
		go m.restart()
	case e == platform.Reset:
		m.end(Outcome{Kind: WasReset, Reason: "the guest reset the machine"})
	}
}

// restart makes the machine as new, once all its vCPUs are out of the guest.
func (m *Machine) restart() {
	defer m.ended.Done()
	if !m.gate.waitHeld() {
		return
	}
	if err := m.renew(); err != nil {
		m.end(Outcome{Kind: Failed, Reason: fmt.Sprintf("restart: %v", err)})
		return
	}
	m.mu.Lock()
	m.resets++
	m.mu.Unlock()
	m.gate.open()
}

func (m *Machine) renew() error {
	m.Board.Reset()
	if err := m.ram.Zero(0, m.ram.Pages()); err != nil {
		return err
	}
	for i, cpu := range m.cpus {
		if err := m.fresh[i].Restore(cpu); err != nil {
			return err
		}
	}
	return m.load()
}

// Pause stops the vCPUs and waits until all are out of the guest. Devices finish what they have.
func (m *Machine) Pause() bool {
	m.gate.hold()
	return m.gate.waitHeld()
}

// Resume lets them go on.
func (m *Machine) Resume() { m.gate.open() }

// Stop ends the machine from outside.
func (m *Machine) Stop() { m.end(Outcome{Kind: Stopped, Reason: "stopped"}) }

// end ends the machine; the first end counts.
func (m *Machine) end(o Outcome) {
	m.mu.Lock()
	first := m.outcome == nil
	if first {
		o.Resets = m.resets
		m.outcome = &o
		close(m.done)
	}
	m.mu.Unlock()
	m.gate.stop()
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Wait waits for the end.
func (m *Machine) Wait() Outcome {
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	return *m.outcome
}

// Close frees everything. A machine that runs is stopped.
func (m *Machine) Close() error {
	m.end(Outcome{Kind: Stopped, Reason: "closed"})
	m.ended.Wait()
	var errs []error
	if m.Board != nil {
		errs = append(errs, m.Board.Close())
	}
	for _, cpu := range m.cpus {
		errs = append(errs, cpu.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.ram != nil {
		errs = append(errs, m.ram.Close())
	}
	return errors.Join(errs...)
}

// Dump describes the registers of all vCPUs, which it kicks out of the guest for that. It is for people who wonder why a guest hangs.
func (m *Machine) Dump() string {
	if !m.Pause() {
		return ""
	}
	defer m.Resume()
	var out string
	for _, cpu := range m.cpus {
		out += cpu.Dump()
	}
	return out
}
