// Package boot turns a payload file into what a VM starts from: the bytes to write into guest memory and each vCPU's first registers. It is
// pure: it looks at bytes and numbers, and the caller writes.
//
// Guest-physical memory, which the guest sees at the same virtual addresses (user-accessible, writable):
//
//	0x0              not used
//	0x1000           argument string, NUL-terminated, at most 4095 bytes
//	0x2000           PML4, then PDPT, page directories, at most one page table (memory that ends inside a 2 MiB page)
//	...              stacks, 64 KiB each, as many as fit
//	0x200000         the payload: segments at their p_paddr
//	...
//	memory size      the end of what the guest is told it has (RDX)
//	                 (unmapped up to the next 2 MiB boundary)
//	hidden           tables and stacks that did not fit below 2 MiB: large memories, many vCPUs
//	physical size
//	...
//	0xc0000000       with Config.Window: where PCI devices answer, WindowBytes long; not cached
//
// The hidden area exists so that a payload may use all memory from its image to the size it is told: the loader's own never lies there.
// Pages outside memory are not mapped, and there is no IDT, so a payload that reaches outside its memory ends by a triple fault.
//
// All entries of the page tables have Accessed and Dirty set from the start, so that no processor, and no shadow paging, ever writes to them: on a VM
// that spans servers such a write would take the table's page away from everyone else.
package boot

import (
	"fmt"
	"io"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// Where the loader's own things lie, and limits.
const (
	ArgsAddr      = 0x1000
	MaxArgsBytes  = 4095
	tablesAddr    = 0x2000
	ImageBase     = 0x200000 // lowest p_paddr of a payload
	StackBytes    = 64 << 10
	MaxVCPUs      = 1024
	MaxImageBytes = 256 << 20
	MinMemory     = ident.Bytes(4 << 20)
	MaxMemory     = ident.Bytes(256 << 30)

	largePage = 2 << 20
	gigabyte  = 1 << 30

	// WindowAddr and WindowBytes are where the memory of PCI devices lies.
	WindowAddr  = 0xc0000000
	WindowBytes = 16 << 20
)

// Config is what a payload is started with.
type Config struct {
	Memory ident.Bytes // what the guest is told it has: a multiple of 4 KiB, MinMemory to MaxMemory
	VCPUs  int         // 1 to MaxVCPUs
	Args   string      // no NUL, at most MaxArgsBytes
	Window bool        // the guest has PCI devices: their memory window is mapped, and memory must end below it
}

// Start is a vCPU's first registers. It converts to kvm.Start.
type Start struct {
	RIP, RSP           uint64
	RDI, RSI, RDX, RCX uint64
	CR3                uint64
}

// Chunk is bytes to write at a guest-physical address. What no chunk covers is zero.
type Chunk struct {
	Addr uint64
	Data []byte
}

// Layout is a payload placed in memory.
type Layout struct {
	Physical ident.Bytes // size of the guest-physical memory that the VM must have: PhysicalSize of the same numbers
	Chunks   []Chunk     // in rising order of address, without overlap
	Starts   []Start     // one for each vCPU
}

// PhysicalSize is how much guest-physical memory a VM needs that shows memory to a payload on vcpus vCPUs: memory itself, unless the
// loader's tables and stacks do not fit below 2 MiB. Every part of a VM must make its RAM of this size.
func PhysicalSize(memory ident.Bytes, vcpus int, window bool) (ident.Bytes, error) {
	m, err := place(memory, vcpus, window)
	if err != nil {
		return 0, err
	}
	return m.physical, nil
}

// Load checks a payload file and places it. Errors say what is wrong with which segment or number; they are the user's to mend. The
// chunks' data may share memory with file.
func Load(file []byte, c Config) (*Layout, error) {
	if err := checkArgs(c.Args); err != nil {
		return nil, err
	}
	m, err := place(c.Memory, c.VCPUs, c.Window)
	if err != nil {
		return nil, err
	}
	img, err := parseELF(file)
	if err != nil {
		return nil, err
	}
	if err := img.check(c.Memory); err != nil {
		return nil, err
	}
	l := &Layout{Physical: m.physical}
	if c.Args != "" {
		l.Chunks = append(l.Chunks, Chunk{ArgsAddr, append([]byte(c.Args), 0)})
	}
	low, high := m.tables(c.Memory)
	l.Chunks = append(l.Chunks, low...)
	for _, s := range img.byAddress() {
		if len(s.data) > 0 {
			l.Chunks = append(l.Chunks, Chunk{s.addr, s.data})
		}
	}
	l.Chunks = append(l.Chunks, high...)
	for i := range c.VCPUs {
		l.Starts = append(l.Starts, Start{
			RIP: img.entry, RSP: m.stackTop(i), CR3: tablesAddr,
			RDI: uint64(i), RSI: uint64(c.VCPUs), RDX: uint64(c.Memory), RCX: ArgsAddr,
		})
	}
	return l, nil
}

// Write writes the chunks into fresh guest memory.
func (l *Layout) Write(w io.WriterAt) error {
	for _, c := range l.Chunks {
		if _, err := w.WriteAt(c.Data, int64(c.Addr)); err != nil {
			return fmt.Errorf("load %d bytes at 0x%x: %w", len(c.Data), c.Addr, err)
		}
	}
	return nil
}

func checkArgs(args string) error {
	if len(args) > MaxArgsBytes {
		return fmt.Errorf("payload arguments are %d bytes long, at most %d fit", len(args), MaxArgsBytes)
	}
	if i := strings.IndexByte(args, 0); i >= 0 {
		return fmt.Errorf("payload arguments hold a NUL byte at offset %d", i)
	}
	return nil
}
