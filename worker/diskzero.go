package worker

import (
	"bytes"
	"hash/crc32"

	"github.com/cellvisor/cellvisor/disk"
)

// zeroPiece is how many bytes are zeroed at once: a driver may ask for gigabytes, which are neither held in memory nor journalled as one batch.
const zeroPiece = 16 << 20

var zeroSum = crc32.Checksum(zeroPage[:], castagnoli)

// Discard implements virtio.Disk. Copies must be equal, so what was discarded is zeros.
func (g *guestDisk) Discard(off, n int64) error { return g.Zero(off, n) }

// Zero implements virtio.Disk. A block that is zeros, as far as its checksum tells, stays as it is, here and in the copies: of a disk that is cleared as a
// whole, as most are when a file system is made, nearly all are. So a request that is done again, since it had to wait for checkpoints, comes further.
func (g *guestDisk) Zero(off, n int64) error {
	for end := off + n; off < end; {
		from := off
		for off < end && off-from < zeroPiece && !g.isVoid(off, end) {
			off = min(end, (off/disk.BlockBytes+1)*disk.BlockBytes)
		}
		if off > from {
			if err := g.write(from, off-from, func(to []byte, _ int64) { clear(to) }); err != nil {
				return err
			}
		}
		for off < end && g.isVoid(off, end) {
			off += disk.BlockBytes
		}
	}
	return nil
}

// isVoid tells whether a whole block begins at off that holds nothing but zeros, as far as its checksum tells.
func (g *guestDisk) isVoid(off, end int64) bool {
	block := uint64(off) / disk.BlockBytes
	if off%disk.BlockBytes != 0 || end-off < disk.BlockBytes || block >= g.image.Blocks() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if b, waits := g.layers.Find(block); waits {
		return bytes.Equal(b, zeroPage[:])
	}
	_, lost := g.lost[block]
	return !lost && g.image.Sum(block) == zeroSum
}
