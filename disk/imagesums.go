package disk

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// imageHeader is the header of the checksums.
type imageHeader struct {
	serial     uint64 // rises with each writing
	bytes      uint64
	epoch      uint64 // of the journal
	generation uint64
	modified   int64 // of a linked image, when it was closed: nanoseconds; 0: it was not
}

const (
	sumsMagic       = 0x53445643 // "CVDS"
	sumsVersion     = 1
	imageHeaderSize = 64
	sumsAt          = BlockBytes
)

func (h imageHeader) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, imageHeaderSize)
	le.PutUint32(b, sumsMagic)
	le.PutUint32(b[4:], sumsVersion)
	for i, v := range []uint64{h.serial, h.bytes, h.epoch, h.generation, uint64(h.modified)} {
		le.PutUint64(b[8+8*i:], v)
	}
	le.PutUint32(b[60:], sumOf(b[:60]))
	return b
}

func decodeImageHeader(b []byte) (imageHeader, bool) {
	le := binary.LittleEndian
	if len(b) < imageHeaderSize || le.Uint32(b) != sumsMagic || le.Uint32(b[4:]) != sumsVersion || le.Uint32(b[60:]) != sumOf(b[:60]) {
		return imageHeader{}, false
	}
	return imageHeader{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), int64(le.Uint64(b[40:]))}, true
}

// loadSums reads the checksums, or computes them for an image that is new here or was changed from outside.
func (m *Image) loadSums(c ImageConfig) error {
	head := make([]byte, BlockBytes)
	if err := readFull(m.sumsFile, head, 0); err != nil {
		return err
	}
	a, okA := decodeImageHeader(head)
	b, okB := decodeImageHeader(head[sectorBytes:])
	fresh := allZero(head)
	switch {
	case okA && (!okB || a.serial > b.serial):
		m.head = a
	case okB:
		m.head = b
	case !fresh && !c.Discard:
		return fmt.Errorf("%w: the header of its checksums", ErrDamaged)
	}
	m.sums = make([]uint32, m.Blocks())
	if !okA && !okB || m.head.bytes != uint64(m.bytes) || m.changedOutside() {
		return m.rebuild(nil)
	}
	raw := make([]byte, 4*len(m.sums))
	if err := readFull(m.sumsFile, raw, sumsAt); err != nil {
		return err
	}
	for i := range m.sums {
		m.sums[i] = binary.LittleEndian.Uint32(raw[4*i:])
	}
	if c.Discard {
		return m.rebuild(slices.Clone(m.sums))
	}
	return nil
}

// changedOutside tells whether a linked image, which its owner may use between two runs, is not what it was when it was closed.
func (m *Image) changedOutside() bool {
	if !m.linked || m.head.modified == 0 {
		return false
	}
	at, ok := m.modified()
	return ok && at != m.head.modified
}

// modified is when the image's file last changed, in nanoseconds; false if that is not to be known.
func (m *Image) modified() (int64, bool) {
	f, ok := m.data.(osFile)
	if !ok {
		info, err := os.Stat(filepath.Join(m.dir, "image"))
		return modTime(info, err)
	}
	info, err := f.Stat()
	return modTime(info, err)
}

func modTime(info os.FileInfo, err error) (int64, bool) {
	if err != nil {
		return 0, false
	}
	return info.ModTime().UnixNano(), true
}

// rebuild computes all checksums from the image's contents, and compares them with those that are known. What a journal of before holds counts no
// more.
func (m *Image) rebuild(known []uint32) error {
	m.rebuilt = true
	for i := range m.sums {
		m.sums[i] = zeroSum
	}
	buf := make([]byte, 256*BlockBytes)
	for off := int64(0); off < m.bytes; {
		off = nextData(m.data, off, m.bytes) / BlockBytes * BlockBytes
		n := min(int64(len(buf)), m.bytes-off)
		if n <= 0 {
			break
		}
		if err := readFull(m.data, buf[:n], off); err != nil {
			return err
		}
		for i := int64(0); i < n; i += BlockBytes {
			m.sums[(off+i)/BlockBytes] = sumOf(buf[i : i+BlockBytes])
		}
		off += n
	}
	for i := range known {
		if known[i] != m.sums[i] {
			m.damaged++
		}
	}
	all := make([]uint64, len(m.sums))
	for i := range all {
		all[i] = uint64(i)
	}
	m.head.epoch++
	m.head.bytes = uint64(m.bytes)
	if err := m.writeSums(all); err != nil {
		return err
	}
	return m.journal.Truncate(0)
}

// writeSums makes the checksums of blocks, in rising order, durable, then the header.
func (m *Image) writeSums(blocks []uint64) error {
	for i := 0; i < len(blocks); {
		j := i + 1
		for j < len(blocks) && blocks[j] == blocks[j-1]+1 {
			j++
		}
		run := make([]byte, 0, 4*(j-i))
		for _, block := range blocks[i:j] {
			run = binary.LittleEndian.AppendUint32(run, m.sums[block])
		}
		if _, err := m.sumsFile.WriteAt(run, sumsAt+4*int64(blocks[i])); err != nil {
			return err
		}
		i = j
	}
	if err := m.sumsFile.Sync(); err != nil {
		return err
	}
	return m.writeHeader()
}

// writeHeader writes the header into the place of the older of the two.
func (m *Image) writeHeader() error {
	m.head.serial++
	if _, err := m.sumsFile.WriteAt(m.head.encode(), int64(m.head.serial%2)*sectorBytes); err != nil {
		return err
	}
	return m.sumsFile.Sync()
}
