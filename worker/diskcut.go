package worker

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/disk"
)

// cut adds the blocks to shares that a checkpoint must have. The guest and its devices must be held, or the checkpoint is of the disks alone: then each
// disk is as it was at one moment, and no write on one that the guest made after a flush of another is there without what was flushed. With some, not
// all who get the next checkpoint get this one.
func (d *disks) cut(number uint64, some bool, to ...*share) error {
	if d == nil {
		return nil
	}
	for i, g := range d.all {
		err := g.cut(number, some, func(block uint64, b []byte) {
			for _, s := range to {
				if s != nil {
					s.addBlock(diskKey(i, block), b, g.image.Sum(block))
				}
			}
		})
		if err != nil {
			return fmt.Errorf("disk %s: %w", g.spec.Name, err)
		}
	}
	return nil
}

// addBlock adds a block of a disk, or, if b is nil, that nobody has what it should be.
func (s *share) addBlock(key uint64, b []byte, sum uint32) {
	if b == nil {
		s.add(recordLost, key, binary.LittleEndian.AppendUint32(nil, sum))
		return
	}
	s.add(recordDisk, key, b)
}

// cut ends the open layer for a checkpoint and calls f for each block that the checkpoint must have; with nil for one that is damaged in all copies.
func (g *guestDisk) cut(number uint64, some bool, f func(block uint64, b []byte)) error {
	var blocks []uint64
	cut := g.layers.Cut
	if some {
		cut = g.layers.CutForSome
	}
	buf := make([]byte, disk.BlockBytes)
	do := func() error {
		if cut != nil {
			blocks, cut = cut(number), nil
		}
		for ; len(blocks) > 0; blocks = blocks[1:] {
			if err := g.read(blocks[0], buf); err != nil {
				return err
			}
			f(blocks[0], buf)
		}
		return nil
	}
	for {
		err := g.mended(do)
		if !errors.Is(err, disk.ErrBadBlock) {
			return err
		}
		f(blocks[0], nil)
		blocks = blocks[1:]
	}
}

// readIfOther reads a block whose checksum is another one than a standby's copy has. One that is in a checkpoint which is still to come counts as equal:
// it goes to the standby with that.
func (g *guestDisk) readIfOther(block uint64, theirs uint32, buf []byte) (differs bool, err error) {
	err = g.mended(func() error {
		if differs = g.layers.Settled(block) && g.image.Sum(block) != theirs; !differs {
			return nil
		}
		return g.read(block, buf)
	})
	return differs, err
}
