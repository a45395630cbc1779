package paging

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// Each test is one claim of Cellular Disco's paging (Govil, Teodosiu, Huang, Rosenblum: Cellular Disco, SOSP 1999, section 5.3) that the code follows, in
// our words above it.

// filled returns a table all of whose memory is in use and mapped: pages 0 to limit-1.
func filled(limit int) *Table {
	t := New(64, limit, 64, "")
	for page := range ident.PageNo(limit) {
		t.Enter(page)
		t.Map(page)
	}
	return t
}

// Pages leave first in, first out, but one that was used meanwhile gets a second chance.
func TestPaperSecondChance(t *testing.T) {
	table := filled(8)
	table.Age(4, nil)
	table.Map(0) // used again
	for _, want := range []ident.PageNo{1, 2, 3} {
		page, ok := table.Victim()
		if !ok || page != want {
			t.Fatalf("page %d leaves, want %d", page, want)
		}
		slot, _ := table.Slot()
		table.Leave(page, slot)
	}
	if page, ok := table.Victim(); ok {
		t.Errorf("page %d leaves too", page)
	}
	if where, _ := table.Where(0); where != Active {
		t.Errorf("the page that was used is %v", where)
	}
}

// A page that the guest does not use is not written anywhere.
func TestPaperUnusedPagesAreNotWritten(t *testing.T) {
	table := filled(8)
	table.Drop(2, 3) // the guest's balloon took it, or it is zero
	if table.Count(Out) != 0 || table.Resident() != 5 || table.Over(3) != 0 {
		t.Errorf("%d out, %d in memory", table.Count(Out), table.Resident())
	}
}

// A page that the guest pages out, and the monitor has paged out already, is not read and written again: only the mapping changes.
func TestPaperNoDoublePaging(t *testing.T) {
	table := filled(8)
	table.Age(1, nil)
	page, _ := table.Victim()
	slot, _ := table.Slot()
	table.Leave(page, slot)
	var freed []uint32
	table.OnFree = func(s uint32) { freed = append(freed, s) }
	table.Back(page) // the guest's disk has it now
	if where, _ := table.Where(page); where != Backed || len(freed) != 1 || freed[0] != slot || table.Resident() != 7 {
		t.Errorf("it is %v, slots %v are free, %d pages in memory", where, freed, table.Resident())
	}
}
