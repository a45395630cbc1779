package worker

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// A page that has to leave memory and equals a disk block is dropped: the disk has it already. So, while a page is known to the pager as equal to a
// block, nothing may change the block: whoever is about to brings the page in first. That is stricter than what a pair needs, which may be wrong
// until the end of the writes that overlap it, because nothing is lost with a pair.

// blockRange is blocks of a disk, first to last.
type blockRange struct {
	disk        uint8
	first, last uint64
}

// keepAlone sees to it that a page's contents are not on the disk only. It requires mu.
func (c *blockCache) keepAlone(page ident.PageNo) {
	if err := c.p.pager.ForgetBlock(page); err != nil {
		c.p.fail(err)
	}
}

// isChanging tells whether some write to a block is under way, so that the disk may have something else soon. It requires mu.
func (c *blockCache) isChanging(b srt.Block) bool {
	return slices.ContainsFunc(c.changing, func(r blockRange) bool { return r.disk == b.Disk && r.first <= b.No && b.No <= r.last })
}

// change says that blocks are about to be written: what only they hold is brought in first. It requires mu.
func (c *blockCache) change(r blockRange) {
	if c.p.pager == nil {
		return
	}
	c.changing = append(c.changing, r)
	if live, _ := c.table.Len(); r.last-r.first < uint64(live) {
		for no := r.first; no <= r.last; no++ {
			if place, ok := c.table.Find(srt.Block{Disk: r.disk, No: no}); ok && place.Boot == c.table.Boot() {
				c.keepAlone(place.Page)
			}
		}
		return
	}
	c.p.pager.Known(func(_ ident.PageNo, b ram.Block) bool { return b.Disk == r.disk && r.first <= b.No && b.No <= r.last }, c.keepAlone)
}

// changed ends change. It requires mu.
func (c *blockCache) changed(r blockRange) {
	if i := slices.Index(c.changing, r); i >= 0 {
		c.changing = slices.Delete(c.changing, i, i+1)
	}
}
