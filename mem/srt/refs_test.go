package srt

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// A replica that leaves pages to a disk is played against one that does not.
func TestRefsAgreeWithAPlainReplica(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 6).Draw(t, "limit")
		r := NewRefs(limit, "")
		const pages, blocks = 8, 4
		var plain, memory [pages]int
		var disk [blocks]int
		toMemory := func(all []ident.PageNo) {
			for _, page := range all {
				ref, ok := r.Find(page)
				if !ok {
					t.Fatalf("page %d is to be copied and is not left to the disk", page)
				}
				memory[page] = disk[ref.Block.No]
				r.Drop(page)
			}
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			page := ident.PageNo(rapid.IntRange(0, pages-1).Draw(t, "page"))
			b := Block{No: uint64(rapid.IntRange(0, blocks-1).Draw(t, "block"))}
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0: // the page itself
				r.Drop(page)
				plain[page], memory[page] = i+1, i+1
			case 1: // the block
				toMemory(r.Changing(b))
				disk[b.No] = 1000 + i
			case 2: // the page equals the block
				r.Set(page, b, 0)
				plain[page] = disk[b.No]
				toMemory(r.Over())
			case 3:
				toMemory(r.All())
			}
			if err := r.Check(); err != nil {
				t.Fatal(err)
			}
			if r.Len() > limit {
				t.Fatalf("%d pages are left to the disk, the limit is %d", r.Len(), limit)
			}
			for p := range plain {
				got := memory[p]
				if ref, ok := r.Find(ident.PageNo(p)); ok {
					got = disk[ref.Block.No]
				}
				if got != plain[p] {
					t.Fatalf("page %d is %d, the plain replica has %d", p, got, plain[p])
				}
			}
		}
	})
}

func TestRefsGiveTheOldestFirst(t *testing.T) {
	r := NewRefs(2, "")
	for _, page := range []ident.PageNo{5, 3, 9, 3} { // 3 comes again: it is the youngest
		r.Set(page, Block{No: uint64(page)}, uint32(page))
	}
	if got := r.Over(); !slices.Equal(got, []ident.PageNo{5}) {
		t.Errorf("over the limit: %v, want page 5", got)
	}
	for page := range ident.PageNo(500) {
		r.Set(page%7, Block{No: uint64(page % 3)}, 0)
	}
	if len(r.order) > 3*64 {
		t.Error(fmt.Errorf("%d entries for %d pages", len(r.order), r.Len()))
	}
}
