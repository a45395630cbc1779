package worker

import (
	"hash/crc32"

	"github.com/cellvisor/cellvisor/disk"
)

// zeroPiece is how many bytes are zeroed at once: a driver may ask for gigabytes, which are neither held in memory nor journalled as one batch.
const zeroPiece = 16 << 20

// Zero implements virtio.Disk.
func (g *guestDisk) Zero(off, n int64) error {
	for end := off + n; off < end; {
		piece := min(end-off, zeroPiece-off%zeroPiece)
		if err := g.write(off, piece, func(to []byte, _ int64) { clear(to) }); err != nil {
			return err
		}
		off += piece
	}
	return nil
}

var zeroSum = crc32.Checksum(zeroPage[:], castagnoli)

// Discard implements virtio.Disk. Copies must be equal, so what was discarded is zeros. A block whose checksum is that of zeros stays as it is, here and
// in the copies: of a disk that is discarded as a whole, as most are when a file system is made, nearly all are.
func (g *guestDisk) Discard(off, n int64) error {
	for end := off + n; off < end; {
		from := off
		for off < end && off-from < zeroPiece && !g.isVoid(off, end) {
			off = min(end, (off/disk.BlockBytes+1)*disk.BlockBytes)
		}
		if err := g.Zero(from, off-from); err != nil {
			return err
		}
		for off < end && g.isVoid(off, end) {
			off += disk.BlockBytes
		}
	}
	return nil
}

// isVoid tells whether a whole block begins at off that nothing but zeros, as far as its checksum tells, was ever written to.
func (g *guestDisk) isVoid(off, end int64) bool {
	block := uint64(off) / disk.BlockBytes
	if off%disk.BlockBytes != 0 || end-off < disk.BlockBytes || block >= g.image.Blocks() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, waits := g.layers.Find(block)
	return !waits && g.image.Sum(block) == zeroSum
}
