package paging

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Check returns an error if the table breaks an invariant.
func (t *Table) Check() error {
	var count [5]int
	proven := 0
	used := map[uint32]ident.PageNo{}
	var err error
	t.each(0, t.pages, func(page ident.PageNo, e *entry) {
		if e.where != Absent {
			count[e.where]++
		}
		switch {
		case e.where == Inactive && !t.queue.holds(page, e.seq), e.where == Active && !e.asked && !t.newcomers.holds(page, e.seq):
			err = fmt.Errorf("paging: %v page 0x%x is in no queue", e.where, page)
		case e.where == Active && e.asked:
			proven++
		}
		if e.where != Out {
			return
		}
		if other, twice := used[e.slot]; twice || e.slot >= t.next || slices.Contains(t.free, e.slot) {
			err = fmt.Errorf("paging: slot %d of page 0x%x is page 0x%x's, or free", e.slot, page, other)
		}
		used[e.slot] = page
	})
	count[Absent] = t.count[Absent]
	if count != t.count || proven != t.proven {
		err = fmt.Errorf("paging: %v pages by place, %d of them proven, counted %v and %d", count, proven, t.count, t.proven)
	}
	return err
}
