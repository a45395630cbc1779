package tests

import (
	"encoding/binary"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
)

// A kernel of a few instructions, which runs even where ring 0 of a guest is emulated one by one. It is an ELF file with a PVH entry, as a
// vmlinux is. On the serial port it prints Z if its memory is fresh and D if it is not, then obeys what is typed: P switches the machine off,
// R resets it, T makes a triple fault; anything else it prints.
var tinyKernel = []byte{
	0xbe, 0x00, 0x00, 0x20, 0x00, // mov esi, 0x200000
	0xb0, 'Z', // mov al, 'Z'
	0x83, 0x3e, 0x00, // cmp dword [esi], 0
	0x74, 0x02, // je +2
	0xb0, 'D', // mov al, 'D'
	0xc7, 0x06, 1, 0, 0, 0, // mov dword [esi], 1
	0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
	0xee, // out dx, al
	// wait:
	0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
	0xec,       // in al, dx
	0xa8, 0x01, // test al, 1
	0x74, 0xf7, // jz wait
	0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
	0xec,                  // in al, dx
	0x3c, 'P', 0x74, 0x0b, // je off
	0x3c, 'R', 0x74, 0x0f, // je reset
	0x3c, 'T', 0x74, 0x13, // je triple
	0xee,       // out dx, al
	0xeb, 0xe3, // jmp wait
	// off:
	0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
	0xb0, 0x34, // mov al, 0x34: S5, enable
	0xee, 0xf4, // out dx, al; hlt
	// reset:
	0x66, 0xba, 0x02, 0x06, // mov dx, 0x602
	0xb0, 0x0f, // mov al, 0x0f
	0xee, 0xf4, // out dx, al; hlt
	// triple:
	0x0f, 0x01, 0x5e, 0x08, // lidt [esi+8]: no table
	0x0f, 0x0b, // ud2
}

// tinyKernelFile puts the code into an ELF file: a segment at 1 MiB, and the note that names the entry.
func tinyKernelFile(code []byte) []byte {
	const header, program, entry = 64, 56, 0x100000
	le := binary.LittleEndian
	b := make([]byte, header+2*program)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // executable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], header)
	le.PutUint16(b[52:], header)
	le.PutUint16(b[54:], program)
	le.PutUint16(b[56:], 2)
	note := []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x10\x00")
	segment := func(i int, kind uint32, addr, size uint64) {
		h := b[header+i*program:]
		le.PutUint32(h, kind)
		le.PutUint64(h[8:], uint64(len(b)))
		le.PutUint64(h[24:], addr)
		le.PutUint64(h[32:], size)
		le.PutUint64(h[40:], size)
	}
	segment(0, 1, entry, uint64(len(code)))
	b = append(b, code...)
	segment(1, 4, 0, uint64(len(note)))
	return append(b, note...)
}

// brokenKernel makes a triple fault at once.
var brokenKernel = []byte{0x0f, 0x01, 0x1d, 0, 0, 0x20, 0, 0x0f, 0x0b} // lidt [0x200000]; ud2

// cmdTinyKernel writes a kernel into a file: tinykernel FILE [broken|keeper|smp]. Of keeper and smp see linuxtest.
func cmdTinyKernel(ts *testscript.TestScript, neg bool, args []string) {
	file := tinyKernelFile(tinyKernel)
	switch {
	case len(args) == 2 && args[1] == "broken":
		file, args = tinyKernelFile(brokenKernel), args[:1]
	case len(args) == 2 && args[1] == "keeper":
		file, args = linuxtest.Keeper(), args[:1]
	case len(args) == 2 && args[1] == "smp":
		file, args = linuxtest.SMP(1<<40), args[:1]
	}
	if neg || len(args) != 1 {
		ts.Fatalf("usage: tinykernel FILE [broken|keeper|smp]")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), file, 0o644))
}
