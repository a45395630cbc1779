package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The parts of an ELF64 kernel that matter for booting it.
const (
	elfHeaderBytes  = 64
	elfProgramBytes = 56
	elfMaxSegments  = 64
	ptLoad          = 1
	ptNote          = 4

	// xenNotePhys32Entry is the note that carries the PVH entry point: XEN_ELFNOTE_PHYS32_ENTRY of Xen's elfnote.h.
	xenNotePhys32Entry = 18
)

func isELF(b []byte) bool { return len(b) > elfHeaderBytes && string(b[:4]) == "\x7fELF" }

type elfSegment struct {
	kind       uint32
	addr, size uint64
	data       []byte
}

// elfSegments reads the program headers of an ELF64 little-endian x86-64 file.
func elfSegments(file []byte) ([]elfSegment, error) {
	le := binary.LittleEndian
	if !isELF(file) || file[4] != 2 || file[5] != 1 || le.Uint16(file[18:]) != 62 {
		return nil, fmt.Errorf("kernel is not an x86-64 ELF64 file")
	}
	off, size, count := le.Uint64(file[32:]), le.Uint16(file[54:]), int(le.Uint16(file[56:]))
	if size != elfProgramBytes || count == 0 || count > elfMaxSegments || off > uint64(len(file)) || uint64(count*elfProgramBytes) > uint64(len(file))-off {
		return nil, fmt.Errorf("kernel's ELF program headers (%d of %d bytes at 0x%x) are not those of a kernel, or the file is cut short", count, size, off)
	}
	var out []elfSegment
	for i := range count {
		h := file[off+uint64(i*elfProgramBytes):]
		at, fileSize := le.Uint64(h[8:]), le.Uint64(h[32:])
		s := elfSegment{kind: le.Uint32(h), addr: le.Uint64(h[24:]), size: le.Uint64(h[40:])}
		if at > uint64(len(file)) || fileSize > uint64(len(file))-at || s.kind == ptLoad && fileSize > s.size {
			return nil, fmt.Errorf("kernel's ELF segment %d lies outside the file: is it cut short?", i)
		}
		s.data = file[at : at+fileSize]
		out = append(out, s)
	}
	return out, nil
}

// pvhEntry finds the PVH entry point in the notes of an ELF kernel.
func pvhEntry(file []byte) (uint64, bool) {
	segments, err := elfSegments(file)
	if err != nil {
		return 0, false
	}
	for _, s := range segments {
		if s.kind != ptNote {
			continue
		}
		if entry, ok := findNote(s.data); ok {
			return entry, true
		}
	}
	return 0, false
}

func findNote(notes []byte) (uint64, bool) {
	le := binary.LittleEndian
	for len(notes) >= 12 {
		nameBytes, descBytes, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		desc := 12 + (nameBytes+3)&^3
		end := desc + (descBytes+3)&^3
		if end > uint64(len(notes)) {
			return 0, false
		}
		if kind == xenNotePhys32Entry && bytes.Equal(notes[12:12+nameBytes], []byte("Xen\x00")) {
			switch descBytes {
			case 4:
				return uint64(le.Uint32(notes[desc:])), true
			case 8:
				return le.Uint64(notes[desc:]), true
			}
		}
		notes = notes[end:]
	}
	return 0, false
}

// loadELF places an uncompressed kernel and enters it by PVH.
func (l *loader) loadELF(file []byte) error {
	segments, err := elfSegments(file)
	if err != nil {
		return err
	}
	entry, ok := pvhEntry(file)
	if !ok {
		return fmt.Errorf("kernel has no PVH entry point: build it with CONFIG_PVH=y, or give its bzImage")
	}
	limit := RAM(l.Memory)[0].Size
	if l.initrdAddr != 0 {
		limit = l.initrdAddr
	}
	for _, s := range segments {
		if s.kind != ptLoad || s.size == 0 {
			continue
		}
		if s.addr < highMemory || s.addr > limit || s.size > limit-s.addr {
			return fmt.Errorf("kernel's segment at 0x%x of %d bytes does not fit between 1MiB and 0x%x: give the VM more memory", s.addr, s.size, limit)
		}
		l.add(s.addr, s.data)
	}
	l.add(pvhInfoAddr, l.startInfo())
	l.image.Entry = Entry{Mode: Protected32, RIP: entry, RBX: pvhInfoAddr, GDT: gdtAddr}
	return nil
}

// startInfo builds struct hvm_start_info of Xen's public headers (version 1), its module list and its memory map, in one page.
func (l *loader) startInfo() []byte {
	const (
		magic      = 0x336ec578
		modules    = pvhInfoAddr + 0x40
		mapAddr    = pvhInfoAddr + 0x80
		entryBytes = 24
	)
	le := binary.LittleEndian
	entries := memoryMap(l.Memory)
	b := make([]byte, 0x80+entryBytes*len(entries))
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[24:], cmdlineAddr)
	le.PutUint64(b[32:], acpiAddr)
	le.PutUint64(b[40:], mapAddr)
	le.PutUint32(b[48:], uint32(len(entries)))
	if l.initrdAddr != 0 {
		le.PutUint32(b[12:], 1)
		le.PutUint64(b[16:], modules)
		le.PutUint64(b[0x40:], l.initrdAddr)
		le.PutUint64(b[0x48:], uint64(len(l.Initrd)))
	}
	for i, e := range entries {
		at := b[0x80+i*entryBytes:]
		le.PutUint64(at[0:], e.addr)
		le.PutUint64(at[8:], e.size)
		le.PutUint32(at[16:], e.kind)
	}
	return b
}
