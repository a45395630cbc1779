package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The journal of an image: batches of whole blocks, each of which is there or is not.
//
//	batch:  header 64 | table, 16 a block | zeros up to a block boundary | blocks that are not all zeros
//	header: magic 4 | count 4 | epoch 8 | seq 8 | synced 8 | CRC of the table 4 | zeros | CRC of the header 4
//	table:  block 8 | CRC of its contents 4 | flags 4 (bit 0: all zeros, bit 1: not to be had; both are left out)
//
// All integers are little endian, all CRCs CRC-32C. Epoch is that of the header of the checksums: a journal of another epoch has been carried out.
// Seq rises by one; synced is the last seq that was known to be durable when the batch was written.
//
// What a crash leaves is a tail of sectors that never arrived, which read as zeros, since a journal begins as an empty file. So a batch that is
// wrong is torn if nothing durable follows it and a sector of what is wrong is all zeros or missing. Otherwise it is damaged.

const (
	batchMagic       = 0x424a5643 // "CVJB"
	batchHeaderBytes = 64
	batchEntryBytes  = 16
	batchZero        = 1
	batchLost        = 2
	sectorBytes      = 512

	// MaxBatchBlocks bounds one batch.
	MaxBatchBlocks = 1 << 16
)

// Write is one block to be written. Data is BlockBytes long, or nil for zeros. Of a block that is Lost nobody has the contents: reads of it fail until
// it is written again, unless the image has what the checksum Sum says.
type Write struct {
	Block uint64
	Data  []byte
	Lost  bool
	Sum   uint32
}

var zeroBlock [BlockBytes]byte

func sumOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

var zeroSum = sumOf(zeroBlock[:])

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// placed says where a block's contents lie in the journal; offset 0 means zeros, offset lost that nobody has them.
type placed struct {
	block  uint64
	offset int64
	sum    uint32
}

const lost = -1

func tableBytes(count int) int {
	return (batchHeaderBytes + count*batchEntryBytes + BlockBytes - 1) / BlockBytes * BlockBytes
}

// encodeBatch returns the bytes of a batch that is to lie at offset at, and where its blocks lie.
func encodeBatch(writes []Write, epoch, seq, synced uint64, at int64) ([]byte, []placed) {
	le := binary.LittleEndian
	b := make([]byte, tableBytes(len(writes)), tableBytes(len(writes))+len(writes)*BlockBytes)
	where := make([]placed, len(writes))
	for i, w := range writes {
		e := b[batchHeaderBytes+i*batchEntryBytes:]
		le.PutUint64(e, w.Block)
		if w.Lost {
			le.PutUint32(e[8:], w.Sum)
			le.PutUint32(e[12:], batchLost)
			where[i] = placed{w.Block, lost, w.Sum}
			continue
		}
		if w.Data == nil || allZero(w.Data) {
			le.PutUint32(e[8:], zeroSum)
			le.PutUint32(e[12:], batchZero)
			where[i] = placed{w.Block, 0, zeroSum}
			continue
		}
		sum := sumOf(w.Data)
		le.PutUint32(e[8:], sum)
		where[i] = placed{w.Block, at + int64(len(b)), sum}
		b = append(b, w.Data...)
	}
	le.PutUint32(b[0:], batchMagic)
	le.PutUint32(b[4:], uint32(len(writes)))
	le.PutUint64(b[8:], epoch)
	le.PutUint64(b[16:], seq)
	le.PutUint64(b[24:], synced)
	le.PutUint32(b[32:], sumOf(b[batchHeaderBytes:tableBytes(len(writes))]))
	le.PutUint32(b[60:], sumOf(b[:60]))
	return b, where
}

// batch is a batch as found.
type batch struct {
	seq, synced uint64
	where       []placed
	end         int64
}

var (
	errNoBatch  = errors.New("no batch")
	errTorn     = errors.New("batch is torn")
	errBadBatch = errors.New("batch is damaged")
)

// readBatch reads and verifies the batch at an offset of a journal of size bytes.
func readBatch(f File, at, size int64, epoch, blocks uint64) (batch, error) {
	le := binary.LittleEndian
	head := make([]byte, BlockBytes)
	if at >= size {
		return batch{}, errNoBatch
	}
	if err := readFull(f, head, at); err != nil {
		return batch{}, err
	}
	if allZero(head[:batchHeaderBytes]) {
		return batch{}, errNoBatch
	}
	count := int(le.Uint32(head[4:]))
	if le.Uint32(head) != batchMagic || le.Uint32(head[60:]) != sumOf(head[:60]) || count < 1 || count > MaxBatchBlocks {
		return batch{}, errBadBatch
	}
	if le.Uint64(head[8:]) != epoch {
		return batch{}, errNoBatch // of a journal that was carried out
	}
	out := batch{seq: le.Uint64(head[16:]), synced: le.Uint64(head[24:]), end: at + int64(tableBytes(count))}
	table := make([]byte, tableBytes(count))
	if err := readFull(f, table, at); err != nil {
		return out, err
	}
	if sumOf(table[batchHeaderBytes:]) != le.Uint32(head[32:]) {
		return out, wrong(table[batchHeaderBytes:])
	}
	data := make([]byte, BlockBytes)
	for i := range count {
		e := table[batchHeaderBytes+i*batchEntryBytes:]
		p := placed{block: le.Uint64(e), sum: le.Uint32(e[8:])}
		if p.block >= blocks {
			return out, errBadBatch
		}
		switch flags := le.Uint32(e[12:]); {
		case flags&batchLost != 0:
			p.offset = lost
		case flags&batchZero == 0:
			p.offset = out.end
			out.end += BlockBytes
			if err := readFull(f, data, p.offset); err != nil {
				return out, err
			}
			if sumOf(data) != p.sum {
				return out, wrong(data)
			}
		}
		out.where = append(out.where, p)
	}
	return out, nil
}

// wrong tells torn contents from damaged ones.
func wrong(b []byte) error {
	for ; len(b) > 0; b = b[min(len(b), sectorBytes):] {
		if allZero(b[:min(len(b), sectorBytes)]) {
			return errTorn
		}
	}
	return errBadBatch
}

// scanJournal returns the batches of a journal in their order. A torn end is left out; damage is an error that wraps ErrDamaged.
func scanJournal(f File, epoch, blocks uint64) ([]batch, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	var out []batch
	for at := int64(0); ; {
		b, err := readBatch(f, at, size, epoch, blocks)
		if err == nil && len(out) > 0 && b.seq != out[len(out)-1].seq+1 {
			err = errBadBatch
		}
		switch {
		case err == nil:
			out, at = append(out, b), b.end
			continue
		case errors.Is(err, errNoBatch), errors.Is(err, errTorn):
			seq := uint64(0)
			if len(out) > 0 {
				seq = out[len(out)-1].seq
			}
			if later := durableBehind(f, at, size, epoch, blocks); later > seq {
				return out, fmt.Errorf("%w: journal batch %d, which was durable, is missing at byte %d", ErrDamaged, seq+1, at)
			}
			return out, nil
		case errors.Is(err, errBadBatch):
			return out, fmt.Errorf("%w: journal batch behind number %d, at byte %d", ErrDamaged, lastSeq(out), at)
		default:
			return out, fmt.Errorf("read journal: %w", err)
		}
	}
}

func lastSeq(b []batch) uint64 {
	if len(b) == 0 {
		return 0
	}
	return b[len(b)-1].seq
}

// durableBehind looks for batches behind a place where there is none, and returns the highest seq that one of them says is durable.
func durableBehind(f File, at, size int64, epoch, blocks uint64) (synced uint64) {
	for at += BlockBytes; at < size; at += BlockBytes {
		if b, err := readBatch(f, at, size, epoch, blocks); err == nil {
			synced = max(synced, b.synced)
		}
	}
	return synced
}
