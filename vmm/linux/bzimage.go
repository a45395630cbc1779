package linux

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/cellvisor/cellvisor/ident"
)

// Offsets in a bzImage and in boot_params: Documentation/arch/x86/boot.rst, the Linux/x86 boot protocol.
const (
	hdrSetupSects    = 0x1f1
	hdrBootFlag      = 0x1fe
	hdrMagic         = 0x202 // "HdrS"
	hdrVersion       = 0x206
	hdrTypeOfLoader  = 0x210
	hdrLoadFlags     = 0x211
	hdrRamdiskImage  = 0x218
	hdrRamdiskSize   = 0x21c
	hdrCmdLine       = 0x228
	hdrXloadflags    = 0x236
	hdrPayloadOffset = 0x248
	hdrPayloadLength = 0x24c
	hdrPrefAddress   = 0x258
	hdrInitSize      = 0x260
	hdrEnd           = 0x268

	zeroE820Entries = 0x1e8
	zeroACPIRSDP    = 0x070
	zeroE820Table   = 0x2d0

	minProtocol   = 0x020c // 64-bit entry and xloadflags: Linux 3.8
	kernel64      = 1 << 0 // xloadflags: entry at +0x200
	entry64Offset = 0x200

	maxKernelBytes = 512 << 20
)

// ErrCompression is wrapped by Decompress when the payload's compression is not one that is understood here.
var ErrCompression = errors.New("kernel is compressed in a way that is not understood here")

func isBzImage(b []byte) bool {
	return len(b) > hdrEnd && string(b[hdrMagic:hdrMagic+4]) == "HdrS"
}

// protectedMode is the part of a bzImage behind its setup sectors.
func protectedMode(file []byte) ([]byte, error) {
	sectors := int(file[hdrSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors + 1) * 512
	if start >= len(file) {
		return nil, fmt.Errorf("bzImage of %d bytes ends inside its %d setup sectors: is it cut short?", len(file), sectors)
	}
	return file[start:], nil
}

// Decompress takes the ELF kernel out of a bzImage whose payload is compressed with zstd, LZ4 or gzip, or not at all.
func Decompress(file []byte) ([]byte, error) {
	if !isBzImage(file) {
		return nil, fmt.Errorf("not a bzImage")
	}
	code, err := protectedMode(file)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	off, length := uint64(le.Uint32(file[hdrPayloadOffset:])), uint64(le.Uint32(file[hdrPayloadLength:]))
	if off > uint64(len(code)) || length > uint64(len(code))-off || length < 8 {
		return nil, fmt.Errorf("bzImage's payload [0x%x, +%d) lies outside the file: is it cut short?", off, length)
	}
	payload := code[off : off+length-4] // the last four bytes are the size when decompressed
	var r io.Reader
	switch {
	case isELF(payload):
		return payload, nil
	case binary.LittleEndian.Uint32(payload) == lz4Magic:
		return lz4Decompress(payload)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(payload))
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(payload), zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, fmt.Errorf("%w: it begins with % x", ErrCompression, payload[:4])
	}
	if err != nil {
		return nil, fmt.Errorf("decompress kernel: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxKernelBytes))
	if err != nil {
		return nil, fmt.Errorf("decompress kernel: %w", err)
	}
	return out, nil
}

// loadBzImage places a bzImage, which decompresses itself, and enters it in 64-bit mode.
func (l *loader) loadBzImage(file []byte) error {
	le := binary.LittleEndian
	if v := le.Uint16(file[hdrVersion:]); v < minProtocol {
		return fmt.Errorf("bzImage speaks boot protocol %d.%02d: at least 2.12 is needed (Linux 3.8)", v>>8, v&0xff)
	}
	if le.Uint16(file[hdrXloadflags:])&kernel64 == 0 {
		return fmt.Errorf("bzImage has no 64-bit entry: is it a 32-bit kernel?")
	}
	code, err := protectedMode(file)
	if err != nil {
		return err
	}
	at, need := le.Uint64(file[hdrPrefAddress:]), uint64(le.Uint32(file[hdrInitSize:]))
	limit := RAM(l.Memory)[0].Size
	if l.initrdAddr != 0 {
		limit = l.initrdAddr
	}
	if at < highMemory || need < uint64(len(code)) || at > limit || need > limit-at {
		return fmt.Errorf("kernel wants %s from 0x%x, memory there ends at 0x%x: give the VM more memory", ident.Bytes(need), at, limit)
	}
	l.add(at, code)
	l.add(zeroPageAddr, l.zeroPage(file))
	l.add(pageTablesAddr, identityTables())
	l.image.Entry = Entry{Mode: Long64, RIP: at + entry64Offset, RSI: zeroPageAddr, GDT: gdtAddr, CR3: pageTablesAddr}
	return nil
}

// zeroPage is struct boot_params: the kernel's own setup header with the loader's fields filled in, and the memory map.
func (l *loader) zeroPage(file []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096)
	end := min(0x202+int(file[0x201]), 0x290) // the header ends where its jump instruction goes to
	copy(b[hdrSetupSects:end], file[hdrSetupSects:end])
	const (
		otherLoader = 0xff
		loadedHigh  = 1 << 0
	)
	b[hdrTypeOfLoader] = otherLoader
	b[hdrLoadFlags] |= loadedHigh
	le.PutUint32(b[hdrRamdiskImage:], uint32(l.initrdAddr))
	le.PutUint32(b[hdrRamdiskSize:], uint32(len(l.Initrd)))
	le.PutUint32(b[hdrCmdLine:], cmdlineAddr)
	le.PutUint64(b[zeroACPIRSDP:], acpiAddr)
	entries := memoryMap(l.Memory)
	b[zeroE820Entries] = byte(len(entries))
	for i, e := range entries {
		at := b[zeroE820Table+20*i:]
		le.PutUint64(at[0:], e.addr)
		le.PutUint64(at[8:], e.size)
		le.PutUint32(at[16:], e.kind)
	}
	return b
}

// identityTables maps the first 4 GiB at their own addresses with 2 MiB pages: PML4, PDPT, four page directories.
func identityTables() []byte {
	const present, writable, large, page = 1, 2, 0x80, 4096
	le := binary.LittleEndian
	b := make([]byte, 6*page)
	le.PutUint64(b, pageTablesAddr+page|present|writable)
	for d := range 4 {
		le.PutUint64(b[page+8*d:], uint64(pageTablesAddr+(2+d)*page|present|writable))
		for i := range 512 {
			le.PutUint64(b[(2+d)*page+8*i:], uint64(d)<<30|uint64(i)<<21|present|writable|large)
		}
	}
	return b
}

// flatGDT holds the descriptors of the entry state: null twice, code at 0x10 (64-bit; PVH's caller state has no use for selectors), data at 0x18.
func flatGDT() []byte {
	b := make([]byte, 32)
	binary.LittleEndian.PutUint64(b[16:], 0x00af9b000000ffff)
	binary.LittleEndian.PutUint64(b[24:], 0x00cf93000000ffff)
	return b
}
