package machine

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
)

// Processor is the state of a vCPU with its local APIC.
type Processor struct {
	cpu   kvm.VCPUState
	lapic kvm.LAPIC
}

// CaptureProcessor captures a vCPU that is not in the guest and has no exit half done.
func CaptureProcessor(cpu *kvm.VCPU) (*Processor, error) {
	state, err := cpu.State()
	if err != nil {
		return nil, err
	}
	lapic, err := cpu.LAPIC()
	if err != nil {
		return nil, err
	}
	return &Processor{*state, *lapic}, nil
}

// SetTSC replaces the counter that was captured: a machine that was captured while it stood still has not seen that time pass.
func (p *Processor) SetTSC(value uint64) { p.cpu.SetTSC(value) }

// Restore makes cpu, which is not in the guest, what the captured one was. Registers come before the local APIC, whose mode is among them;
// the timer's deadline comes after it, as the APIC's timer mode decides whether it counts.
func (p *Processor) Restore(cpu *kvm.VCPU) error {
	if err := cpu.SetState(&p.cpu); err != nil {
		return err
	}
	if err := cpu.SetLAPIC(&p.lapic); err != nil {
		return err
	}
	if err := cpu.SetMPState(p.cpu.MP.State); err != nil {
		return err
	}
	return cpu.RestoreDeadline(&p.cpu)
}

// processorVersion is of the encoding of a Processor.
const processorVersion = 1

// MarshalBinary encodes the state: a version, the local APIC, the vCPU.
func (p *Processor) MarshalBinary() ([]byte, error) {
	cpu, err := p.cpu.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return append(append([]byte{processorVersion}, p.lapic[:]...), cpu...), nil
}

// UnmarshalBinary decodes a state, which may come from another host.
func (p *Processor) UnmarshalBinary(b []byte) error {
	if len(b) <= 1+len(p.lapic) || b[0] != processorVersion {
		return fmt.Errorf("processor state of %d bytes is not of version %d", len(b), processorVersion)
	}
	copy(p.lapic[:], b[1:])
	return p.cpu.UnmarshalBinary(b[1+len(p.lapic):])
}

// Enter sets a fresh boot vCPU to a kernel's entry.
func Enter(cpu *kvm.VCPU, e linux.Entry) error {
	s, err := cpu.Sregs()
	if err != nil {
		return err
	}
	const (
		protectedMode = 1 << 0
		extension     = 1 << 4
		paging        = 1 << 31
		physicalAddr  = 1 << 5 // CR4.PAE
		longMode      = 1<<8 | 1<<10
	)
	code := gokvm.Segment{Selector: 0x10, Limit: 0xffffffff, Typ: 11, Present: 1, DB: 1, S: 1, G: 1}
	data := gokvm.Segment{Selector: 0x18, Limit: 0xffffffff, Typ: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.CR0, s.CR4 = protectedMode|extension, 0
	switch e.Mode {
	case linux.Protected32:
	case linux.Long64:
		code.DB, code.L = 0, 1
		s.CR0, s.CR3, s.CR4, s.EFER = protectedMode|extension|paging, e.CR3, physicalAddr, longMode
	default:
		return fmt.Errorf("enter kernel: unknown mode %d", e.Mode)
	}
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = code, data, data, data, data, data
	s.TR = gokvm.Segment{Limit: 0x67, Typ: 11, Present: 1}
	s.GDT.Base, s.GDT.Limit = e.GDT, 0x1f
	if err := cpu.SetSregs(s); err != nil {
		return err
	}
	const alwaysOne = 2
	return cpu.SetRegs(gokvm.Regs{RIP: e.RIP, RBX: e.RBX, RSI: e.RSI, RFLAGS: alwaysOne})
}
