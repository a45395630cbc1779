package worker

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/wire"
)

// putRight replaces a damaged block with what another copy has, if that is what it should be, and tells whether the block is right now. One that was
// written meanwhile is, and stays as it is.
func (g *guestDisk) putRight(block uint64, contents []byte) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var now [disk.BlockBytes]byte
	if err := g.read(block, now[:]); !errors.Is(err, disk.ErrBadBlock) {
		return err == nil, err
	}
	if !g.image.Matches(block, contents) {
		return false, nil
	}
	delete(g.lost, block)
	return true, g.image.Commit([]disk.Write{{Block: block, Data: contents}}, true)
}

// setLost notes that nobody has what a block should be, and tells whether that is new.
func (g *guestDisk) setLost(block uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.lost[block]
	g.lost[block] = struct{}{}
	return !known
}

func (g *guestDisk) isLost(block uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.lost[block]
	return known
}

// blockOf answers home's request for one block, whose copy there is damaged.
func (s *standby) blockOf(body []byte) ([]byte, error) {
	if len(body) != 8 {
		return nil, fmt.Errorf("%w: question for a block of %d bytes", errBadShare, len(body))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	index, block, err := s.disks.check(recordDisk, binary.LittleEndian.Uint64(body))
	if err != nil {
		return nil, err
	}
	out := make([]byte, disk.BlockBytes)
	if err := s.disks.images[index].ReadBlock(block, out); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadShare, err)
	}
	return out, nil
}

// mend puts a block right, whose copy here is damaged, and says so. That nobody has a block is said once: the guest may ask for it again and again.
func (w *Worker) mend(g *guestDisk, index int, block uint64) error {
	say := func(text string) {
		w.control.send(wire.FromWorker{Disks: &wire.WorkerDisks{Disk: g.spec.Name, Damaged: text}})
	}
	if !g.isLost(block) {
		say(fmt.Sprintf("block %d does not match its checksum", block))
	}
	if err := w.fetchRight(g, index, block); err != nil {
		if errors.Is(err, disk.ErrBadBlock) && g.setLost(block) {
			say(fmt.Sprintf("block %d cannot be read, and no other copy has it: the guest gets an I/O error for it until it is written anew", block))
		}
		return err
	}
	w.control.send(wire.FromWorker{Disks: &wire.WorkerDisks{Disk: g.spec.Name, Repaired: fmt.Sprintf("block %d was taken from a mirror", block)}})
	return nil
}

// fetchRight gets a block, whose copy here is damaged, from a standby that has it as it should be, and puts it right.
func (w *Worker) fetchRight(g *guestDisk, index int, block uint64) error {
	p, _ := w.replica.current()
	others := p.Standbys | p.Mirrors
	ask := binary.LittleEndian.AppendUint64([]byte{byte(replicaBlock)}, diskKey(index, block))
	for i := range others.Len() {
		got, err := w.replica.query(others.Nth(i), p.Seq, ask)
		if err != nil || len(got) != disk.BlockBytes {
			continue
		}
		right, err := g.putRight(block, got)
		if err != nil {
			return err
		}
		if right {
			return nil
		}
	}
	return fmt.Errorf("%w: block %d of disk %s, and no other copy has it", disk.ErrBadBlock, block, g.spec.Name)
}
