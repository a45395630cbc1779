package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// fakeELF is a kernel with one segment and, if entry is not zero, a PVH note.
func fakeELF(entry uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	load, note := b[64:], b[64+56:]
	le.PutUint32(load, ptLoad)
	le.PutUint64(load[8:], 0x300)
	le.PutUint64(load[24:], 0x1000000)
	le.PutUint64(load[32:], 0x100)
	le.PutUint64(load[40:], 0x2000)
	le.PutUint32(note, ptNote)
	le.PutUint64(note[8:], 0x200)
	if entry != 0 {
		le.PutUint64(note[32:], 20)
		n := b[0x200:]
		le.PutUint32(n, 4)
		le.PutUint32(n[4:], 4)
		le.PutUint32(n[8:], xenNotePhys32Entry)
		copy(n[12:], "Xen\x00")
		le.PutUint32(n[16:], entry)
	}
	return b
}

func TestLoadPVH(t *testing.T) {
	initrd := bytes.Repeat([]byte{7}, 5000)
	img, err := Load(Config{Memory: 256 * ident.MiB, VCPUs: 2, Kernel: fakeELF(0x1000123), Initrd: initrd, Cmdline: "quiet"})
	if err != nil {
		t.Fatal(err)
	}
	if img.Entry.Mode != Protected32 || img.Entry.RIP != 0x1000123 || img.Entry.RBX != pvhInfoAddr {
		t.Fatalf("entry %+v", img.Entry)
	}
	at := map[uint64][]byte{}
	for _, c := range img.Chunks {
		at[c.Addr] = c.Data
	}
	if !bytes.Equal(at[256<<20-8192], initrd) {
		t.Error("initial RAM disk is not at the top of memory, page aligned")
	}
	if string(at[cmdlineAddr]) != "quiet\x00" {
		t.Errorf("command line %q", at[cmdlineAddr])
	}
	info := at[pvhInfoAddr]
	le := binary.LittleEndian
	if le.Uint32(info) != 0x336ec578 || le.Uint64(info[32:]) != acpiAddr || le.Uint32(info[48:]) != 3 {
		t.Errorf("start information % x", info[:56])
	}
}

func TestLoadRefuses(t *testing.T) {
	good := Config{Memory: 256 * ident.MiB, VCPUs: 1, Kernel: fakeELF(0x1000123)}
	for name, change := range map[string]func(*Config){
		"no kernel":        func(c *Config) { c.Kernel = nil },
		"garbage kernel":   func(c *Config) { c.Kernel = make([]byte, 4096) },
		"no PVH note":      func(c *Config) { c.Kernel = fakeELF(0) },
		"cut kernel":       func(c *Config) { c.Kernel = c.Kernel[:0x350] },
		"odd memory":       func(c *Config) { c.Memory = 256*ident.MiB + 4096 },
		"little memory":    func(c *Config) { c.Memory = 8 * ident.MiB },
		"no vCPU":          func(c *Config) { c.VCPUs = 0 },
		"large initrd":     func(c *Config) { c.Initrd = make([]byte, 200<<20) },
		"long command":     func(c *Config) { c.Cmdline = string(make([]byte, 3000)) },
		"NUL in command":   func(c *Config) { c.Cmdline = "a\x00b" },
		"too many vCPUs":   func(c *Config) { c.VCPUs = MaxVCPUs + 1 },
		"segment too high": func(c *Config) { binary.LittleEndian.PutUint64(c.Kernel[64+24:], 1<<40) },
	} {
		c := good
		c.Kernel = bytes.Clone(good.Kernel)
		change(&c)
		if _, err := Load(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestACPIChecksums(t *testing.T) {
	b := ACPI(3)
	if checksum(b[:20]) != 0 || checksum(b[:36]) != 0 {
		t.Error("RSDP's checksums are wrong")
	}
	le := binary.LittleEndian
	xsdt := le.Uint64(b[24:]) - acpiAddr
	body := b[xsdt : xsdt+uint64(le.Uint32(b[xsdt+4:]))]
	if checksum(body) != 0 || string(body[:4]) != "XSDT" {
		t.Errorf("XSDT: % x", body)
	}
	for p := body[36:]; len(p) > 0; p = p[8:] {
		at := le.Uint64(p) - acpiAddr
		table := b[at : at+uint64(le.Uint32(b[at+4:]))]
		if checksum(table) != 0 {
			t.Errorf("table %s: checksum", table[:4])
		}
	}
	if len(b) > highMemory-acpiAddr {
		t.Errorf("tables of %d bytes do not fit", len(b))
	}
}

func TestRAMAroundTheHole(t *testing.T) {
	if got := RAM(1 * ident.GiB); len(got) != 1 || got[0].Size != 1<<30 {
		t.Errorf("1 GiB: %+v", got)
	}
	got := RAM(5 * ident.GiB)
	if len(got) != 2 || got[0].Size != LowEnd || got[1] != (Range{HighStart, 2 << 30, LowEnd}) {
		t.Errorf("5 GiB: %+v", got)
	}
}

func TestCPUIDHidesParavirtualFeatures(t *testing.T) {
	in := []CPUIDEntry{{Function: 0, Eax: 0xd}, {Function: 1, Ecx: 1 << 3}, {Function: 0x40000001, Eax: 0xffffffff}, {Function: 0xb}, {Function: 0x80000008, Ecx: 99}}
	out, err := CPUID(in, ModelHost, Topology{VCPU: 2, VCPUs: 3, TSCDeadline: true})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[2]uint32]int{}
	for _, e := range out {
		seen[[2]uint32{e.Function, e.Index}]++
		switch e.Function {
		case 1:
			if e.Ebx>>24 != 2 || e.Ecx&ecx1Monitor != 0 || e.Ecx&ecx1TSCDeadline == 0 || e.Ecx&ecx1X2APIC == 0 {
				t.Errorf("leaf 1: %+v", e)
			}
		case hypervisorID + 1:
			if e.Eax != 0 {
				t.Errorf("paravirtual features shown: %x", e.Eax)
			}
		case 0xb:
			if e.Edx != 2 {
				t.Errorf("leaf 0xb: %+v", e)
			}
		}
	}
	for k, n := range seen {
		if n != 1 {
			t.Errorf("leaf %x shown %d times", k, n)
		}
	}
	if _, err := CPUID(nil, "abacus", Topology{VCPUs: 1}); err == nil {
		t.Error("no error for an unknown model")
	}
}

func TestLZ4(t *testing.T) {
	// "abcabcabcabcX", by hand: literals "abc", a copy of nine bytes from three back, then the literal "X".
	block := []byte{0x35, 'a', 'b', 'c', 3, 0, 0x10, 'X'}
	in := binary.LittleEndian.AppendUint32(nil, lz4Magic)
	in = binary.LittleEndian.AppendUint32(in, uint32(len(block)))
	out, err := lz4Decompress(append(in, block...))
	if err != nil || string(out) != "abcabcabcabcX" {
		t.Fatalf("%q, %v", out, err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(fakeELF(0x1000123))
	f.Add([]byte("HdrS"))
	f.Fuzz(func(t *testing.T, kernel []byte) {
		c := Config{Memory: 64 * ident.MiB, VCPUs: 1, Kernel: kernel}
		img, err := Load(c)
		if err != nil {
			return
		}
		for _, chunk := range img.Chunks {
			if chunk.Addr > uint64(c.Memory) || uint64(len(chunk.Data)) > uint64(c.Memory)-chunk.Addr {
				t.Fatalf("chunk of %d bytes at 0x%x lies outside memory", len(chunk.Data), chunk.Addr)
			}
		}
	})
}

// TestDecompressDebian takes apart real kernels, where there are any.
func TestDecompressDebian(t *testing.T) {
	dir := os.Getenv("CELLVISOR_BED")
	if dir == "" {
		t.Skip("CELLVISOR_BED is not set")
	}
	for _, name := range []string{"vmlinuz-6.12", "vmlinuz-6.1"} {
		b, err := os.ReadFile(dir + "/" + name)
		if errors.Is(err, os.ErrNotExist) {
			t.Skip(err)
		}
		elf, err := Decompress(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := pvhEntry(elf); !ok {
			t.Errorf("%s: no PVH entry in %d bytes", name, len(elf))
		}
	}
}
