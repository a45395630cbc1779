// Package linuxtest makes tiny kernels for tests: ELF files with a PVH entry that do a few port accesses and switch the machine off. A KVM that
// emulates ring 0 instruction by instruction runs them in no time, where it would never boot a real one.
package linuxtest

import (
	"encoding/binary"

	"github.com/cellvisor/cellvisor/vmm/linux"
)

const (
	loadAddr    = 0x100000
	codeOffset  = 0x1000
	noteOffset  = 0x200
	headerBytes = 64
	entryBytes  = 56
)

// Kernel wraps 32-bit code, entered with paging off, into an ELF kernel.
func Kernel(code []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, codeOffset, codeOffset+len(code))
	copy(b, "\x7fELF\x02\x01\x01")
	const executable, x86 = 2, 62
	le.PutUint16(b[16:], executable)
	le.PutUint16(b[18:], x86)
	le.PutUint64(b[24:], loadAddr)
	le.PutUint64(b[32:], headerBytes)
	le.PutUint16(b[54:], entryBytes)
	le.PutUint16(b[56:], 2)
	segment := func(i int, kind uint32, offset, addr, size uint64) {
		h := b[headerBytes+i*entryBytes:]
		le.PutUint32(h, kind)
		le.PutUint64(h[8:], offset)
		le.PutUint64(h[24:], addr)
		le.PutUint64(h[32:], size)
		le.PutUint64(h[40:], size)
	}
	const load, note, noteBytes, phys32Entry = 1, 4, 20, 18
	segment(0, load, codeOffset, loadAddr, uint64(len(code)))
	segment(1, note, noteOffset, 0, noteBytes)
	n := b[noteOffset:]
	le.PutUint32(n, 4)
	le.PutUint32(n[4:], 4)
	le.PutUint32(n[8:], phys32Entry)
	copy(n[12:], "Xen\x00")
	le.PutUint32(n[16:], loadAddr)
	return append(b, code...)
}

// Out is code that writes a byte to a port.
func Out(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee} // mov dx, port; mov al, v; out dx, al
}

// Print is code that prints on the serial port.
func Print(text string) []byte {
	var code []byte
	for _, c := range []byte(text) {
		code = append(code, Out(linux.SerialPort, c)...)
	}
	return code
}

// PowerOff is code that switches the machine off.
func PowerOff() []byte {
	const enable = 1 << 5
	return append(Out(linux.SleepControlPort, linux.SleepTypeS5<<2|enable), 0xfa, 0xf4) // cli; hlt
}

// Reset is code that resets the machine.
func Reset() []byte { return append(Out(linux.ResetPort, linux.ResetValue), 0xfa, 0xf4) }

// Hello is a kernel that prints text and switches the machine off.
func Hello(text string) []byte { return Kernel(append(Print(text), PowerOff()...)) }
