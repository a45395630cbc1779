package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Copies of disks on standbys. Home compares checksums with each standby, piece by piece, and sends the blocks that differ: so a copy that was in step a
// while ago costs little, and whatever is wrong with one, torn, damaged or of earlier times, is put right. What is written meanwhile comes with the
// checkpoints; a block of those is newer than one of the comparison.
//
//	home -> standby  sums: disk, its size, first block  -> checksums of sumsPiece blocks
//	home -> standby  blocks: a chunk of recordDisk

const sumsPiece = 8192

// diskKey names a block of a disk in a record.
func diskKey(index int, block uint64) uint64 { return uint64(index)<<48 | block }

func ofDiskKey(key uint64) (index int, block uint64) { return int(key >> 48), key & (1<<48 - 1) }

// copyDisks brings the disks of a standby into step.
func (r *replicas) copyDisks(d *disks, to ident.Part, seq uint64, change <-chan struct{}) bool {
	for i, g := range d.all {
		c := diskCopy{r: r, g: g, index: i, to: to, seq: seq, change: change}
		for first := uint64(0); first < g.image.Blocks(); first += sumsPiece {
			if !c.piece(first) {
				return false
			}
			r.mu.Lock()
			r.synced += min(sumsPiece, g.image.Blocks()-first)
			r.mu.Unlock()
		}
		r.w.log.Info().Str("disk", g.spec.Name).Stringer("to", to).Uint64("blocks", c.sent).Uint64("of", g.image.Blocks()).Msg("disk copied")
	}
	return true
}

// diskCopy is the copy of one disk to one standby.
type diskCopy struct {
	r      *replicas
	g      *guestDisk
	index  int
	to     ident.Part
	seq    uint64
	change <-chan struct{}
	sent   uint64
}

// sums asks for the checksums of the blocks of a piece.
func (c *diskCopy) sums(first, count uint64) (theirs []byte, ok bool) {
	ask := []byte{byte(replicaSums), byte(c.index)}
	ask = binary.LittleEndian.AppendUint64(ask, uint64(c.g.Size()))
	ask = binary.LittleEndian.AppendUint64(ask, first)
	ok = c.until(func() (err error) {
		theirs, err = c.r.query(c.to, c.seq, ask)
		if err == nil && uint64(len(theirs)) != 4*count {
			err = errNotReady
		}
		return err
	})
	return theirs, ok
}

// openDisks has standbys open their copies. It comes before all else of a full copy: until then they can apply no checkpoint in which the guest has
// written a disk, and while another standby is safe checkpoints go on all the time.
func (r *replicas) openDisks(to ident.PartSet, seq uint64, change <-chan struct{}) bool {
	d, ok := r.w.homeDisks(), true
	if d == nil {
		return true
	}
	to.Each(func(part ident.Part) {
		for i, g := range d.all {
			if c := (diskCopy{r: r, g: g, index: i, to: part, seq: seq, change: change}); ok {
				_, ok = c.sums(g.image.Blocks(), 0)
			}
		}
	})
	return ok
}

func (c *diskCopy) piece(first uint64) bool {
	count := min(sumsPiece, c.g.image.Blocks()-first)
	theirs, ok := c.sums(first, count)
	if !ok {
		return false
	}
	s := &share{header: chunkHeader{number: c.seq, members: ident.PartSet(0).Set(c.r.w.spec.Part), part: c.r.w.spec.Part}}
	buf := make([]byte, disk.BlockBytes)
	for i := range count {
		differs, err := c.g.readIfOther(first+i, binary.LittleEndian.Uint32(theirs[4*i:]), buf)
		if errors.Is(err, disk.ErrBadBlock) { // the copy has something else there, of earlier times: it is not to be taken for the contents
			s.addBlock(diskKey(c.index, first+i), nil, c.g.image.Sum(first+i))
			continue
		}
		if err != nil {
			c.r.w.fail(fmt.Errorf("copy disk %s: %w", c.g.spec.Name, err))
			return false
		}
		if !differs {
			continue
		}
		s.addBlock(diskKey(c.index, first+i), buf, 0)
		c.sent++
	}
	for i := range s.chunks {
		began := time.Now()
		b := s.encode([]byte{byte(replicaBlocks)}, i, true)
		if !c.until(func() error { return c.r.request(c.to, c.seq, b) }) || !c.r.ease(c.change, time.Since(began)) {
			return false
		}
	}
	return true
}

// until repeats a request until it is answered, or the protection has changed.
func (c *diskCopy) until(do func() error) bool {
	for do() != nil {
		select {
		case <-c.change:
			return false
		case <-c.r.w.ctx.Done():
			return false
		case <-time.After(replicaBackoff):
		}
	}
	return true
}

// standbyDisks are a standby's copies. They belong to the standby's mu.
type standbyDisks struct {
	openImage openImage
	specs     []wire.WorkerDisk
	images    []*disk.Image // by disk; nil until home has told its size
	brought   []map[uint64]struct{}
	pending   [][]disk.Write // of the checkpoint that is being applied
	say       func(wire.WorkerDisks)
}

func newStandbyDisks(open openImage, specs []wire.WorkerDisk, say func(wire.WorkerDisks)) standbyDisks {
	d := standbyDisks{openImage: open, say: say, specs: specs, images: make([]*disk.Image, len(specs)), pending: make([][]disk.Write, len(specs))}
	for range specs {
		d.brought = append(d.brought, map[uint64]struct{}{})
	}
	return d
}

// sums answers home's question for checksums, and opens the copy before.
func (s *standby) sums(body []byte) ([]byte, error) {
	if len(body) != 1+8+8 || int(body[0]) >= len(s.disks.specs) {
		return nil, fmt.Errorf("%w: question for checksums of %d bytes", errBadShare, len(body))
	}
	index, size, first := int(body[0]), int64(binary.LittleEndian.Uint64(body[1:])), binary.LittleEndian.Uint64(body[9:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		return nil, errEnded
	}
	image, err := s.disks.open(index, size)
	if err != nil {
		return nil, err
	}
	var out []byte
	for block := first; block < min(first+sumsPiece, image.Blocks()); block++ {
		out = binary.LittleEndian.AppendUint32(out, image.Sum(block))
	}
	return out, nil
}

func (d *standbyDisks) open(index int, size int64) (*disk.Image, error) {
	if d.images[index] != nil {
		return d.images[index], nil
	}
	if size <= 0 || size%disk.BlockBytes != 0 || size > 1<<44 {
		return nil, fmt.Errorf("%w: disk of %d bytes", errBadShare, size)
	}
	spec := d.specs[index]
	image, err := d.openImage(spec, disk.ImageConfig{Bytes: size, Discard: true, Resize: true})
	if err != nil {
		return nil, err
	}
	if err := image.SetGeneration(max(spec.Use, image.Generation())); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", spec.Name, err), image.Close())
	}
	if n := image.Damaged(); n > 0 {
		d.say(wire.WorkerDisks{Disk: spec.Name, Damaged: fmt.Sprintf("%d blocks of the copy do not match their checksums: they are taken from the VM's home", n)})
	}
	d.images[index] = image
	return image, nil
}

// commitPieces writes to a copy that is not whole yet, and so need not be that of one moment.
func commitPieces(image *disk.Image, writes []disk.Write) error {
	for piece := range slices.Chunk(writes, disk.MaxBatchBlocks) {
		if err := image.Commit(piece, false); err != nil {
			return err
		}
	}
	return nil
}

// takeBlocks takes in blocks in which the copy differed.
func (s *standby) takeBlocks(b []byte) error {
	_, records, err := decodeChunk(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		return errEnded
	}
	writes := make([][]disk.Write, len(s.disks.specs))
	err = eachRecord(records, func(t recordType, key uint64, b []byte) error {
		index, block, err := s.disks.check(t, key)
		if err == nil {
			err = checkBlock(t, b)
		}
		if err != nil {
			return err
		}
		if _, newer := s.disks.brought[index][block]; !newer {
			writes[index] = append(writes[index], writeOf(t, block, b))
		}
		return nil
	})
	for i := range writes {
		if err == nil && len(writes[i]) > 0 {
			err = s.disks.images[i].Commit(writes[i], false)
		}
	}
	return err
}

// lacksDisk tells whether a checkpoint writes a disk whose copy is not open yet: it has to wait. It requires mu.
func (s *standby) lacksDisk(c *cutIn) (lacks bool) {
	if !slices.Contains(s.disks.images, nil) {
		return false
	}
	for _, p := range c.parts { // the order does not matter
		for i := range p.total {
			_ = eachRecord(p.chunks[i], func(t recordType, key uint64, _ []byte) error {
				index, _ := ofDiskKey(key)
				lacks = lacks || (t == recordDisk || t == recordLost) && index < len(s.disks.images) && s.disks.images[index] == nil
				return nil
			})
		}
	}
	return lacks
}

// check finds the disk and block of a record.
func (d *standbyDisks) check(t recordType, key uint64) (index int, block uint64, err error) {
	index, block = ofDiskKey(key)
	if t != recordDisk && t != recordLost || index >= len(d.images) || d.images[index] == nil || block >= d.images[index].Blocks() {
		return 0, 0, fmt.Errorf("%w: record of type %d for block %d of disk %d", errBadShare, t, block, index)
	}
	return index, block, nil
}

func checkBlock(t recordType, b []byte) error {
	if t == recordLost && len(b) != 4 || t == recordDisk && len(b) != disk.BlockBytes {
		return fmt.Errorf("%w: record of type %d with %d bytes", errBadShare, t, len(b))
	}
	return nil
}

// stage notes a block of the checkpoint that is being applied.
func (d *standbyDisks) stage(t recordType, key uint64, b []byte, before *past) error {
	if err := checkBlock(t, b); err != nil {
		return err
	}
	index, block, err := d.check(t, key)
	if err != nil {
		return err
	}
	if before != nil {
		if err := d.keep(index, block, before.blocks[index]); err != nil {
			return err
		}
	}
	d.brought[index][block] = struct{}{}
	d.pending[index] = append(d.pending[index], writeOf(t, block, append([]byte(nil), b...)))
	return nil
}

// keep notes a block as it is before a checkpoint replaces it.
func (d *standbyDisks) keep(index int, block uint64, before map[uint64]disk.Write) error {
	if _, known := before[block]; known {
		return nil
	}
	old := disk.Write{Block: block, Data: make([]byte, disk.BlockBytes)}
	switch err := d.images[index].ReadBlock(block, old.Data); {
	case errors.Is(err, disk.ErrBadBlock):
		old = disk.Write{Block: block, Lost: true, Sum: d.images[index].Sum(block)}
	case err != nil:
		return fmt.Errorf("disk %s: %w", d.specs[index].Name, err)
	}
	before[block] = old
	return nil
}

// writeOf is the write that a record of a disk means.
func writeOf(t recordType, block uint64, b []byte) disk.Write {
	if t == recordLost {
		return disk.Write{Block: block, Lost: true, Sum: binary.LittleEndian.Uint32(b)}
	}
	return disk.Write{Block: block, Data: b}
}

func inOrder(blocks map[uint64]disk.Write) []disk.Write {
	out := make([]disk.Write, 0, len(blocks))
	for _, block := range slices.Sorted(maps.Keys(blocks)) {
		out = append(out, blocks[block])
	}
	return out
}

// commit makes durable what was staged, and all before it; whole: the copies are those of a checkpoint, and must stay so.
func (d *standbyDisks) commit(whole bool) error {
	for i, image := range d.images {
		if image == nil {
			continue
		}
		if !whole && len(d.pending[i]) > disk.MaxBatchBlocks { // much was written while the rest was copied
			if err := commitPieces(image, d.pending[i]); err != nil {
				return fmt.Errorf("disk %s: %w", d.specs[i].Name, err)
			}
			d.pending[i] = nil
		}
		if err := image.Commit(d.pending[i], d.specs[i].Cache != cacheUnsafe); err != nil {
			return fmt.Errorf("disk %s: %w", d.specs[i].Name, err)
		}
		d.pending[i] = nil
	}
	return nil
}

// noBlocks is where the blocks are noted that a checkpoint replaces.
func (d *standbyDisks) noBlocks() []map[uint64]disk.Write {
	out := make([]map[uint64]disk.Write, len(d.images))
	for i := range out {
		out[i] = map[uint64]disk.Write{}
	}
	return out
}

// undo puts the blocks back that a checkpoint replaced.
func (d *standbyDisks) undo(blocks []map[uint64]disk.Write) error {
	for i, old := range blocks {
		if len(old) == 0 {
			continue
		}
		if err := d.images[i].Commit(inOrder(old), d.specs[i].Cache != cacheUnsafe); err != nil {
			return fmt.Errorf("disk %s: %w", d.specs[i].Name, err)
		}
	}
	return nil
}

// takeOver hands the copies to the new home.
func (d *standbyDisks) takeOver() (*disks, error) {
	out := &disks{}
	for i, image := range d.images {
		if image == nil {
			return nil, fmt.Errorf("disk %s has no copy here", d.specs[i].Name)
		}
		out.add(d.specs[i], image)
	}
	d.images = nil
	return out, nil
}
