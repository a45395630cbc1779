package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A share is what one member adds to a checkpoint: records, packed into chunks that fit a message of the replica plane.
//
//	chunk:  number 8 | since 8 | boot 8 | members 8 | index 4 | part 1 | flags 1 | records, perhaps compressed
//	record: type 1 | page 8 or offset 8 or vCPU 8 | length 4 | bytes
//
// All integers are little endian.
type recordType uint8

const (
	recordPage     recordType = iota + 1 // the contents of a page
	recordZero                           // a page that is all zeros, without bytes
	recordVCPU                           // an origin
	recordDevice                         // homeState
	recordConsole                        // console bytes at an offset
	recordOutput                         // output log bytes at an offset
	recordDisk                           // a block of a disk, see diskKey
	recordDiff                           // what changed in a page since the last checkpoint, see appendDiff
	recordOnDisk                         // a page that equals a disk block as of this checkpoint, see addOnDisk
	recordLost                           // a block of a disk whose contents nobody has: the checksum 4 of what it should be
	recordLogStart                       // where a log of output begins, as wire.LogStart; the key is recordConsole or recordOutput
)

const (
	chunkHeaderBytes  = 8 + 8 + 8 + 8 + 4 + 1 + 1
	recordHeaderBytes = 1 + 8 + 4
	chunkRecordBytes  = 60 << 10 // records in one chunk, before compression; below wire.DeviceBodyLimit with all headers

	chunkBase       = 1 // not of a checkpoint: a full copy, on top of which the checkpoints come
	chunkLast       = 2 // the share's last chunk: index+1 is their number
	chunkCompressed = 4
)

// chunkHeader says what a chunk belongs to.
type chunkHeader struct {
	number  uint64      // of the checkpoint; for a base, of the protection
	since   uint64      // a checkpoint that all standbys hold: what was written since is in the shares
	booted  ident.Epoch // the guest's boot that it is of: memory was Zero then
	members ident.PartSet
	index   uint32
	part    ident.Part
	flags   uint8
}

// share collects records.
type share struct {
	header chunkHeader
	chunks [][]byte // records, not compressed yet

	disks   *share   // what mirrors get of the checkpoint; nil if there are none
	encoded [][]byte // the chunks as they are sent, the operation's byte first
}

// add appends a record. Longer bytes than fit a chunk are the caller's to split.
func (s *share) add(t recordType, key uint64, b []byte) {
	size := recordHeaderBytes + len(b)
	if n := len(s.chunks); n == 0 || len(s.chunks[n-1])+size > chunkRecordBytes {
		s.chunks = append(s.chunks, make([]byte, 0, chunkRecordBytes))
	}
	last := &s.chunks[len(s.chunks)-1]
	*last = append(*last, byte(t))
	*last = binary.LittleEndian.AppendUint64(*last, key)
	*last = binary.LittleEndian.AppendUint32(*last, uint32(len(b)))
	*last = append(*last, b...)
}

// streamPiece is how many bytes of output a record holds at most.
const streamPiece = 32 << 10

// addStart appends where a log begins, if something of it was dropped.
func (s *share) addStart(t recordType, start wire.LogStart) {
	if start.Offset > 0 {
		s.add(recordLogStart, uint64(t), start.Encode())
	}
}

// addStream appends a piece of output, split as needed.
func (s *share) addStream(t recordType, p outputPiece) {
	for len(p.bytes) > 0 {
		n := min(len(p.bytes), streamPiece)
		s.add(t, uint64(p.offset), p.bytes[:n])
		p.offset, p.bytes = p.offset+int64(n), p.bytes[n:]
	}
}

// encode makes chunk i ready to be sent, appended to dst after head bytes. Compression is used where it pays.
func (s *share) encode(dst []byte, i int, last bool) []byte { return s.encodeAt(dst, i, i, last) }

// encodeAt is encode for a chunk that has another index in a share that is sent piece by piece.
func (s *share) encodeAt(dst []byte, i, index int, last bool) []byte {
	h := s.header
	h.index = uint32(index)
	if last {
		h.flags |= chunkLast
	}
	records := s.chunks[i]
	room := compressRoom.Get().(*[]byte)
	defer compressRoom.Put(room)
	if packed := s2.Encode(*room, records); len(packed) < len(records)*9/10 {
		h.flags |= chunkCompressed
		records = packed
	}
	dst = binary.LittleEndian.AppendUint64(dst, h.number)
	dst = binary.LittleEndian.AppendUint64(dst, h.since)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.booted))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.members))
	dst = binary.LittleEndian.AppendUint32(dst, h.index)
	dst = append(dst, byte(h.part), h.flags)
	return append(dst, records...)
}

// compressRoom are buffers that any chunk's compressed form fits.
var compressRoom = sync.Pool{New: func() any { b := make([]byte, s2.MaxEncodedLen(chunkRecordBytes)); return &b }}

// say makes sure that there is a chunk: a share without records is one too, since a part that runs no vCPU and has written nothing must say so, else the standbys
// wait for it.
func (s *share) say() {
	if len(s.chunks) == 0 {
		s.chunks = [][]byte{nil}
	}
}

// encodeAll makes all chunks ready to be sent.
func (s *share) encodeAll() {
	s.say()
	for i := range s.chunks {
		buf := make([]byte, 1, 1+chunkHeaderBytes+len(s.chunks[i]))
		buf[0] = byte(replicaChunk)
		s.encoded = append(s.encoded, s.encode(buf, i, i == len(s.chunks)-1))
	}
	s.chunks = nil
}

var errBadShare = errors.New("malformed share of a checkpoint")

// decodeChunk checks a chunk and returns its records, which do not alias b.
func decodeChunk(b []byte) (h chunkHeader, records []byte, err error) {
	if len(b) < chunkHeaderBytes {
		return h, nil, fmt.Errorf("%w: chunk of %d bytes", errBadShare, len(b))
	}
	h = chunkHeader{
		number:  binary.LittleEndian.Uint64(b),
		since:   binary.LittleEndian.Uint64(b[8:]),
		booted:  ident.Epoch(binary.LittleEndian.Uint64(b[16:])),
		members: ident.PartSet(binary.LittleEndian.Uint64(b[24:])),
		index:   binary.LittleEndian.Uint32(b[32:]),
		part:    ident.Part(b[36]),
		flags:   b[37],
	}
	if h.part >= ident.MaxParts || !h.members.Has(h.part) || h.index > 1<<24 {
		return h, nil, fmt.Errorf("%w: chunk %d of %s", errBadShare, h.index, h.part)
	}
	body := b[chunkHeaderBytes:]
	if h.flags&chunkCompressed == 0 {
		return h, append([]byte(nil), body...), nil
	}
	n, err := s2.DecodedLen(body)
	if err != nil || n > chunkRecordBytes {
		return h, nil, fmt.Errorf("%w: compressed chunk of %d bytes: %v", errBadShare, n, err)
	}
	if records, err = s2.Decode(nil, body); err != nil {
		return h, nil, fmt.Errorf("%w: %w", errBadShare, err)
	}
	return h, records, nil
}

// eachRecord calls f for the records of a chunk.
func eachRecord(records []byte, f func(t recordType, key uint64, b []byte) error) error {
	for len(records) > 0 {
		if len(records) < recordHeaderBytes {
			return fmt.Errorf("%w: record is cut short", errBadShare)
		}
		t, key := recordType(records[0]), binary.LittleEndian.Uint64(records[1:])
		n := binary.LittleEndian.Uint32(records[9:])
		records = records[recordHeaderBytes:]
		if uint64(n) > uint64(len(records)) || t == recordPage && n != ident.PageSize {
			return fmt.Errorf("%w: record of type %d with %d bytes", errBadShare, t, n)
		}
		if err := f(t, key, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

var _ = [1]struct{}{}[(chunkHeaderBytes+chunkRecordBytes+1)/wire.DeviceBodyLimit] // a chunk fits a message
