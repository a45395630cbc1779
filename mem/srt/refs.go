package srt

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Refs is what a replica of guest memory leaves to the disk: pages that a checkpoint says equal a disk block, of which the replica's server holds a copy
// that is that of the same checkpoint. They are not in the replica's memory until they have to be.
//
//	        the checkpoint names the block
//	(none) --------------------------------> left to the disk
//	   ^                                        |
//	   |  a checkpoint brings the page itself;  |
//	   +-- Changing: the block is about to be --+
//	       rewritten; Over: there are too many; the replica takes over
//
// Invariant: between two checkpoints, the block of every page here holds what the page held at the last one. So whoever rewrites a block asks
// Changing first, and copies those pages into memory before.
type Refs struct {
	canary string
	limit  int
	pages  map[ident.PageNo]Ref
	blocks map[Block][]ident.PageNo // rising
	order  []ident.PageNo           // in which they came, the oldest first; those that are gone stay until they are met
	turn   uint64
}

// Ref names the block that a page equals, and the checksum of both.
type Ref struct {
	Block Block
	Sum   uint32

	turn uint64 // tells this entry in order from an earlier one of the page
}

// RefCanaries lists the bugs that NewRefs can plant, for proving that the simulator finds them.
var RefCanaries = []string{"reference-kept-after-overwrite", "reference-kept-after-write"}

// NewRefs returns an empty set that asks for pages to be copied when it has more than limit.
func NewRefs(limit int, canary string) *Refs {
	return &Refs{canary: canary, limit: limit, pages: map[ident.PageNo]Ref{}, blocks: map[Block][]ident.PageNo{}}
}

// Len is how many pages are left to the disk.
func (r *Refs) Len() int { return len(r.pages) }

// Find returns the block that a page is left to.
func (r *Refs) Find(page ident.PageNo) (Ref, bool) {
	ref, ok := r.pages[page]
	return ref, ok
}

// Set leaves a page to a block.
func (r *Refs) Set(page ident.PageNo, b Block, sum uint32) {
	r.Drop(page)
	r.turn++
	r.pages[page] = Ref{Block: b, Sum: sum, turn: r.turn}
	at, _ := slices.BinarySearch(r.blocks[b], page)
	r.blocks[b] = slices.Insert(r.blocks[b], at, page)
	r.order = append(r.order, page)
	if len(r.order) > 2*len(r.pages)+64 {
		r.compact()
	}
}

// compact takes out of order what is gone. Of a page that is there several times only the last counts.
func (r *Refs) compact() {
	pages := make([]ident.PageNo, 0, len(r.pages))
	for page := range r.pages { // the order does not matter: sorted by turn below
		pages = append(pages, page)
	}
	slices.SortFunc(pages, func(a, b ident.PageNo) int {
		if r.pages[a].turn < r.pages[b].turn {
			return -1
		}
		return 1
	})
	r.order = pages
}

// Drop says that a page is in memory now, or is about to be written there. It tells whether it was left to the disk.
func (r *Refs) Drop(page ident.PageNo) bool {
	ref, ok := r.pages[page]
	if !ok || r.canary == "reference-kept-after-write" {
		return false
	}
	delete(r.pages, page)
	of := r.blocks[ref.Block]
	if at, found := slices.BinarySearch(of, page); found {
		of = slices.Delete(of, at, at+1)
	}
	if r.blocks[ref.Block] = of; len(of) == 0 {
		delete(r.blocks, ref.Block)
	}
	return true
}

// Changing returns the pages that are to be copied into memory, and dropped, before a block is rewritten.
func (r *Refs) Changing(b Block) []ident.PageNo {
	if r.canary == "reference-kept-after-overwrite" {
		return nil
	}
	return slices.Clone(r.blocks[b])
}

// Over returns the oldest pages, as many as there are too many: they are to be copied into memory and dropped.
func (r *Refs) Over() []ident.PageNo {
	over := len(r.pages) - r.limit
	if over <= 0 {
		return nil
	}
	r.compact()
	return slices.Clone(r.order[:over])
}

// All returns all pages that are left to the disk, in rising order.
func (r *Refs) All() []ident.PageNo {
	pages := make([]ident.PageNo, 0, len(r.pages))
	for page := range r.pages { // the order does not matter: sorted below
		pages = append(pages, page)
	}
	slices.Sort(pages)
	return pages
}

// Clear forgets everything: the memory is to become something else.
func (r *Refs) Clear() {
	clear(r.pages)
	clear(r.blocks)
	r.order = nil
}

// Check returns an error if the set breaks an invariant.
func (r *Refs) Check() error {
	n := 0
	var err error
	for b, pages := range r.blocks { // the order does not matter
		n += len(pages)
		for i, page := range pages {
			if r.pages[page].Block != b || i > 0 && pages[i-1] >= page {
				err = fmt.Errorf("srt: block %v is named by page 0x%x, which names %v", b, page, r.pages[page].Block)
			}
		}
	}
	if n != len(r.pages) || len(r.order) < n {
		err = fmt.Errorf("srt: %d pages are left to the disk, %d by block, %d in order", len(r.pages), n, len(r.order))
	}
	return err
}
