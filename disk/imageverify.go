package disk

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Verify reads up to most blocks that have contents, from first on, and returns those that are not what was written, and where to go on. Holes are
// passed over. What the kernel has of the blocks in its cache is dropped before, where nothing waits to be written, so that the disk itself is asked.
func (m *Image) Verify(first, most uint64) (bad []uint64, next uint64, err error) {
	data := uint64(nextData(m.data, int64(first)*BlockBytes, m.bytes)) / BlockBytes
	if f, ok := m.data.(osFile); ok {
		_ = unix.Fadvise(int(f.Fd()), int64(data)*BlockBytes, int64(most)*BlockBytes, unix.FADV_DONTNEED) // only advice
	}
	buf := make([]byte, BlockBytes)
	for next = first; next < m.Blocks() && (next < data || most > 0); next++ {
		if next >= data {
			most--
		} else if m.isZero(next) {
			continue
		}
		switch err := m.ReadBlock(next, buf); {
		case errors.Is(err, ErrBadBlock):
			bad = append(bad, next)
		case err != nil:
			return bad, next, err
		}
	}
	return bad, next, nil
}

// isZero tells whether a hole of the image is what a block should be.
func (m *Image) isZero(block uint64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, journalled := m.newer[block]
	return !journalled && m.sums[block] == zeroSum
}
