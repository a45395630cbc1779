// Package layers knows which of a guest's writes to a disk may be written to the disk's image, and which a checkpoint must have. It is floor 2 and
// pure: the worker does what it says, and the simulator has it under faults.
//
// A disk write of a protected VM is output: it waits in a layer until the checkpoint after it is safe, and only then goes to the image.
//
//	written --> open layer --cut--> sealed --checkpoint safe--> image
//	   \--not holding--> image, at once
//
// While checkpoints are made, or a full copy for them, the blocks that were written are noted. Each checkpoint has those of all cuts that are not known
// to be safe, as they are at its own: so one that comes to nothing costs nothing but the next one's size.
//
// # Invariants
//
//   - The last layer is open, and no other is. Layers lie in the order of their cuts.
//   - Without holding, the open layer is the only one, and empty.
package layers

import (
	"fmt"
	"maps"
	"slices"
)

// Disk is what is known of the writes to one disk.
type Disk struct {
	holding bool
	noting  bool
	layers  []layer                        // oldest first
	dirty   map[uint64]struct{}            // blocks written since the last cut
	cuts    map[uint64]map[uint64]struct{} // blocks by cut, of those that are not known to be safe
	owed    map[uint64]struct{}            // blocks of cuts that not everybody got who is to get the next checkpoint
	waiting int                            // blocks in layers
}

// layer is what was written between two cuts.
type layer struct {
	cut    uint64 // that ended it; 0: it is open
	blocks map[uint64][]byte
}

// Write is a block that goes to the image.
type Write struct {
	Block uint64
	Data  []byte
}

// New returns a disk that nothing was written to.
func New() *Disk {
	return &Disk{layers: []layer{{blocks: map[uint64][]byte{}}}, dirty: map[uint64]struct{}{}, cuts: map[uint64]map[uint64]struct{}{}, owed: map[uint64]struct{}{}}
}

// Holding tells whether writes are kept back.
func (d *Disk) Holding() bool { return d.holding }

// Waiting is how many blocks wait for checkpoints.
func (d *Disk) Waiting() int { return d.waiting }

// Noted is how many blocks the next checkpoint would have, or a few less than that counts to.
func (d *Disk) Noted() int {
	n := len(d.dirty)
	for _, blocks := range d.cuts {
		n += len(blocks)
	}
	return n
}

// Find returns what was written last to a block that is in a layer. The contents must not be changed.
func (d *Disk) Find(block uint64) (data []byte, ok bool) {
	for _, l := range slices.Backward(d.layers) {
		if data, ok = l.blocks[block]; ok {
			return data, true
		}
	}
	return nil, false
}

// Write takes in whole blocks, which it keeps. through means that they go to the image now.
func (d *Disk) Write(blocks map[uint64][]byte) (through bool) {
	if d.noting {
		for block := range blocks {
			d.dirty[block] = struct{}{}
		}
	}
	if !d.holding {
		return true
	}
	open := &d.layers[len(d.layers)-1]
	d.waiting -= len(open.blocks)
	maps.Copy(open.blocks, blocks)
	d.waiting += len(open.blocks)
	return false
}

// Cut ends the open layer for a checkpoint, and returns the blocks, rising, that the checkpoint must have as they are now.
func (d *Disk) Cut(number uint64) []uint64 {
	if d.holding {
		d.layers[len(d.layers)-1].cut = number
		d.layers = append(d.layers, layer{blocks: map[uint64][]byte{}})
	}
	all := maps.Clone(d.dirty)
	for _, blocks := range d.cuts {
		maps.Copy(all, blocks)
	}
	maps.Copy(all, d.owed)
	clear(d.owed)
	d.cuts[number], d.dirty = all, map[uint64]struct{}{}
	return slices.Sorted(maps.Keys(all))
}

// CutForSome is Cut for a checkpoint that only some get, of those who are to get the next one: that has its blocks, too.
func (d *Disk) CutForSome(number uint64) []uint64 {
	owed := d.owed
	d.owed = map[uint64]struct{}{}
	blocks := d.Cut(number)
	d.owed = owed
	for _, block := range blocks {
		d.owed[block] = struct{}{}
	}
	return blocks
}

// Committed returns what goes to the image, as one batch, when the checkpoint of a cut is safe: what was written up to it.
func (d *Disk) Committed(cut uint64) []Write {
	maps.DeleteFunc(d.cuts, func(n uint64, _ map[uint64]struct{}) bool { return n <= cut })
	n := 0
	for n < len(d.layers)-1 && d.layers[n].cut <= cut {
		n++
	}
	return d.settle(n)
}

// Hold begins or ends keeping back writes, and returns what goes to the image: at the end all that was kept.
func (d *Disk) Hold(on bool) []Write {
	d.holding = on
	if on {
		return nil
	}
	return d.settle(len(d.layers))
}

// settle takes the n oldest layers away.
func (d *Disk) settle(n int) []Write {
	merged := map[uint64][]byte{}
	for _, l := range d.layers[:n] {
		maps.Copy(merged, l.blocks)
		d.waiting -= len(l.blocks)
	}
	d.layers = slices.Delete(d.layers, 0, n)
	if len(d.layers) == 0 {
		d.layers = append(d.layers, layer{blocks: map[uint64][]byte{}})
	}
	return Sorted(merged)
}

// Sorted returns blocks as writes, rising.
func Sorted(blocks map[uint64][]byte) []Write {
	out := make([]Write, 0, len(blocks))
	for _, block := range slices.Sorted(maps.Keys(blocks)) {
		out = append(out, Write{block, blocks[block]})
	}
	return out
}

// Note begins or ends noting what is written, for checkpoints.
func (d *Disk) Note(on bool) {
	if d.noting != on {
		d.noting = on
		clear(d.dirty)
		clear(d.cuts)
		clear(d.owed)
	}
}

// Settled tells whether a block is in no checkpoint that is still to come, so that the image has what a new copy needs.
func (d *Disk) Settled(block uint64) bool {
	if _, dirty := d.dirty[block]; dirty {
		return false
	}
	if _, owed := d.owed[block]; owed {
		return false
	}
	for _, blocks := range d.cuts {
		if _, dirty := blocks[block]; dirty {
			return false
		}
	}
	return true
}

// Check returns what is wrong.
func (d *Disk) Check() error {
	n, last := 0, uint64(0)
	for i, l := range d.layers {
		n += len(l.blocks)
		open := i == len(d.layers)-1
		switch {
		case open != (l.cut == 0):
			return fmt.Errorf("layer %d of %d ends at cut %d", i, len(d.layers), l.cut)
		case !open && l.cut <= last:
			return fmt.Errorf("layer of cut %d behind that of %d", l.cut, last)
		}
		last = l.cut
	}
	if n != d.waiting {
		return fmt.Errorf("%d blocks are in layers, %d count as waiting", n, d.waiting)
	}
	if !d.holding && n > 0 {
		return fmt.Errorf("%d blocks are kept back, though nothing is to be", n)
	}
	return nil
}
