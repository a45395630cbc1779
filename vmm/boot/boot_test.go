package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// seg describes a program header of a file made for a test.
type seg struct {
	typ        uint32
	addr       uint64
	file, size uint64 // bytes in the file and in memory
}

// makeELF builds an ELF64 file with the segments' bytes one after another behind the headers.
func makeELF(entry uint64, segs ...seg) []byte {
	le := binary.LittleEndian
	h := make([]byte, headerBytes)
	copy(h, "\x7fELF\x02\x01\x01")
	le.PutUint16(h[16:], elfTypeExec)
	le.PutUint16(h[18:], elfX86)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], entry)
	le.PutUint64(h[32:], headerBytes)
	le.PutUint16(h[52:], headerBytes)
	le.PutUint16(h[54:], programBytes)
	le.PutUint16(h[56:], uint16(len(segs)))
	var body []byte
	off := uint64(headerBytes + len(segs)*programBytes)
	for i, s := range segs {
		p := make([]byte, programBytes)
		le.PutUint32(p[0:], s.typ)
		le.PutUint64(p[8:], off+uint64(len(body)))
		le.PutUint64(p[16:], s.addr)
		le.PutUint64(p[24:], s.addr)
		le.PutUint64(p[32:], s.file)
		le.PutUint64(p[40:], s.size)
		h = append(h, p...)
		body = append(body, bytes.Repeat([]byte{byte(i + 1)}, int(s.file))...)
	}
	return append(h, body...)
}

func good() []byte {
	return makeELF(0x400010, seg{segmentLoad, 0x400000, 0x100, 0x100}, seg{segmentLoad, 0x402000, 0x10, 0x3000})
}

func patched(off int, b ...byte) []byte {
	f := good()
	copy(f[off:], b)
	return f
}

func TestErrorsArePrecise(t *testing.T) {
	ok := Config{Memory: 16 * ident.MiB, VCPUs: 2}
	for _, c := range []struct {
		name string
		file []byte
		conf Config
		want string
	}{
		{"empty", nil, ok, "not an ELF64 file: magic , want 7f 45 4c 46"},
		{"script", []byte("#!/bin/sh\n"), ok, "not an ELF64 file: magic 23 21 2f 62, want 7f 45 4c 46"},
		{"header only half there", good()[:40], ok, "40 bytes, shorter than the header's 64"},
		{"32-bit", patched(4, 1), ok, "ELF class 1 (1 is 32-bit), want 2"},
		{"big-endian", patched(5, 2), ok, "data encoding 2, want 1"},
		{"arm", patched(18, 183, 0), ok, "not an x86-64 ELF64 file: machine 183, want 62"},
		{"position-independent", patched(16, 3), ok, "ELF type 3 (ET_DYN), want 2 (ET_EXEC): link with -static -no-pie"},
		{"object file", patched(16, 1), ok, "not an executable: ELF type 1"},
		{"no program headers", patched(56, 0, 0), ok, "no program headers"},
		{"many program headers", patched(56, 200, 0), ok, "200 program headers, at most 64"},
		{"odd program headers", patched(54, 32, 0), ok, "32 bytes long, want 56"},
		{"headers outside", patched(32, 0xff, 0xff), ok, "lie outside the file"},
		{"truncated", good()[:300], ok, "segment 0's bytes [0xb0, +256) lie outside the file of 300 bytes: is it truncated?"},
		{"interpreter", makeELF(0x400000, seg{segmentInterp, 0, 4, 4}, seg{segmentLoad, 0x400000, 4, 4}), ok, "segment 0 asks for a dynamic linker"},
		{"nothing to load", makeELF(0x400000, seg{6, 0x400000, 4, 4}), ok, "no segment to load"},
		{"file larger than memory", makeELF(0x400000, seg{segmentLoad, 0x400000, 9, 8}), ok, "segment 0 has 9 bytes in the file but only 8 in memory"},
		{"wraps", makeELF(0x400000, seg{segmentLoad, ^uint64(0) - 4, 4, 9}), ok, "wraps around"},
		{"loader's own", makeELF(0x100000, seg{segmentLoad, 0x100000, 4, 4}), ok, "segment 0 [0x100000,0x100004) starts below 0x200000"},
		{"beyond memory", makeELF(0x400000, seg{segmentLoad, 0x400000, 4, 64 << 20}), ok, "ends beyond the VM's memory of 16MiB: give it at least 68 MiB"},
		{"overlap", makeELF(0x400000, seg{segmentLoad, 0x401000, 8, 8}, seg{segmentLoad, 0x400000, 4, 0x1001}), ok,
			"segment 1 [0x400000,0x401001) overlaps segment 0 [0x401000,0x401008)"},
		{"entry outside", makeELF(0x500000, seg{segmentLoad, 0x400000, 4, 4}), ok, "entry point 0x500000 lies in no loaded segment"},
		{"long arguments", good(), Config{Memory: 16 * ident.MiB, VCPUs: 1, Args: strings.Repeat("x", 4096)}, "4096 bytes long, at most 4095 fit"},
		{"NUL in arguments", good(), Config{Memory: 16 * ident.MiB, VCPUs: 1, Args: "a\x00b"}, "NUL byte at offset 1"},
		{"odd memory", good(), Config{Memory: 16*ident.MiB + 1, VCPUs: 1}, "must be a multiple of 4096"},
		{"little memory", good(), Config{Memory: ident.MiB, VCPUs: 1}, "at least 4MiB"},
		{"much memory", good(), Config{Memory: 1 << 45, VCPUs: 1}, "at most 256GiB"},
		{"no vCPU", good(), Config{Memory: 16 * ident.MiB}, "0 vCPUs: must be 1 to 1024"},
		{"many vCPUs", good(), Config{Memory: 16 * ident.MiB, VCPUs: 2000}, "2000 vCPUs: must be 1 to 1024"},
	} {
		_, err := Load(c.file, c.conf)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to say %q", c.name, err, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	args := strings.Repeat("y", MaxArgsBytes)
	l, err := Load(good(), Config{Memory: 16 * ident.MiB, VCPUs: 3, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	m := write(t, l)
	if got := string(m[ArgsAddr : ArgsAddr+MaxArgsBytes+1]); got != args+"\x00" {
		t.Errorf("arguments differ")
	}
	if m[0x4000ff] != 1 || m[0x400100] != 0 || m[0x40200f] != 2 || m[0x402010] != 0 {
		t.Errorf("segments differ")
	}
	for i, s := range l.Starts {
		if s.RIP != 0x400010 || s.RDI != uint64(i) || s.RSI != 3 || s.RDX != 16<<20 || s.RCX != ArgsAddr || s.RSP%16 != 0 {
			t.Errorf("vCPU %d starts with %+v", i, s)
		}
	}
}

// memory is what a layout writes to.
type memory []byte

func (m memory) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > int64(len(m)) {
		return 0, fmt.Errorf("[0x%x, +%d) is outside", off, len(b))
	}
	return copy(m[off:], b), nil
}

func write(t testing.TB, l *Layout) memory {
	t.Helper()
	m := make(memory, l.Physical)
	if err := l.Write(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// sparse is memory for large layouts: only what was written.
type sparse map[uint64][]byte

func (s sparse) WriteAt(b []byte, off int64) (int, error) {
	for i := 0; i < len(b); i += ident.PageSize {
		page := make([]byte, ident.PageSize)
		copy(page, b[i:])
		s[uint64(off)+uint64(i)] = page
	}
	return len(b), nil
}

func (s sparse) entry(addr uint64) uint64 {
	page, ok := s[addr&^(ident.PageSize-1)]
	if !ok {
		return 0
	}
	return binary.LittleEndian.Uint64(page[addr%ident.PageSize:])
}

// walk translates an address as the processor does, and returns false where it would fault. It fails on entries that are not user-accessible,
// writable, accessed and dirty.
func (s sparse) walk(t interface{ Fatalf(string, ...any) }, cr3, addr uint64) (uint64, bool) {
	table := cr3
	for shift := 39; shift >= 12; shift -= 9 {
		e := s.entry(table + (addr >> shift & 511 * 8))
		if e&1 == 0 {
			return 0, false
		}
		if e&0x67 != 0x67 {
			t.Fatalf("entry 0x%x for address 0x%x lacks a bit of 0x67", e, addr)
		}
		frame := e &^ 0xfff
		if shift == 12 || shift == 21 && e&0x80 != 0 {
			return frame + addr&(1<<shift-1), true
		}
		table = frame
	}
	return 0, false
}

// TestTablesMapExactlyTheMemory walks the page tables of many layouts: everything in memory is mapped to itself, nothing outside is, stacks
// are mapped, apart from each other and from all else, and what is the payload's is left to it.
func TestTablesMapExactlyTheMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.OneOf(rapid.Uint64Range(1024, 3000), rapid.Uint64Range(1024, uint64(MaxMemory.Pages())), rapid.Just(uint64(64<<30>>12)), rapid.Just(uint64(MaxMemory.Pages()))).Draw(t, "pages")
		vcpus := rapid.OneOf(rapid.IntRange(1, 40), rapid.Just(64), rapid.IntRange(1, MaxVCPUs)).Draw(t, "vcpus")
		size := ident.Bytes(pages) * ident.PageSize
		l, err := Load(makeELF(0x200000, seg{segmentLoad, 0x200000, 16, 16}), Config{Memory: size, VCPUs: vcpus, Args: "x"})
		if err != nil {
			t.Fatal(err)
		}
		checkLayout(t, l, size, vcpus)
	})
}

func checkLayout(t *rapid.T, l *Layout, size ident.Bytes, vcpus int) {
	if want, err := PhysicalSize(size, vcpus, false); err != nil || want != l.Physical {
		t.Fatalf("PhysicalSize is %s (%v), the layout's %s", want, err, l.Physical)
	}
	s := sparse{}
	if err := l.Write(s); err != nil {
		t.Fatal(err)
	}
	end := uint64(0)
	for _, c := range l.Chunks {
		if c.Addr < end || c.Addr+uint64(len(c.Data)) > uint64(l.Physical) {
			t.Fatalf("chunk at 0x%x, %d bytes, follows one that ends at 0x%x; physical memory is %s", c.Addr, len(c.Data), end, l.Physical)
		}
		end = c.Addr + uint64(len(c.Data))
		if c.Addr >= ImageBase && c.Addr < uint64(size) && c.Addr != 0x200000 {
			t.Fatalf("chunk at 0x%x lies in the payload's memory", c.Addr)
		}
	}
	cr3 := l.Starts[0].CR3
	for _, a := range []uint64{0, 0x1fffff, 0x200000, uint64(size)/2 | 7, uint64(size) - 1, uint64(size)&^(largePage-1) - 1} {
		if got, ok := s.walk(t, cr3, a); !ok || got != a {
			t.Fatalf("address 0x%x of %s maps to 0x%x (%t)", a, size, got, ok)
		}
	}
	for _, a := range []uint64{uint64(size), uint64(l.Physical), roundUp(uint64(size), largePage) - 1, uint64(l.Physical) + gigabyte, 1 << 40, 1 << 46} {
		if got, ok := s.walk(t, cr3, a); ok && (a >= uint64(l.Physical) || a < roundUp(uint64(size), largePage)) && a >= uint64(size) {
			t.Fatalf("address 0x%x outside %s maps to 0x%x", a, size, got)
		}
	}
	seen := map[uint64]bool{}
	for i, start := range l.Starts {
		low, top := start.RSP-StackBytes, start.RSP
		if seen[low] || low%StackBytes != 0 || top > uint64(l.Physical) || top > ImageBase && low < uint64(size) {
			t.Fatalf("stack %d [0x%x,0x%x) is misplaced", i, low, top)
		}
		seen[low] = true
		for _, c := range l.Chunks {
			if c.Addr < top && c.Addr+uint64(len(c.Data)) > low {
				t.Fatalf("stack %d [0x%x,0x%x) overlaps the chunk at 0x%x", i, low, top, c.Addr)
			}
		}
		for _, a := range []uint64{low, top - 8} {
			if got, ok := s.walk(t, cr3, a); !ok || got != a {
				t.Fatalf("stack %d: 0x%x maps to 0x%x (%t)", i, a, got, ok)
			}
		}
	}
}

func TestSmallVMsHaveNothingHidden(t *testing.T) {
	for _, c := range []struct {
		memory ident.Bytes
		vcpus  int
	}{{16 * ident.MiB, 30}, {512 * ident.MiB, 16}, {8 * ident.GiB, 8}, {16*ident.MiB + 4096, 4}} {
		if got, err := PhysicalSize(c.memory, c.vcpus, false); err != nil || got != c.memory {
			t.Errorf("%s with %d vCPUs needs %s (%v)", c.memory, c.vcpus, got, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(good(), uint32(4096), uint16(2), "args")
	f.Add(makeELF(0x400000, seg{segmentLoad, 0x401000, 8, 8}, seg{segmentLoad, 0x400000, 4, 0x1001}), uint32(2048), uint16(64), "")
	f.Add([]byte("\x7fELF"), uint32(1), uint16(0), "\x00")
	f.Fuzz(func(t *testing.T, file []byte, pages uint32, vcpus uint16, args string) {
		l, err := Load(file, Config{Memory: ident.Bytes(pages) * ident.PageSize, VCPUs: int(vcpus), Args: args})
		if err != nil {
			return
		}
		end := uint64(0)
		for _, c := range l.Chunks {
			if c.Addr < end || c.Addr+uint64(len(c.Data)) > uint64(l.Physical) {
				t.Fatalf("chunk at 0x%x with %d bytes overlaps one that ends at 0x%x, or leaves the %s", c.Addr, len(c.Data), end, l.Physical)
			}
			end = c.Addr + uint64(len(c.Data))
		}
		if len(l.Starts) != int(vcpus) {
			t.Fatalf("%d starts for %d vCPUs", len(l.Starts), vcpus)
		}
	})
}

// TestWindowIsMapped: a guest with devices reaches their window at its own address, uncached, and nothing else changes.
func TestWindowIsMapped(t *testing.T) {
	for _, size := range []ident.Bytes{8 * ident.MiB, 64 * ident.MiB, 1<<30 + 4096, 3<<30 - 8*ident.MiB} {
		l, err := Load(good(), Config{Memory: size, VCPUs: 2, Window: true})
		if err != nil {
			t.Fatal(err)
		}
		s := sparse{}
		if err := l.Write(s); err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(t *rapid.T) {
			for _, a := range []uint64{WindowAddr, WindowAddr + WindowBytes - 1, uint64(size) - 1, ImageBase} {
				if got, ok := s.walk(t, l.Starts[0].CR3, a); !ok || got != a {
					t.Fatalf("%s: 0x%x maps to 0x%x (%t)", size, a, got, ok)
				}
			}
			for _, a := range []uint64{uint64(size), WindowAddr - 1, WindowAddr + WindowBytes} {
				if got, ok := s.walk(t, l.Starts[0].CR3, a); ok {
					t.Fatalf("%s: 0x%x maps to 0x%x", size, a, got)
				}
			}
		})
	}
	if _, err := Load(good(), Config{Memory: 4 << 30, VCPUs: 1, Window: true}); err == nil || !strings.Contains(err.Error(), "PCI devices") {
		t.Errorf("memory across the window: %v", err)
	}
}
