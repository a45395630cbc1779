package recover

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/sim"
)

// Pages that are left to disks: the guests of the scenario "ondisk" also have memory, into which they read blocks and from which they write them. A
// checkpoint names the block that a page equals, and a standby leaves the page to its copy of the disk. Package mem/srt, which the worker has, says which
// pages are to be copied before a block changes.
//
// It holds that whoever takes over has the memory of its checkpoint, page by page, whatever of it was left to the disk.

func init() {
	sim.Register(sim.Scenario{
		Name: "ondisk",
		Doc:  "as disks, with guest memory of which checkpoints name the disk's blocks: whoever takes over has the memory of its checkpoint",
		Run: func(seed uint64, canary string) error {
			return play(seed, canary, func(w *world) { w.disks, w.pages = true, true })
		},
		Canaries: append(slices.Clone(srt.RefCanaries), canaryNamedLate),
	})
}

// canaryNamedLate is a planted bug: a checkpoint names the block of a page though the block was written again since.
const canaryNamedLate = "pair-named-after-overwrite"

const (
	memoryPages = 5
	leftMost    = 3 // pages that a standby leaves to its disk, fewer than there are
	noBlock     = -1
)

type memory [memoryPages]uint32

// guestPages is guest memory at home. A page holds a number, as a block does.
type guestPages struct {
	holds     memory
	block     [memoryPages]int    // that the page equals, or noBlock
	written   [memoryPages]uint64 // the last cut before the page was written
	committed uint64              // the last cut that all standbys have
}

func newGuestPages(holds memory, cut uint64) *guestPages {
	g := &guestPages{holds: holds}
	for p := range g.block {
		g.block[p], g.written[p] = noBlock, cut
	}
	return g
}

// overwritten says that a block has other contents now: no page equals it, but the one that it was written from.
func (g *guestPages) overwritten(block, from int) {
	if g == nil {
		return
	}
	for p := range g.block {
		if g.block[p] == block && p != from {
			g.block[p] = noBlock
		}
	}
}

func (g *guestPages) set(page int, value uint32, block int, cut uint64) {
	g.holds[page], g.block[page], g.written[page] = value, block, cut
}

// usePages is what the guest does with its memory between two records.
func (x *worker) usePages() {
	d, w := x.disk, x.w
	page, block := w.Rand().IntN(memoryPages), w.Rand().IntN(diskBlocks)
	switch w.Rand().IntN(4) {
	case 0: // it writes a page
		w.writes++
		d.pages.set(page, w.writes, noBlock, d.number)
	case 1: // it writes a block from a page
		w.writes++
		d.pages.set(page, w.writes, block, d.number)
		if w.canary != canaryNamedLate {
			d.pages.overwritten(block, page)
		}
		d.write(block, w.writes)
	default: // it reads a block into a page
		if v, damaged := d.read(block); !damaged {
			d.pages.set(page, v, block, d.number)
		}
	}
}

// pageShare is a page in a checkpoint: what it holds, or, if block is one, the sum of that.
type pageShare struct {
	page  int
	value uint32
	block int
}

// cutPages adds to a checkpoint what of memory was written since the last one that all have.
func (x *worker) cutPages(c *checkpoint) {
	g := x.disk.pages
	if g == nil {
		return
	}
	inStep := x.protect.Standbys != 0 && x.protect.Standbys&^x.safe == 0 && x.fallback == 0
	c.memory = g.holds
	for p := range g.holds {
		if g.written[p] < g.committed {
			continue
		}
		share := pageShare{p, g.holds[p], noBlock}
		if inStep {
			share.block = g.block[p]
		}
		c.pages = append(c.pages, share)
	}
}

// allPages is what a standby gets that may know less than the others.
func (c *checkpoint) allPages() (all []pageShare) {
	for p, v := range c.memory {
		all = append(all, pageShare{p, v, noBlock})
	}
	return all
}

// replicaPages is a standby's copy of guest memory.
type replicaPages struct {
	holds memory
	truth memory // what it should be
	refs  *srt.Refs
}

// beforeDisk is a standby's, before it writes what a checkpoint has of the disk.
func (r *replicaPages) beforeDisk(m *image, c *checkpoint) {
	for _, b := range c.ships {
		r.fetch(m, r.refs.Changing(srt.Block{No: uint64(b.block)}))
	}
	for _, s := range c.pages {
		r.refs.Drop(ident.PageNo(s.page))
		if s.block == noBlock {
			r.holds[s.page] = s.value
		}
	}
}

// afterDisk leaves to the disk, which is that of the checkpoint now, what the checkpoint names.
func (r *replicaPages) afterDisk(m *image, c *checkpoint) error {
	for _, s := range c.pages {
		if s.block == noBlock {
			continue
		}
		if have := m.now()[s.block]; have != s.value {
			return fmt.Errorf("page %d is said to equal block %d, which has write %d and not %d", s.page, s.block, have, s.value)
		}
		r.refs.Set(ident.PageNo(s.page), srt.Block{No: uint64(s.block)}, s.value)
	}
	r.fetch(m, r.refs.Over())
	r.truth = c.memory
	return nil
}

// fetch copies pages that are left to the disk into memory.
func (r *replicaPages) fetch(m *image, pages []ident.PageNo) {
	for _, p := range pages {
		if ref, ok := r.refs.Find(p); ok {
			r.holds[p] = m.now()[ref.Block.No]
			r.refs.Drop(p)
		}
	}
}

// takeOver returns what the new home goes on with, and what is wrong with it.
func (r *replicaPages) takeOver(m *image) (memory, error) {
	r.fetch(m, r.refs.All())
	r.refs.Clear()
	for p, v := range r.holds {
		if v != r.truth[p] {
			return r.holds, fmt.Errorf("page %d has write %d, in its checkpoint it has write %d", p, v, r.truth[p])
		}
	}
	return r.holds, nil
}
