// Package srt is the storage replica table of a VM's home part: which pages of guest memory are known to equal which disk blocks. It is pure; the
// worker tells it what happens and asks it where a block can be had without the disk.
//
// # A pair
//
//	        whole block read into, or written from, the page
//	(none) ------------------------------------------------> live ---the guest boots again---> kept
//	   ^                                                       |                                 |
//	   |   the page is about to be written, or leaves home;    |                                 |  the block is overwritten; the block is
//	   +-- the block is about to be overwritten; another page -+---------------------------------+  paired anew; there is no room
//	       is paired with the block
//
// A live pair's page is in guest memory, and the guest cannot write it without a fault that home sees first. A kept pair's page is in the memory of
// an earlier boot, which nobody writes any more. Memory of a boot is told apart by the boot's number, so that a new boot costs nothing here.
//
// # Invariants
//
//   - A page has at most one block, a block at most one page.
//   - Page and block of a pair are equal, byte for byte: whoever reports a pair has compared them after the page was protected from writes, and
//     nothing began or ended to change the block since the mark that came before it was read, or while it was written.
//   - At most as many pages are kept as the limit says; the oldest boots' go first.
package srt

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Block names a block, of a page's size, of one of the VM's disks.
type Block struct {
	Disk uint8
	No   uint64
}

// Place is where a block's contents are: in a page of the memory of a boot.
type Place struct {
	Boot uint64
	Page ident.PageNo
}

// Mark is a moment in the order of changes to blocks.
type Mark uint64

// Table is the storage replica table. It belongs to one goroutine.
type Table struct {
	canary  string
	limit   int
	boot    uint64
	pages   map[ident.PageNo]Block // live
	blocks  map[Block]Place        // live and kept
	kept    []keptBoot             // by rising boot
	mark    Mark
	changes []change // the last ones, the newest last
}

// keptBoot counts what is kept of a boot.
type keptBoot struct {
	boot  uint64
	pages int
}

// change is an announced change of blocks.
type change struct {
	mark        Mark
	disk        uint8
	first, last uint64
}

// maxChanges bounds how many changes are remembered: a pair that was begun before the oldest is not entered. No more requests than that are under
// way on a device's queues for long.
const maxChanges = 256

// Canaries lists the bugs that New can plant, for proving that the simulator finds them.
var Canaries = []string{"pair-kept-after-write", "pair-kept-after-overwrite", "pair-of-the-past"}

// New returns an empty table that keeps at most limit pages of former boots.
func New(limit int, canary string) *Table {
	return &Table{canary: canary, limit: limit, boot: 1, pages: map[ident.PageNo]Block{}, blocks: map[Block]Place{}}
}

// Boot is the number of the present boot.
func (t *Table) Boot() uint64 { return t.boot }

// Len counts the live and the kept pairs.
func (t *Table) Len() (live, kept int) { return len(t.pages), len(t.blocks) - len(t.pages) }

// Mark returns the present moment: to be taken before a block is read from the disk.
func (t *Table) Mark() Mark { return t.mark }

// Equal enters a pair: the page equals the block, and cannot be written before Write is told. since is from before the block was read, or from the
// Done that ended its writing. It tells whether the pair was entered, and which kept page holds nothing any more.
func (t *Table) Equal(since Mark, b Block, page ident.PageNo) (entered bool, freed []Place) {
	if t.changedSince(since, b) && t.canary != "pair-of-the-past" {
		return false, nil
	}
	t.Write(page)
	freed = t.forget(b, nil)
	t.pages[page] = b
	t.blocks[b] = Place{Boot: t.boot, Page: page}
	return true, freed
}

func (t *Table) changedSince(since Mark, b Block) bool {
	if since == t.mark {
		return false
	}
	if len(t.changes) > 0 && t.changes[0].mark > since+1 {
		return true // more has changed than is remembered
	}
	return slices.ContainsFunc(t.changes, func(c change) bool {
		return c.mark > since && c.disk == b.Disk && c.first <= b.No && b.No <= c.last
	})
}

// Paired tells whether a page has a live pair.
func (t *Table) Paired(page ident.PageNo) bool {
	_, ok := t.pages[page]
	return ok
}

// BlockOf returns the block that a page has a live pair with.
func (t *Table) BlockOf(page ident.PageNo) (Block, bool) {
	b, ok := t.pages[page]
	return b, ok
}

// Write says that a page of guest memory is about to be written, or to leave this part. It tells whether the page had a pair.
func (t *Table) Write(page ident.PageNo) bool {
	b, ok := t.pages[page]
	if !ok || t.canary == "pair-kept-after-write" {
		return false
	}
	delete(t.pages, page)
	delete(t.blocks, b)
	return true
}

// note remembers a change.
func (t *Table) note(disk uint8, first, last uint64) {
	t.mark++
	if len(t.changes) == maxChanges {
		t.changes = slices.Delete(t.changes, 0, maxChanges/2)
	}
	t.changes = append(t.changes, change{mark: t.mark, disk: disk, first: first, last: last})
}

// Done says that the change that Change announced with mark begun is over, well or not. It returns the mark for the pairs that it makes, unless
// another change of those blocks began meanwhile: nobody knows then which of them the disk has. Readings that overlap it make no pairs.
func (t *Table) Done(begun Mark, disk uint8, first, last uint64) (since Mark, alone bool, freed []Place) {
	alone = len(t.changes) > 0 && t.changes[0].mark <= begun+1 && !slices.ContainsFunc(t.changes, func(c change) bool {
		return c.mark > begun && c.disk == disk && c.first <= last && first <= c.last
	})
	_, freed = t.Change(disk, first, last) // what another write of them was paired with meanwhile may be overwritten now
	return t.mark, alone || t.canary == "pair-of-the-past", freed
}

// Change says that blocks first to last of a disk are about to be overwritten. It returns the mark for Done, and the kept pages that hold nothing
// any more, in order.
func (t *Table) Change(disk uint8, first, last uint64) (Mark, []Place) {
	t.note(disk, first, last)
	if t.canary == "pair-kept-after-overwrite" {
		return t.mark, nil
	}
	var freed []Place
	if last-first < uint64(len(t.blocks)) {
		for no := first; no <= last; no++ {
			freed = t.forget(Block{disk, no}, freed)
		}
		return t.mark, freed
	}
	for b := range t.blocks { // the order does not matter: freed is sorted
		if b.Disk == disk && first <= b.No && b.No <= last {
			freed = t.forget(b, freed)
		}
	}
	slices.SortFunc(freed, comparePlaces)
	return t.mark, freed
}

func comparePlaces(a, b Place) int {
	switch {
	case a.Boot < b.Boot || a.Boot == b.Boot && a.Page < b.Page:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// forget takes a block's pair away, and adds its page to freed if it was kept.
func (t *Table) forget(b Block, freed []Place) []Place {
	p, ok := t.blocks[b]
	if !ok {
		return freed
	}
	delete(t.blocks, b)
	if p.Boot == t.boot {
		delete(t.pages, p.Page)
		return freed
	}
	i := t.keptOf(p.Boot)
	if t.kept[i].pages--; t.kept[i].pages == 0 {
		t.kept = slices.Delete(t.kept, i, i+1)
	}
	return append(freed, p)
}

func (t *Table) keptOf(boot uint64) int {
	return slices.IndexFunc(t.kept, func(k keptBoot) bool { return k.boot == boot })
}

// Find returns where a block's contents are, if that is known.
func (t *Table) Find(b Block) (Place, bool) {
	p, ok := t.blocks[b]
	return p, ok
}

// Reset begins a new boot: what is live becomes kept, at no cost. It returns the boots of which nothing is kept any more, in order, among those
// that this ends: the present one's memory is the caller's to keep unless it is among them.
func (t *Table) Reset() (dropped []uint64) {
	ended := t.boot
	t.boot++
	if n := len(t.pages); n > 0 {
		t.kept = append(t.kept, keptBoot{boot: ended, pages: n})
		t.pages = map[ident.PageNo]Block{}
	} else {
		dropped = append(dropped, ended)
	}
	over := -t.limit
	for _, k := range t.kept {
		over += k.pages
	}
	for over > 0 && len(t.kept) > 0 {
		k := t.kept[0]
		over -= k.pages
		dropped = append(dropped, k.boot)
		for b, p := range t.blocks { // the order does not matter
			if p.Boot == k.boot {
				delete(t.blocks, b)
			}
		}
		t.kept = t.kept[1:]
	}
	slices.Sort(dropped)
	return dropped
}

// KeptPages returns the pages that are kept of a boot, in rising order.
func (t *Table) KeptPages(boot uint64) []ident.PageNo {
	var pages []ident.PageNo
	for _, p := range t.blocks { // the order does not matter: sorted below
		if p.Boot == boot && boot != t.boot {
			pages = append(pages, p.Page)
		}
	}
	slices.Sort(pages)
	return pages
}

// Pairs calls f for each pair, in no order. f must not change the table.
func (t *Table) Pairs(f func(Block, Place)) {
	for b, p := range t.blocks {
		f(b, p)
	}
}

// Check returns an error if the table breaks an invariant.
func (t *Table) Check() error {
	counts := map[uint64]int{}
	var err error
	t.Pairs(func(b Block, p Place) {
		counts[p.Boot]++
		if other, ok := t.pages[p.Page]; p.Boot == t.boot && (!ok || other != b) {
			err = fmt.Errorf("srt: block %v is in page 0x%x, which is paired with %v", b, p.Page, other)
		}
	})
	kept := 0
	for _, k := range t.kept {
		kept += k.pages
		if counts[k.boot] != k.pages || k.pages == 0 || k.boot >= t.boot {
			err = fmt.Errorf("srt: %d pages of boot %d are kept, counted as %d", counts[k.boot], k.boot, k.pages)
		}
	}
	if len(t.pages) != counts[t.boot] || kept+len(t.pages) != len(t.blocks) || kept > t.limit {
		err = fmt.Errorf("srt: %d live and %d kept pairs, %d in all, limit %d", len(t.pages), kept, len(t.blocks), t.limit)
	}
	return err
}
