package worker

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
)

// A page that equals a disk block needs no replica: a standby has a copy of the disk as of the same checkpoint. So the checkpoint names the block and the
// checksum of both, and the standby leaves the page to its copy until the block is about to be rewritten, or it takes over.
//
//	home, at the cut:   page is paired with the block (mem/srt), devices at rest  -> recordOnDisk instead of recordPage
//	standby, applying:  pages left to blocks that this checkpoint rewrites -> memory; pages and blocks; the named pages are left to the disk
//	standby, new home:  all pages that are left -> memory, each checked against its sum
//
// Only standbys that already hold a checkpoint are told so: their copies of the disks are whole.

// leftMost bounds how many pages a standby leaves to its disks, and so for how long taking over reads them: some 10 us each.
const leftMost = 4096

// onDisk says that a page of an arena equals a disk block.
type onDisk struct {
	at    int // in the arena's pages
	block srt.Block
}

// onDisk appends which of the pages have a live pair. It requires the plane's mu. All vCPUs and devices must be held.
func (c *blockCache) onDisk(dst []onDisk, pages []ident.PageNo) []onDisk {
	if c == nil {
		return dst
	}
	for i, page := range pages {
		if b, ok := c.table.BlockOf(page); ok {
			dst = append(dst, onDisk{at: i, block: b})
		}
	}
	return dst
}

// followsDisks tells whether all standbys hold a checkpoint, and so the VM's disks as of that.
func (r *replicas) followsDisks(history bool) bool {
	h := r.w.home.Load()
	if history || h == nil || !h.hasDisks() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.protect.Standbys != 0 && r.protect.Standbys&^r.safe == 0 && r.lineage.pending&r.protect.Standbys == 0
}

func (h *home) hasDisks() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disks != nil
}

// onDiskBytes is the length of a recordOnDisk: the block's key 8 | checksum 4.
const onDiskBytes = 8 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // as package disk's checksums of blocks are

// addOnDisk adds that a page, whose contents are b, equals a disk block.
func (s *share) addOnDisk(page ident.PageNo, block srt.Block, b []byte) {
	var body [onDiskBytes]byte
	binary.LittleEndian.PutUint64(body[:], diskKey(int(block.Disk), block.No))
	binary.LittleEndian.PutUint32(body[8:], crc32.Checksum(b, castagnoli))
	s.add(recordOnDisk, uint64(page), body[:])
}

// namedPage is a page that the checkpoint which is being applied leaves to a disk.
type namedPage struct {
	page  ident.PageNo
	block srt.Block
	sum   uint32
}

// name notes a page that is to be left to a disk once the checkpoint's blocks are there. It requires mu.
func (s *standby) name(page ident.PageNo, b []byte) error {
	if len(b) != onDiskBytes {
		return fmt.Errorf("%w: name of a block of %d bytes", errBadShare, len(b))
	}
	index, block, err := s.disks.check(recordDisk, binary.LittleEndian.Uint64(b))
	if err != nil {
		return err
	}
	s.named = append(s.named, namedPage{page: page, block: srt.Block{Disk: uint8(index), No: block}, sum: binary.LittleEndian.Uint32(b[8:])})
	return nil
}

// beforeDisksChange copies the pages into memory whose blocks a checkpoint is about to rewrite. It requires mu.
func (s *standby) beforeDisksChange(c *cutIn) error {
	s.named = s.named[:0]
	if s.refs.Len() == 0 {
		return nil
	}
	for part := range ident.Part(ident.MaxParts) {
		p := c.parts[part]
		if p == nil {
			continue
		}
		for i := range p.total {
			err := eachRecord(p.chunks[i], func(t recordType, key uint64, _ []byte) error {
				if t != recordDisk {
					return nil
				}
				index, block := ofDiskKey(key)
				return s.fromDisks(s.refs.Changing(srt.Block{Disk: uint8(index), No: block}))
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// takeBack ends that a page is left to a disk, because a record of it is about to be applied. It requires mu.
func (s *standby) takeBack(page ident.PageNo, t recordType) error {
	if _, left := s.refs.Find(page); !left {
		return nil
	}
	if t == recordDiff || s.noting != nil { // what it was matters
		return s.fromDisks([]ident.PageNo{page})
	}
	s.refs.Drop(page)
	return nil
}

// leaveToDisks leaves the named pages to the disks, which are those of the checkpoint now. It requires mu.
func (s *standby) leaveToDisks() error {
	for _, n := range s.named {
		if have := s.disks.images[n.block.Disk].Sum(n.block.No); have != n.sum {
			return fmt.Errorf("%w: page 0x%x is said to equal block %d of disk %s, whose checksum is %08x and not %08x", errBadShare, n.page, n.block.No,
				s.disks.specs[n.block.Disk].Name, have, n.sum)
		}
		s.refs.Set(n.page, n.block, n.sum)
	}
	s.named = s.named[:0]
	return s.fromDisks(s.refs.Over())
}

// fromDisks copies pages that are left to the disks into memory. It requires mu.
func (s *standby) fromDisks(pages []ident.PageNo) error {
	for _, page := range pages {
		ref, ok := s.refs.Find(page)
		if !ok {
			continue
		}
		name := s.disks.specs[ref.Block.Disk].Name
		if err := s.disks.images[ref.Block.Disk].ReadBlock(ref.Block.No, s.scratch[:]); err != nil {
			return fmt.Errorf("page 0x%x is to be taken from disk %s: %w", page, name, err)
		}
		if sum := crc32.Checksum(s.scratch[:], castagnoli); sum != ref.Sum {
			return fmt.Errorf("page 0x%x is to be taken from block %d of disk %s, whose checksum is %08x and not %08x", page, ref.Block.No, name, sum, ref.Sum)
		}
		if err := s.ram.WritePage(page, s.scratch[:]); err != nil {
			return err
		}
		s.refs.Drop(page)
	}
	return nil
}

// unlock gives mu back, and says how many pages are left to the disks now.
func (s *standby) unlock() {
	s.left.Store(uint64(s.refs.Len()))
	s.mu.Unlock()
}
