package kvm

import (
	"fmt"
	"strings"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Explain says in one line how the guest ended by a fatal exit, and where, for the reason of a failed VM. The dump comes apart.
func (v *VCPU) Explain(e Exit) string {
	text := fmt.Sprintf("vCPU %d: %s", v.id, e)
	regs, err := gokvm.GetRegs(uintptr(v.fd))
	v.args.regs = regs
	if err == nil {
		text += fmt.Sprintf(" at rip 0x%x", regs.RIP)
	}
	sregs, err := gokvm.GetSregs(uintptr(v.fd))
	v.args.sregs = sregs
	if e.Reason != Shutdown || err != nil || sregs.CR2 == 0 {
		return text
	}
	// A payload has no handlers: its first exception ends it. CR2 is of use if that was a page fault, and stays from the last one otherwise.
	text += fmt.Sprintf(", last page fault at 0x%x", sregs.CR2)
	v.args.translation = gokvm.Translation{LinearAddress: sregs.CR2}
	if err := gokvm.Translate(uintptr(v.fd), &v.args.translation); err == nil && v.args.translation.Valid == 0 {
		text += ", where it has no memory"
	}
	return text
}

// Dump describes the vCPU's registers as text, for the reason of a failed VM. It never fails: what cannot be read is said to be so.
func (v *VCPU) Dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vCPU %d:\n", v.id)
	regs, err := gokvm.GetRegs(uintptr(v.fd))
	v.args.regs = regs
	if err != nil {
		fmt.Fprintf(&b, "  registers: %v\n", err)
	} else {
		dumpRegs(&b, regs)
	}
	sregs, err := gokvm.GetSregs(uintptr(v.fd))
	v.args.sregs = sregs
	if err != nil {
		fmt.Fprintf(&b, "  special registers: %v\n", err)
	} else {
		dumpSregs(&b, sregs)
	}
	if err := gokvm.GetVCPUEvents(uintptr(v.fd), &v.args.events); err == nil {
		e := &v.args.events
		if e.E.Inject != 0 || e.E.Pending != 0 || e.TripleFault != 0 {
			fmt.Fprintf(&b, "  exception %d error 0x%x (injected %d pending %d) triple fault %d\n", e.E.Nr, e.E.ErrorCode, e.E.Inject, e.E.Pending, e.TripleFault)
		}
	}
	return b.String()
}

func dumpRegs(b *strings.Builder, r *gokvm.Regs) {
	fmt.Fprintf(b, "  rip %016x rsp %016x rflags %08x\n", r.RIP, r.RSP, r.RFLAGS)
	fmt.Fprintf(b, "  rax %016x rbx %016x rcx %016x rdx %016x\n", r.RAX, r.RBX, r.RCX, r.RDX)
	fmt.Fprintf(b, "  rsi %016x rdi %016x rbp %016x r8  %016x\n", r.RSI, r.RDI, r.RBP, r.R8)
	fmt.Fprintf(b, "  r9  %016x r10 %016x r11 %016x r12 %016x\n", r.R9, r.R10, r.R11, r.R12)
	fmt.Fprintf(b, "  r13 %016x r14 %016x r15 %016x\n", r.R13, r.R14, r.R15)
}

func dumpSregs(b *strings.Builder, s *gokvm.Sregs) {
	fmt.Fprintf(b, "  cr0 %08x cr2 %016x cr3 %016x cr4 %08x efer %x\n", s.CR0, s.CR2, s.CR3, s.CR4, s.EFER)
	fmt.Fprintf(b, "  cs %04x cpl %d ss %04x ds %04x fs base %x gs base %x\n", s.CS.Selector, s.CS.DPL, s.SS.Selector, s.DS.Selector, s.FS.Base, s.GS.Base)
}
