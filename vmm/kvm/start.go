package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/cellvisor/cellvisor/ident"
)

// Start is where and with what a payload's vCPU begins: see the payload ABI. Its fields are those of boot.Start, so that one converts to the other.
type Start struct {
	RIP, RSP           uint64
	RDI, RSI, RDX, RCX uint64
	CR3                uint64 // the page tables that the loader has built
}

// Register values of the payload ABI: 64-bit mode at CPL 3 with IOPL 3, interrupts off, SSE on.
const (
	startCR0    = 0x80050033 // PG AM WP NE ET MP PE
	startCR4    = 0x620      // PAE OSFXSR OSXMMEXCPT
	startEFER   = 0x501      // LMA LME SCE
	startRFLAGS = 0x3002     // IOPL 3, DF and IF clear, the bit that is always 1
)

// Start sets a fresh vCPU to the state in which the payload ABI begins. There is no IDT: any exception is a triple fault, hence Shutdown.
func (v *VCPU) Start(s Start) error {
	sregs, err := gokvm.GetSregs(uintptr(v.fd))
	v.args.sregs = sregs
	if err != nil {
		return fmt.Errorf("start vCPU %d: read its special registers: %w", v.id, err)
	}
	sregs.CR0, sregs.CR2, sregs.CR3, sregs.CR4, sregs.EFER = startCR0, 0, s.CR3, startCR4, startEFER
	sregs.CS = gokvm.Segment{Limit: 0xffffffff, Selector: 0x1b, Present: 1, Typ: 11, DPL: 3, S: 1, L: 1, G: 1}
	data := gokvm.Segment{Limit: 0xffffffff, Selector: 0x23, Present: 1, Typ: 3, DPL: 3, DB: 1, S: 1, G: 1}
	sregs.DS, sregs.ES, sregs.FS, sregs.GS, sregs.SS = data, data, data, data, data
	sregs.IDT, sregs.GDT = gokvm.Descriptor{}, gokvm.Descriptor{}
	if err := gokvm.SetSregs(uintptr(v.fd), sregs); err != nil {
		return fmt.Errorf("start vCPU %d: set its special registers: %w", v.id, err)
	}
	regs := &gokvm.Regs{RIP: s.RIP, RSP: s.RSP, RFLAGS: startRFLAGS, RDI: s.RDI, RSI: s.RSI, RDX: s.RDX, RCX: s.RCX}
	v.args.regs = regs
	if err := gokvm.SetRegs(uintptr(v.fd), regs); err != nil {
		return fmt.Errorf("start vCPU %d: set its registers: %w", v.id, err)
	}
	v.ioPrivilege = startRFLAGS & flagsIOPL
	return nil
}

// supportedCPUID asks what KVM can offer a guest on this host.
func supportedCPUID(fd int) (*gokvm.CPUID, error) {
	const maxEntries = 256
	c := &gokvm.CPUID{Nent: maxEntries, Entries: make([]gokvm.CPUIDEntry2, maxEntries)}
	if err := gokvm.GetSupportedCPUID(uintptr(fd), c); err != nil {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	return c, nil
}

// guestCPUID is the CPUID of vCPU id: KVM's, without the paravirtual leaves, and with the vCPU's own APIC ID.
func guestCPUID(supported *gokvm.CPUID, id ident.VCPU) *gokvm.CPUID {
	out := &gokvm.CPUID{}
	for _, e := range supported.Entries[:min(int(supported.Nent), len(supported.Entries))] {
		switch e.Function {
		case gokvm.CPUIDSignature, gokvm.CPUIDFeatures:
			continue
		case 0x1:
			e.Ebx = e.Ebx&0x00ffffff | uint32(id)<<24
		case 0xb, 0x1f:
			e.Edx = uint32(id)
		}
		out.Entries = append(out.Entries, e)
	}
	out.Nent = uint32(len(out.Entries))
	return out
}
