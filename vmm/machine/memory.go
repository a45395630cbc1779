package machine

import (
	"fmt"
	"io"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/linux"
)

// Backing is a VM part's RAM by offset, from 0 to its size. ram.RAM is one; on a VM that spans servers, one that first brings each page here by
// the page protocol and holds it meanwhile. 16-bit accesses are single ones, and ordered with all others.
type Backing interface {
	io.ReaderAt
	io.WriterAt
	Load16(off int64) (uint16, error)
	Store16(off int64, value uint16) error
}

// Freer is Backing that can drop the contents of whole pages, which read as zeros then. It may leave them as they are.
type Freer interface {
	Free(off, n int64) error
}

// memory is RAM by guest-physical address, as devices see it: the hole below 4 GiB is taken out. It implements virtio.Memory.
type memory struct {
	backing Backing
	ranges  []linux.Range
}

func newMemory(backing Backing, size ident.Bytes) *memory {
	return &memory{backing, linux.RAM(size)}
}

// offset translates a guest-physical address whose n bytes must lie in one range.
func (m *memory) offset(addr uint64, n int) (int64, error) {
	for _, r := range m.ranges {
		if addr >= r.Addr && addr-r.Addr <= r.Size && uint64(n) <= r.Size-(addr-r.Addr) {
			return int64(r.Offset + addr - r.Addr), nil
		}
	}
	return 0, fmt.Errorf("%d bytes at guest-physical 0x%x are not memory", n, addr)
}

// Free drops guest-physical memory, whole pages, if the backing can.
func (m *memory) Free(addr, n uint64) error {
	off, err := m.offset(addr, int(n))
	if f, ok := m.backing.(Freer); ok && err == nil {
		err = f.Free(off, int64(n))
	}
	return err
}

// ReadAt reads guest-physical memory.
func (m *memory) ReadAt(b []byte, addr int64) (int, error) {
	off, err := m.offset(uint64(addr), len(b))
	if err != nil {
		return 0, err
	}
	return m.backing.ReadAt(b, off)
}

// WriteAt writes guest-physical memory.
func (m *memory) WriteAt(b []byte, addr int64) (int, error) {
	off, err := m.offset(uint64(addr), len(b))
	if err != nil {
		return 0, err
	}
	return m.backing.WriteAt(b, off)
}

// Load16 reads an aligned 16-bit word.
func (m *memory) Load16(addr uint64) (uint16, error) {
	off, err := m.offset(addr, 2)
	if err != nil {
		return 0, err
	}
	return m.backing.Load16(off)
}

// Store16 writes an aligned 16-bit word.
func (m *memory) Store16(addr uint64, value uint16) error {
	off, err := m.offset(addr, 2)
	if err != nil {
		return err
	}
	return m.backing.Store16(off, value)
}
