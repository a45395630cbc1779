package machine

import (
	"encoding/binary"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
)

// A stand-in is a KVM vCPU that takes the place of one that runs on another part, so that what is sent to it here does not get lost: KVM drops
// an interrupt for an APIC ID that its VM does not have. It never runs guest code and never touches guest memory:
//
//	waiting ──INIT, SIPI──► listening
//
// While it waits, its thread asks KVM for its MP state, which settles INIT and SIPI without entering the guest; the start is forwarded, and
// the vCPU put into code of our own, in a memory slot that the guest is not told of. There it halts with interrupts on; each vector's entry
// reports its number by port I/O, which exits to the thread, which forwards it, and ends the interrupt.
//
// The code's area, one for all stand-ins of a part, by page:
//
//	0 PML4   1 PDPT   2 page directory   3 page table   4 GDT   5 IDT   6 entries   7 handlers   8… stacks
const (
	standInPort = 0xe6
	standInSlot = 8

	standInTable    = 3
	standInGDT      = 4
	standInIDT      = 5
	standInEntries  = 6
	standInHandlers = 7
	standInStacks   = 8

	// StandInBytes is the size of the area.
	StandInBytes = (standInStacks + linux.MaxVCPUs) * ident.PageSize

	vectors    = 256
	vectorNMI  = 2
	entryBytes = 16

	handlerEOI  = 0x00 // offsets in the page of handlers
	handlerNMI  = 0x40
	handlerIdle = 0x80
)

func standInPage(n int) uint64 { return linux.StandInAddr + uint64(n)*ident.PageSize }

// standInArea builds the area's contents.
func standInArea() []byte {
	b := make([]byte, StandInBytes)
	le := binary.LittleEndian
	const table = 0x63 // present, writable, accessed, dirty: no processor has anything to write here
	put := func(page int, index uint64, v uint64) { le.PutUint64(b[uint64(page)*ident.PageSize+8*index:], v) }
	const addr = uint64(linux.StandInAddr)
	put(0, addr>>39&511, standInPage(1)|table)
	put(1, addr>>30&511, standInPage(2)|table)
	put(2, addr>>21&511, standInPage(standInTable)|table)
	for i := range uint64(StandInBytes / ident.PageSize) {
		put(standInTable, addr>>12&511+i, (addr+i*ident.PageSize)|table)
	}
	put(standInGDT, 1, 0x00af9b000000ffff) // 64-bit code at 0x08
	for v := range vectors {
		at := standInPage(standInEntries) + uint64(v)*entryBytes
		const gate, code = 0x8e00, 0x08
		put(standInIDT, uint64(2*v), at&0xffff|code<<16|gate<<32|at>>16<<48)
		put(standInIDT, uint64(2*v+1), at>>32)
		copy(b[standInEntries*ident.PageSize+v*entryBytes:], standInEntry(v))
	}
	handlers := b[standInHandlers*ident.PageSize:]
	copy(handlers[handlerEOI:], []byte{
		0xe7, standInPort, // out port, eax
		0x51, 0x52, // push rcx; push rdx
		0xb9, 0x0b, 0x08, 0, 0, // mov ecx, 0x80b: the x2APIC's EOI register
		0x31, 0xc0, 0x31, 0xd2, // xor eax, eax; xor edx, edx
		0x0f, 0x30, // wrmsr
		0x5a, 0x59, 0x58, // pop rdx; pop rcx; pop rax
		0x48, 0xcf, // iretq
	})
	copy(handlers[handlerNMI:], []byte{0xe7, standInPort, 0x58, 0x48, 0xcf}) // out port, eax; pop rax; iretq
	copy(handlers[handlerIdle:], []byte{0xfb, 0xf4, 0xeb, 0xfc})             // sti; hlt; jmp back
	return b
}

// standInEntry is push rax; mov eax, vector; jmp handler.
func standInEntry(vector int) []byte {
	target := handlerEOI
	if vector == vectorNMI {
		target = handlerNMI
	}
	b := binary.LittleEndian.AppendUint32([]byte{0x50, 0xb8}, uint32(vector))
	b = append(b, 0xe9)
	next := vector*entryBytes + len(b) + 4
	return binary.LittleEndian.AppendUint32(b, uint32(ident.PageSize+target-next))
}

// listen puts a stand-in into its code, with an enabled local APIC in x2APIC mode. The physical destination mode that the guest uses finds it
// by its ID, whatever mode the real one's APIC is in.
func listen(cpu *kvm.VCPU) error {
	s, err := cpu.Sregs()
	if err != nil {
		return err
	}
	const (
		control0 = 0x80000011 // paging, extension type, protected mode
		control4 = 0x20       // PAE
		longMode = 0x500
		apicOn   = 1<<11 | 1<<10 // enabled, x2APIC
	)
	s.CR0, s.CR3, s.CR4, s.EFER = control0, standInPage(0), control4, longMode
	s.CS = gokvm.Segment{Selector: 0x08, Limit: 0xffffffff, Typ: 11, Present: 1, L: 1, S: 1, G: 1}
	data := gokvm.Segment{Limit: 0xffffffff, Typ: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = gokvm.Segment{Limit: 0x67, Typ: 11, Present: 1}
	s.GDT.Base, s.GDT.Limit = standInPage(standInGDT), 0x0f
	s.IDT.Base, s.IDT.Limit = standInPage(standInIDT), vectors*16-1
	s.ApicBase |= apicOn
	if err := cpu.SetSregs(s); err != nil {
		return err
	}
	lapic, err := cpu.LAPIC()
	if err != nil {
		return err
	}
	const regSpurious, enabled = 0xf0, 0x1ff
	binary.LittleEndian.PutUint32(lapic[regSpurious:], enabled)
	if err := cpu.SetLAPIC(lapic); err != nil {
		return err
	}
	stack := standInPage(standInStacks + int(cpu.ID()) + 1)
	const alwaysOne = 2
	if err := cpu.SetRegs(gokvm.Regs{RIP: standInPage(standInHandlers) + handlerIdle, RSP: stack, RFLAGS: alwaysOne}); err != nil {
		return err
	}
	return cpu.SetMPState(kvm.MPRunnable)
}

// Message is an interrupt for one vCPU, as the data word of a message-signalled interrupt: vector and delivery mode.
type Message uint16

// Delivery modes of a Message.
const (
	deliverNMI  Message = 4 << 8
	deliverINIT Message = 5 << 8
	deliverSIPI Message = 6 << 8
)

// waitStart waits, asking every so often, until the guest has started the vCPU that a waiting stand-in stands for, and returns what to send
// to the real one. ask is told to wait a little; it returns false to give up.
func waitStart(cpu *kvm.VCPU, ask func() bool) ([]Message, error) {
	for {
		state, err := cpu.MPState()
		if err != nil {
			return nil, err
		}
		if state == kvm.MPRunnable {
			break
		}
		if !ask() {
			return nil, nil
		}
	}
	s, err := cpu.Sregs()
	if err != nil {
		return nil, err
	}
	// KVM has put the start vector where a processor would: CS.base is the page's address.
	page := s.CS.Base >> 12
	if page > 0xff {
		return nil, fmt.Errorf("vCPU %d was started at 0x%x", cpu.ID(), s.CS.Base)
	}
	return []Message{deliverINIT, deliverSIPI | Message(page)}, nil
}
