package machine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
)

// startPoll is how often a stand-in that waits looks whether the guest has started its vCPU. A kernel gives a processor seconds to come up.
const startPoll = 2 * time.Millisecond

// PartConfig is what one part of a machine that spans servers is made of.
type PartConfig struct {
	Memory  ident.Bytes
	RAMAddr uintptr // where RAM lies in this process
	VCPUs   int
	Local   []ident.VCPU // those that run here; all others have stand-ins
	Model   linux.Model
	// KeepHalted: see kvm.VM.KeepHalted. Each vCPU and each stand-in then needs a processor of its own.
	KeepHalted bool

	// Devices carries out accesses: the board at home, the way to it elsewhere.
	Devices Accessor
	// Forward sends an interrupt to the part where a vCPU runs, which calls Deliver. Messages to one vCPU must stay in order.
	Forward func(to ident.VCPU, m Message) error
	// End is told, once, that a vCPU of this part cannot go on.
	End func(Outcome)
}

// Part is the processors of one part of a machine: those that run here, and stand-ins for the others.
type Part struct {
	config PartConfig
	vm     *kvm.VM
	cpus   []*kvm.VCPU // by number
	area   []byte      // of the stand-ins' code; nil without stand-ins
	gate   *gate
	ended  sync.WaitGroup
	once   sync.Once
}

// NewPart makes a part's KVM VM and vCPUs. The caller enters the boot vCPU into its kernel, if it is here, before Start.
func NewPart(system *kvm.System, c PartConfig) (*Part, error) {
	p := &Part{config: c, gate: newGate()}
	if err := p.build(system); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Part) build(system *kvm.System) error {
	var err error
	if p.vm, err = system.CreateVM(); err != nil {
		return err
	}
	if err := SetUpVM(p.vm, p.config.Memory, p.config.RAMAddr); err != nil {
		return err
	}
	if len(p.config.Local) < p.config.VCPUs {
		if p.config.KeepHalted {
			if err := p.vm.KeepHalted(); err != nil {
				return err
			}
		}
		if p.area, err = unix.Mmap(-1, 0, StandInBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
			return fmt.Errorf("memory of stand-ins: %w", err)
		}
		copy(p.area, standInArea())
		if err := p.vm.SetMemory(standInSlot, linux.StandInAddr, StandInBytes, kvm.AddressOf(p.area)); err != nil {
			return err
		}
	}
	for i := range p.config.VCPUs {
		cpu, err := NewVCPU(system, p.vm, ident.VCPU(i), p.config.VCPUs, p.config.Model)
		if err != nil {
			return err
		}
		p.cpus = append(p.cpus, cpu)
	}
	if !p.IsLocal(0) {
		return listen(p.cpus[0]) // the boot vCPU runs from the start; all others wait for the guest to start them
	}
	// KVM's map of local APICs misses the vCPU that was created last until something changes in one.
	lapic, err := p.cpus[0].LAPIC()
	if err != nil {
		return err
	}
	return p.cpus[0].SetLAPIC(lapic)
}

// VCPU returns the vCPU, or its stand-in.
func (p *Part) VCPU(id ident.VCPU) *kvm.VCPU { return p.cpus[id] }

// IsLocal tells whether a vCPU runs here.
func (p *Part) IsLocal(id ident.VCPU) bool { return slices.Contains(p.config.Local, id) }

// Signal delivers a message-signalled interrupt of a device: to a vCPU here, or to its stand-in, which forwards it.
func (p *Part) Signal(addr uint64, data uint32) {
	if _, err := p.vm.SignalMSI(addr, data); err != nil {
		p.end(Outcome{Kind: Failed, Reason: err.Error()})
	}
}

// Deliver gives an interrupt, which another part forwarded, to a vCPU that runs here.
func (p *Part) Deliver(to ident.VCPU, m Message) error {
	if !p.IsLocal(to) {
		return fmt.Errorf("interrupt 0x%x for vCPU %d, which does not run here", uint16(m), to)
	}
	const messageBase = 0xfee00000
	p.Signal(messageBase|uint64(to)<<12, uint32(m))
	return nil
}

// Start lets the vCPUs run.
func (p *Part) Start() {
	p.ended.Add(len(p.cpus))
	for _, cpu := range p.cpus {
		if p.IsLocal(cpu.ID()) {
			go p.run(cpu)
		} else {
			go p.standIn(cpu)
		}
	}
	p.gate.open()
}

// run is the life of a vCPU that runs here.
func (p *Part) run(cpu *kvm.VCPU) {
	defer p.ended.Done()
	cpu.Bind()
	defer cpu.Unbind()
	p.gate.join(cpu)
	defer p.gate.leave()
	for p.gate.enter(cpu) {
		if o := p.step(cpu); o != nil {
			p.end(*o)
		}
	}
}

// step runs a vCPU to its next exit and acts on it; it returns how the machine ends, if it does.
func (p *Part) step(cpu *kvm.VCPU) *Outcome {
	exit, err := cpu.Run()
	if err == nil && exit.Reason == kvm.Interrupted {
		return nil
	}
	var known bool
	if err == nil {
		known, err = Dispatch(cpu, exit, p.config.Devices)
	}
	switch {
	case err != nil:
		return &Outcome{Kind: Failed, Reason: fmt.Sprintf("vCPU %d: %v", cpu.ID(), err), Registers: cpu.Dump()}
	case known:
		return nil
	case exit.Reason == kvm.Shutdown:
		return &Outcome{Kind: Faulted, Reason: fmt.Sprintf("vCPU %d: triple fault", cpu.ID()), Registers: cpu.Dump()}
	}
	return &Outcome{Kind: Failed, Reason: fmt.Sprintf("vCPU %d: %s", cpu.ID(), exit), Registers: cpu.Dump()}
}

// standIn is the life of a stand-in.
func (p *Part) standIn(cpu *kvm.VCPU) {
	defer p.ended.Done()
	cpu.Bind()
	defer cpu.Unbind()
	p.gate.join(cpu)
	defer p.gate.leave()
	if err := p.serveStandIn(cpu); err != nil {
		p.end(Outcome{Kind: Failed, Reason: fmt.Sprintf("stand-in of vCPU %d: %v", cpu.ID(), err), Registers: cpu.Dump()})
	}
}

func (p *Part) serveStandIn(cpu *kvm.VCPU) error {
	if cpu.ID() != 0 {
		if ok, err := p.forwardStart(cpu); !ok || err != nil {
			return err
		}
	}
	for p.gate.enter(cpu) {
		exit, err := cpu.Run()
		switch {
		case err != nil:
			return err
		case exit.Reason == kvm.Interrupted:
		case exit.Reason == kvm.IO && exit.Port == standInPort && exit.Write:
			m := Message(exit.Data & 0xff)
			if m == vectorNMI {
				m = deliverNMI
			}
			if err := p.config.Forward(cpu.ID(), m); err != nil {
				return err
			}
		default:
			return errors.New(exit.String())
		}
	}
	return nil
}

// forwardStart waits for the guest to start the vCPU and forwards that; false means that the machine has ended before. The stand-in listens
// before the real vCPU knows that it is started, so that nothing is lost that others send to that.
func (p *Part) forwardStart(cpu *kvm.VCPU) (bool, error) {
	start, err := waitStart(cpu, func() bool {
		time.Sleep(startPoll)
		return p.gate.enter(cpu)
	})
	if err != nil || start == nil {
		return false, err
	}
	if err := listen(cpu); err != nil {
		return false, err
	}
	for _, m := range start {
		if err := p.config.Forward(cpu.ID(), m); err != nil {
			return false, err
		}
	}
	return true, nil
}

// Stop ends the part's vCPUs.
func (p *Part) Stop() { p.gate.stop() }

func (p *Part) end(o Outcome) {
	p.gate.stop()
	p.once.Do(func() { p.config.End(o) })
}

// Close frees everything; vCPUs that run are stopped.
func (p *Part) Close() error {
	p.gate.stop()
	p.ended.Wait()
	var errs []error
	for _, cpu := range p.cpus {
		errs = append(errs, cpu.Close())
	}
	if p.vm != nil {
		errs = append(errs, p.vm.Close())
	}
	if p.area != nil {
		errs = append(errs, unix.Munmap(p.area))
	}
	return errors.Join(errs...)
}
