// Package paging decides which pages of a VM part stay in a server's memory when it may not hold all of them. It is pure; package vmm/ram moves
// the contents and says what happened.
//
// # A page's contents at one part
//
//	            written, zero-filled                 the guest touched it
//	absent ---------------------------> inactive ---------------------------> active
//	   ^                                 |  ^  ^ <---------------------------   |
//	   |                                 |  |  |   the hand came by, or the     |
//	   |   all zeros                     |  |  |   page protocol took it        |
//	   +---------------------------------+  |  +--------------------------------+
//	   |   written to a slot              \ |  brought in again
//	   |                                   v|
//	   +------------------------------- out, backed
//	       dropped by the page protocol
//
// An active page is mapped in the guest; nobody knows whether it is used. When room is needed the mapping is taken from some: they become
// inactive, last in a queue. A page that is used then faults, which costs no I/O, and is active again. What has reached the head of the queue
// untouched leaves: that is its second chance. A page that holds zeros only leaves nothing behind; one that equals a known disk block is
// dropped, since the disk has it (backed); any other is written to a slot of the paging file (out).
//
// Whose mapping is taken? A page that took its second chance has proven that it is used more than once; one that came in and was never asked has
// not. Those that have not go first, in the order in which they came. So pages that are touched once and never again pass through, and what is used
// all the time keeps its place and its mapping meanwhile (as in 2Q: Johnson and Shasha, VLDB 1994). Of the proven ones a hand takes one for every
// provenShare others, or their use would never be asked about again, and more when there are no others.
//
// # Invariants
//
//   - No two pages have the same slot; a page has a slot if and only if it is out.
//   - Contents are in memory, in a slot or on the disk, never nowhere, unless they are zeros.
//   - A page that was touched since it became inactive does not leave before one that was not.
//   - Each active page is proven, or in the queue of those that are not.
package paging

import "github.com/cellvisor/cellvisor/ident"

// Where tells where a page's contents are.
type Where uint8

// The places.
const (
	Absent   Where = iota // nowhere: this part has no contents, or they are zeros
	Inactive              // in memory, not mapped in the guest
	Active                // in memory, mapped
	Out                   // in a slot
	Backed                // dropped: a disk block equals them
)

var whereNames = [...]string{"absent", "inactive", "active", "out", "backed"}

// String returns the place in lower case.
func (w Where) String() string { return whereNames[w] }

// Canaries lists the bugs that New can plant, for proving that the tests find them.
var Canaries = []string{"slot-given-twice", "second-chance-forgotten", "newcomer-forgotten"}

const regionPages = 512 // entries are allocated by regions of so many pages, on first touch

// provenShare is how many mappings are taken from pages that have not proven anything for one that is taken from a page that has.
const provenShare = 32

type entry struct {
	slot  uint32
	seq   uint32 // its number in the queue that it is in
	where Where
	asked bool // it was active, and inactive since: proven if it is active
}

// Table knows the places of a part's pages. It belongs to one goroutine.
type Table struct {
	OnFree func(slot uint32) // if set: told of each slot that is not needed any more

	canary string
	pages  uint64
	limit  int
	slots  int
	chunks [][]entry
	count  [5]int // by place
	proven int    // active pages

	queue     ring // of inactive pages
	newcomers ring // of active pages that have not proven anything
	spared    int  // mappings that were taken from them since one was from a page that has
	hand      ident.PageNo

	free []uint32 // slots below next that nobody has
	next uint32
}

// New returns the table of a part of so many pages, all absent. limit pages may be in memory, slots in the paging file.
func New(pages uint64, limit, slots int, canary string) *Table {
	return &Table{canary: canary, pages: pages, limit: limit, slots: slots, chunks: make([][]entry, (pages+regionPages-1)/regionPages)}
}

func (t *Table) look(page ident.PageNo) *entry {
	if c := t.chunks[page/regionPages]; c != nil {
		return &c[page%regionPages]
	}
	return nil
}

func (t *Table) entry(page ident.PageNo) *entry {
	c := &t.chunks[page/regionPages]
	if *c == nil {
		*c = make([]entry, regionPages)
	}
	return &(*c)[page%regionPages]
}

func (t *Table) move(e *entry, to Where) {
	if e.where == Active && e.asked {
		t.proven--
	}
	t.count[e.where]--
	t.count[to]++
	e.where = to
	switch to {
	case Absent, Out, Backed:
		e.asked = false
	case Active:
		if e.asked {
			t.proven++
		}
	}
}

// SetLimit changes how many pages may be in memory, and in the paging file.
func (t *Table) SetLimit(limit, slots int) { t.limit, t.slots = limit, slots }

// Limit is how many pages may be in memory.
func (t *Table) Limit() int { return t.limit }

// Slots is how many pages may be in the paging file.
func (t *Table) Slots() int { return t.slots }

// Where tells where a page's contents are, and in which slot.
func (t *Table) Where(page ident.PageNo) (Where, uint32) {
	if e := t.look(page); e != nil {
		return e.where, e.slot
	}
	return Absent, 0
}

// Count is how many pages are in a place. Absent ones are not counted.
func (t *Table) Count(w Where) int { return t.count[w] }

// Resident is how many pages are in memory.
func (t *Table) Resident() int { return t.count[Inactive] + t.count[Active] }

// Over is how many pages have to leave so that n more have room.
func (t *Table) Over(n int) int { return max(0, t.Resident()+n-t.limit) }

// Enter says that a page's contents are in memory, new or brought in. A slot it had is free.
func (t *Table) Enter(page ident.PageNo) {
	e := t.entry(page)
	if e.where == Active || e.where == Inactive {
		return
	}
	t.release(e)
	t.move(e, Inactive)
	t.deactivated(page, e)
}

// deactivated puts a page that became inactive into the queue.
func (t *Table) deactivated(page ident.PageNo, e *entry) {
	e.seq = t.queue.push(page, t.waits, t.number)
}

// waits tells whether the queue's entry number seq still stands for its page, and isNew the same of the newcomers'.
func (t *Table) waits(page ident.PageNo, seq uint32) bool {
	e := t.entry(page)
	return e.where == Inactive && e.seq == seq
}

func (t *Table) isNew(page ident.PageNo, seq uint32) bool {
	e := t.entry(page)
	return e.where == Active && !e.asked && e.seq == seq
}

func (t *Table) number(page ident.PageNo, seq uint32) { t.entry(page).seq = seq }

// Map says that the guest touched a page in memory, which is mapped from now on.
func (t *Table) Map(page ident.PageNo) {
	e := t.entry(page)
	if e.where != Inactive || t.canary == "second-chance-forgotten" {
		return
	}
	t.move(e, Active)
	if !e.asked && t.canary != "newcomer-forgotten" {
		e.seq = t.newcomers.push(page, t.isNew, t.number)
	}
}

// Unmap says that the mapping was taken from n pages.
func (t *Table) Unmap(page ident.PageNo, n uint64) {
	t.each(page, n, func(p ident.PageNo, e *entry) {
		if e.where == Active {
			t.move(e, Inactive)
			t.deactivated(p, e)
		}
	})
}

// Drop says that the contents of n pages are gone, wherever they were.
func (t *Table) Drop(page ident.PageNo, n uint64) {
	t.each(page, n, func(_ ident.PageNo, e *entry) {
		if e.where != Absent {
			t.release(e)
			t.move(e, Absent)
		}
	})
}

// each calls f for those of n pages from page on that were ever touched.
func (t *Table) each(page ident.PageNo, n uint64, f func(ident.PageNo, *entry)) {
	for end := page + ident.PageNo(n); page < end; {
		stop := min(end, (page/regionPages+1)*regionPages)
		if c := t.chunks[page/regionPages]; c != nil {
			for p := page; p < stop; p++ {
				f(p, &c[p%regionPages])
			}
		}
		page = stop
	}
}

// release gives an entry's slot back.
func (t *Table) release(e *entry) {
	if e.where == Out {
		t.free = append(t.free, e.slot)
		if t.OnFree != nil {
			t.OnFree(e.slot)
		}
		e.slot = 0
	}
}

// Age has n active pages become inactive, or all if there are fewer, and returns them: their mappings are to be taken away before anything else
// happens.
func (t *Table) Age(n int, pages []ident.PageNo) []ident.PageNo {
	for n = min(n, t.count[Active]); n > 0; n-- {
		page, ok := ident.PageNo(0), false
		if t.spared < provenShare || t.proven == 0 {
			page, ok = t.newcomers.pop(t.isNew)
			t.spared++
		}
		if !ok {
			if page, ok = t.turn(); !ok {
				return pages
			}
			t.spared = 0
		}
		e := t.entry(page)
		t.move(e, Inactive)
		e.asked = true
		t.deactivated(page, e)
		pages = append(pages, page)
	}
	return pages
}

// turn moves the hand on to the next proven page; false if there is none.
func (t *Table) turn() (ident.PageNo, bool) {
	for t.proven > 0 {
		if uint64(t.hand) >= t.pages {
			t.hand = 0
		}
		c := t.chunks[t.hand/regionPages]
		if c == nil {
			t.hand = (t.hand/regionPages + 1) * regionPages
			continue
		}
		t.hand++
		if e := &c[(t.hand-1)%regionPages]; e.where == Active && e.asked {
			return t.hand - 1, true
		}
	}
	return 0, false
}

// ageBatch is how many pages become inactive at a time, at least: each time that mappings are taken away processors forget others, too, and it costs no
// more to have them forget for many.
const ageBatch = 32

// queueShare is the part of what is in memory that waits in the queue. A longer one gives a page that is used more time to say so, but each that does so costs a fault:
// with a quarter instead of an eighth twice as many, and four times as many where a hot set has hardly room, while about as many pages come in (hot sets, Zipf and
// three tiers as much or up to a tenth less; a hot set that moves every so often a tenth to a fifth more).
const queueShare = 8

// Wanting is how many active pages should become inactive before n pages leave.
func (t *Table) Wanting(n int) int {
	want := max(n, t.Resident()/queueShare) - t.count[Inactive]
	if want <= 0 {
		return 0
	}
	return min(t.count[Active], max(want, min(ageBatch, t.Resident()/16)))
}

// Victim takes the page that leaves next from the queue; false if there is none. The caller says what becomes of it by Leave, Back or Stay.
func (t *Table) Victim() (ident.PageNo, bool) { return t.queue.pop(t.waits) }

// Slot returns a free slot; false if the paging file is as large as it may be.
func (t *Table) Slot() (uint32, bool) {
	if t.count[Out] >= t.slots {
		return 0, false
	}
	if n := len(t.free); n > 0 {
		slot := t.free[n-1]
		if t.canary != "slot-given-twice" {
			t.free = t.free[:n-1]
		}
		return slot, true
	}
	t.next++
	return t.next - 1, true
}

// Leave says that a victim's contents are in a slot.
func (t *Table) Leave(page ident.PageNo, slot uint32) {
	e := t.entry(page)
	t.move(e, Out)
	e.slot = slot
}

// Refuse says that a slot could not be written.
func (t *Table) Refuse(slot uint32) { t.free = append(t.free, slot) }

// Back says that a page in memory or in a slot need not be kept, because the disk has its contents.
func (t *Table) Back(page ident.PageNo) {
	e := t.entry(page)
	t.release(e)
	t.move(e, Backed)
}

// Stay puts a victim back to the end of the queue.
func (t *Table) Stay(page ident.PageNo) {
	if e := t.entry(page); e.where == Inactive {
		t.deactivated(page, e)
	}
}

// Next returns the first page from page on that has contents (or, if not here, none), or the number of pages.
func (t *Table) Next(page ident.PageNo, here bool) ident.PageNo {
	for uint64(page) < t.pages {
		c := t.chunks[page/regionPages]
		if c == nil {
			if !here {
				return page
			}
			page = (page/regionPages + 1) * regionPages
			continue
		}
		if (c[page%regionPages].where != Absent) == here {
			return page
		}
		page++
	}
	return ident.PageNo(t.pages)
}

// Pages calls f for each page in a place, in rising order.
func (t *Table) Pages(w Where, f func(ident.PageNo)) {
	for i, c := range t.chunks {
		for j := range c {
			if c[j].where == w {
				f(ident.PageNo(i*regionPages + j))
			}
		}
	}
}

// Reset says that all contents are gone.
func (t *Table) Reset() {
	told := t.OnFree
	if told != nil {
		t.Pages(Out, func(page ident.PageNo) { told(t.entry(page).slot) })
	}
	*t = *New(t.pages, t.limit, t.slots, t.canary)
	t.OnFree = told
}
