package boot

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// The parts of an ELF64 file that matter here. debug/elf would read more than a payload needs from a file that may be hostile.
const (
	headerBytes  = 64
	programBytes = 56
	maxSegments  = 64

	elfClass64    = 2
	elfDataLittle = 1
	elfTypeExec   = 2
	elfTypeDyn    = 3
	elfX86        = 62

	segmentLoad    = 1
	segmentDynamic = 2
	segmentInterp  = 3
)

// segment is one PT_LOAD segment: data at addr, zeros up to size.
type segment struct {
	number int // among all program headers, as readelf counts
	addr   uint64
	size   uint64
	data   []byte
}

func (s segment) end() uint64 { return s.addr + s.size }

func (s segment) String() string {
	return fmt.Sprintf("segment %d [0x%x,0x%x)", s.number, s.addr, s.end())
}

type image struct {
	entry    uint64
	segments []segment
}

// parseELF reads a static x86-64 ELF64 executable. It checks everything that does not depend on the VM's size.
func parseELF(file []byte) (*image, error) {
	if len(file) > MaxImageBytes {
		return nil, fmt.Errorf("payload file of %d bytes: at most %d", len(file), MaxImageBytes)
	}
	if err := checkHeader(file); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	off, size, count := le.Uint64(file[32:]), int(le.Uint16(file[54:])), int(le.Uint16(file[56:]))
	switch {
	case count == 0:
		return nil, fmt.Errorf("ELF64 file has no program headers: nothing to load")
	case count > maxSegments:
		return nil, fmt.Errorf("ELF64 file has %d program headers, at most %d", count, maxSegments)
	case size != programBytes:
		return nil, fmt.Errorf("ELF64 program headers are %d bytes long, want %d", size, programBytes)
	case off > uint64(len(file)) || uint64(count*programBytes) > uint64(len(file))-off:
		return nil, fmt.Errorf("ELF64 program headers [0x%x, +%d) lie outside the file of %d bytes: is it truncated?", off, count*programBytes, len(file))
	}
	img := &image{entry: le.Uint64(file[24:])}
	for i := range count {
		s, err := parseSegment(file, i, file[off+uint64(i*programBytes):][:programBytes])
		if err != nil {
			return nil, err
		}
		if s.size > 0 {
			img.segments = append(img.segments, s)
		}
	}
	if len(img.segments) == 0 {
		return nil, fmt.Errorf("ELF64 file has no segment to load")
	}
	return img, nil
}

func checkHeader(file []byte) error {
	if len(file) < 4 || string(file[:4]) != "\x7fELF" {
		return fmt.Errorf("not an ELF64 file: magic % x, want 7f 45 4c 46", file[:min(4, len(file))])
	}
	if len(file) < headerBytes {
		return fmt.Errorf("not an ELF64 file: %d bytes, shorter than the header's %d", len(file), headerBytes)
	}
	le := binary.LittleEndian
	switch typ, machine := le.Uint16(file[16:]), le.Uint16(file[18:]); {
	case file[4] != elfClass64:
		return fmt.Errorf("not an ELF64 file: ELF class %d (1 is 32-bit), want %d", file[4], elfClass64)
	case file[5] != elfDataLittle:
		return fmt.Errorf("not a little-endian ELF64 file: data encoding %d, want %d", file[5], elfDataLittle)
	case machine != elfX86:
		return fmt.Errorf("not an x86-64 ELF64 file: machine %d, want %d", machine, elfX86)
	case typ == elfTypeDyn:
		return fmt.Errorf("not a static executable: ELF type %d (ET_DYN), want %d (ET_EXEC): link with -static -no-pie", typ, elfTypeExec)
	case typ != elfTypeExec:
		return fmt.Errorf("not an executable: ELF type %d, want %d (ET_EXEC)", typ, elfTypeExec)
	}
	return nil
}

// parseSegment reads program header number i. A segment of a kind that is not loaded comes back with size 0.
func parseSegment(file []byte, i int, h []byte) (segment, error) {
	le := binary.LittleEndian
	switch le.Uint32(h[0:]) {
	case segmentInterp, segmentDynamic:
		return segment{}, fmt.Errorf("not a static executable: segment %d asks for a dynamic linker: link with -static -no-pie", i)
	case segmentLoad:
	default:
		return segment{}, nil
	}
	off, addr, fileSize, memSize := le.Uint64(h[8:]), le.Uint64(h[24:]), le.Uint64(h[32:]), le.Uint64(h[40:])
	switch {
	case fileSize > memSize:
		return segment{}, fmt.Errorf("segment %d has %d bytes in the file but only %d in memory", i, fileSize, memSize)
	case off > uint64(len(file)) || fileSize > uint64(len(file))-off:
		return segment{}, fmt.Errorf("segment %d's bytes [0x%x, +%d) lie outside the file of %d bytes: is it truncated?", i, off, fileSize, len(file))
	case addr+memSize < addr:
		return segment{}, fmt.Errorf("segment %d at 0x%x with %d bytes wraps around the address space", i, addr, memSize)
	}
	return segment{number: i, addr: addr, size: memSize, data: file[off : off+fileSize]}, nil
}

// check holds the image against the VM's memory.
func (img *image) check(memory ident.Bytes) error {
	var before segment
	entryIn := false
	for i, s := range img.byAddress() {
		switch {
		case s.addr < ImageBase:
			return fmt.Errorf("%s starts below 0x%x, which is the loader's own: link with -Ttext=0x400000 or the like", s, ImageBase)
		case s.end() > uint64(memory):
			return fmt.Errorf("%s ends beyond the VM's memory of %s: give it at least %d MiB", s, memory, roundUp(s.end(), 1<<20)>>20)
		case i > 0 && s.addr < before.end():
			first, second := before, s
			if first.number > second.number {
				first, second = second, first
			}
			return fmt.Errorf("%s overlaps %s", second, first)
		}
		entryIn = entryIn || img.entry >= s.addr && img.entry < s.end()
		before = s
	}
	if !entryIn {
		return fmt.Errorf("entry point 0x%x lies in no loaded segment", img.entry)
	}
	return nil
}

func (img *image) byAddress() []segment {
	out := slices.Clone(img.segments)
	slices.SortStableFunc(out, func(a, b segment) int {
		if a.addr < b.addr {
			return -1
		}
		if a.addr > b.addr {
			return 1
		}
		return a.number - b.number
	})
	return out
}
