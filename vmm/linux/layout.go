package linux

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// Fixed guest-physical addresses: see the package comment.
const (
	gdtAddr        = 0x500
	pvhInfoAddr    = 0x6000
	zeroPageAddr   = 0x7000
	pageTablesAddr = 0x9000
	cmdlineAddr    = 0x20000
	lowMemoryEnd   = 0x9fc00
	acpiAddr       = 0xe0000
	resetVector    = 0xffff0 // in what is reserved from acpiAddr on
	highMemory     = 0x100000

	// LowEnd is where RAM below 4 GiB ends at the latest and PCI memory begins; what does not fit below goes on at HighStart.
	LowEnd = 0xc0000000
	// PCIEnd is the end of the PCI memory window that begins at LowEnd.
	PCIEnd = 0xfe000000
	// HighStart is where memory goes on that does not fit below LowEnd.
	HighStart = 0x1_0000_0000
	// IOAPICAddr is the I/O APIC's register page.
	IOAPICAddr = 0xfec00000
	// HiddenAddr is where KVM may keep the pages that it needs itself.
	HiddenAddr = 0xfffbc000
)

// Limits of a Linux machine.
const (
	MaxVCPUs        = 64
	MaxCmdlineBytes = 2047 // COMMAND_LINE_SIZE of x86, less the NUL
	MinMemory       = 64 * ident.MiB
	MaxMemory       = 1 << 40
)

// Range is a span of guest-physical memory and the offset of its first byte in the VM's RAM.
type Range struct {
	Addr, Size, Offset uint64
}

// RAM tells where memory bytes of RAM lie in the guest-physical address space: one range or, around the PCI hole, two.
func RAM(memory ident.Bytes) []Range {
	if memory <= LowEnd {
		return []Range{{0, uint64(memory), 0}}
	}
	return []Range{{0, LowEnd, 0}, {HighStart, uint64(memory) - LowEnd, LowEnd}}
}

// Types of an E820 entry.
const (
	e820RAM      = 1
	e820Reserved = 2
)

type e820Entry struct {
	addr, size uint64
	kind       uint32
}

func memoryMap(memory ident.Bytes) []e820Entry {
	ram := RAM(memory)
	out := []e820Entry{
		{0, lowMemoryEnd, e820RAM},
		{acpiAddr, highMemory - acpiAddr, e820Reserved},
		{highMemory, ram[0].Size - highMemory, e820RAM},
	}
	for _, r := range ram[1:] {
		out = append(out, e820Entry{r.Addr, r.Size, e820RAM})
	}
	return out
}

// Chunk is bytes to write at a guest-physical address of fresh, zeroed memory.
type Chunk struct {
	Addr uint64
	Data []byte
}

// Config is what a Linux guest is started with.
type Config struct {
	Memory  ident.Bytes
	VCPUs   int
	Kernel  []byte // bzImage or ELF vmlinux
	Initrd  []byte // may be empty
	Cmdline string
	// KeepCompressed starts a bzImage at its own entry even if it could be decompressed here.
	KeepCompressed bool
}

func (c *Config) check() error {
	switch {
	case c.Memory < MinMemory || c.Memory > MaxMemory || c.Memory%(2*ident.MiB) != 0:
		return fmt.Errorf("memory of %s: a Linux guest needs a multiple of 2MiB, at least %s", c.Memory, MinMemory)
	case c.VCPUs < 1 || c.VCPUs > MaxVCPUs:
		return fmt.Errorf("%d vCPUs: a Linux guest has 1 to %d", c.VCPUs, MaxVCPUs)
	case len(c.Cmdline) > MaxCmdlineBytes:
		return fmt.Errorf("kernel command line of %d bytes: at most %d", len(c.Cmdline), MaxCmdlineBytes)
	}
	for i := range len(c.Cmdline) {
		if c.Cmdline[i] == 0 {
			return fmt.Errorf("kernel command line holds a NUL byte at offset %d", i)
		}
	}
	return nil
}

// Mode is the processor mode in which the boot vCPU starts.
type Mode uint8

// The modes of entry.
const (
	Protected32 Mode = iota // PVH: flat 32-bit segments, paging off, EBX = start information
	Long64                  // boot protocol: 64-bit, identity page tables, RSI = boot_params
)

// Entry is the first state of the boot vCPU.
type Entry struct {
	Mode     Mode
	RIP      uint64
	RBX, RSI uint64
	GDT, CR3 uint64
}

// Image is a Linux guest ready to be written into memory.
type Image struct {
	Chunks []Chunk
	Entry  Entry
	// Decompressed tells that a bzImage was decompressed here.
	Decompressed bool
}

// Load prepares a kernel for a machine. Errors say what is wrong with which file; they are the user's to mend. Chunks share memory with
// the configuration's files.
func Load(c Config) (*Image, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	l := &loader{Config: c}
	if err := l.placeInitrd(); err != nil {
		return nil, err
	}
	kernel := c.Kernel
	if isBzImage(kernel) && !c.KeepCompressed {
		if elf, err := Decompress(kernel); err == nil {
			if _, ok := pvhEntry(elf); ok {
				kernel, l.image.Decompressed = elf, true
			}
		}
	}
	var err error
	switch {
	case isELF(kernel):
		err = l.loadELF(kernel)
	case isBzImage(kernel):
		err = l.loadBzImage(kernel)
	default:
		err = fmt.Errorf("kernel is neither a bzImage (no \"HdrS\" at 0x202) nor an ELF file: it begins with % x", kernel[:min(4, len(kernel))])
	}
	if err != nil {
		return nil, err
	}
	l.add(gdtAddr, flatGDT())
	l.add(cmdlineAddr, append([]byte(c.Cmdline), 0))
	l.add(acpiAddr, ACPI(c.VCPUs))
	l.add(resetVector, resetCode())
	return &l.image, nil
}

// resetCode is what lies where firmware would begin. On a hardware-reduced machine Linux leaves its reset to EFI and, without one, jumps there in
// real mode: it is the only way of a reboot that such a kernel takes by itself.
func resetCode() []byte {
	return []byte{
		0xba, ResetPort & 0xff, ResetPort >> 8, // mov dx, ResetPort
		0xb0, ResetValue, // mov al, ResetValue
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp back to it
	}
}

// loader carries one Load along.
type loader struct {
	Config
	image      Image
	initrdAddr uint64
}

func (l *loader) add(addr uint64, data []byte) {
	if len(data) > 0 {
		l.image.Chunks = append(l.image.Chunks, Chunk{addr, data})
	}
}

// placeInitrd puts the initial RAM disk at the top of memory below 3 GiB, where no kernel is and every kernel finds it.
func (l *loader) placeInitrd() error {
	if len(l.Initrd) == 0 {
		return nil
	}
	const room = 64 << 20 // for the kernel, below
	top := RAM(l.Memory)[0].Size
	size := (uint64(len(l.Initrd)) + ident.PageSize - 1) &^ (ident.PageSize - 1)
	if size+room > top {
		return fmt.Errorf("initial RAM disk of %s does not fit into memory of %s beside the kernel", ident.Bytes(len(l.Initrd)), l.Memory)
	}
	l.initrdAddr = top - size
	l.add(l.initrdAddr, l.Initrd)
	return nil
}
