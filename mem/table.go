package mem

import (
	"github.com/cellvisor/cellvisor/ident"
)

// RegionPages is the number of pages in a region, the unit by which the directory is sharded and tables are allocated: 2 MiB.
const RegionPages = 512

// pageEntry is what a part knows of a page, whether it holds it or not: 16 bytes.
//
// serial is that of the last transaction that changed the entry. If state is Invalid and serial is not 0, the memfd retains the contents
// that transaction serial handed to grantee; if grantee is this part itself, they were received but are not installed yet.
type pageEntry struct {
	serial  uint64
	window  uint32 // low bits of the sequence number of the page's last window
	state   State
	grantee ident.Part
	flags   entryFlags
	turns   uint8 // how often the page still comes along with others, see company
}

type entryFlags uint8

const (
	flagMapped   entryFlags = 1 << iota // in the guest mapping
	flagHot                             // in its window
	flagPinned                          // by at least one pin that is held
	flagDeferred                        // a Fwd or Inval waits in Core.deferred
	flagWanted                          // has a request in Core.requests
	flagWatched                         // held for reading and not mapped, to see whether it is used
)

// dirEntry is what the directory knows of a page. While a region is being rebuilt, holders of a Retained entry are all those who retained
// a copy of serial, and grantee is whom it went to.
type dirEntry struct {
	serial  uint64 // of the last transaction that is over
	holders ident.PartSet
	state   State // Zero, Shared, Modified, Retained or Lost
	grantee ident.Part
	busy    bool // has a transaction in Core.transactions
}

// regions is a table of entries by page number, allocated region by region on first touch.
type regions[E any] struct {
	chunks [][]E
	pages  uint64
	shift  uint8 // a region has 1<<shift pages
}

func newRegions[E any](pages uint64, shift uint8) regions[E] {
	return regions[E]{chunks: make([][]E, (pages+1<<shift-1)>>shift), pages: pages, shift: shift}
}

func (c *Core) regionOf(page ident.PageNo) uint64 { return uint64(page) >> c.shift }

// look returns the entry of page, or nil if its region was never touched.
func (t *regions[E]) look(page ident.PageNo) *E {
	if c := t.chunks[page>>t.shift]; c != nil {
		return &c[page&(1<<t.shift-1)]
	}
	return nil
}

// chunk returns the entries of a region, and whether they were allocated just now.
func (t *regions[E]) chunk(region uint64) ([]E, bool) {
	if c := t.chunks[region]; c != nil {
		return c, false
	}
	c := make([]E, min(1<<t.shift, t.pages-region<<t.shift))
	t.chunks[region] = c
	return c, true
}

func (t *regions[E]) clone() regions[E] {
	n := regions[E]{chunks: make([][]E, len(t.chunks)), pages: t.pages, shift: t.shift}
	for i, c := range t.chunks {
		if c != nil {
			n.chunks[i] = append([]E(nil), c...)
		}
	}
	return n
}

// pageMap maps page numbers to values. Unlike a Go map it never allocates once it has grown, its order of iteration is determined by its
// history, and its values have addresses, good until the next put. Slots are found by open addressing with linear probing.
type pageMap[T any] struct {
	slots []pageSlot[T]
	free  []int32
	index []int32 // slot + 1, or 0; its length is a power of two and at least twice len(slots)
	n     int
}

type pageSlot[T any] struct {
	page ident.PageNo
	used bool
	val  T
}

func (m *pageMap[T]) hash(page ident.PageNo) int {
	return int((uint64(page)*0x9e3779b97f4a7c15)>>32) & (len(m.index) - 1)
}

func (m *pageMap[T]) get(page ident.PageNo) *T {
	if m.n == 0 {
		return nil
	}
	for i := m.hash(page); m.index[i] != 0; i = (i + 1) & (len(m.index) - 1) {
		if s := &m.slots[m.index[i]-1]; s.page == page {
			return &s.val
		}
	}
	return nil
}

// put adds page, which must not be there, with a zero value.
func (m *pageMap[T]) put(page ident.PageNo) *T {
	if len(m.free) == 0 {
		m.grow()
	}
	slot := m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	m.slots[slot] = pageSlot[T]{page: page, used: true}
	m.enter(page, slot)
	m.n++
	return &m.slots[slot].val
}

func (m *pageMap[T]) enter(page ident.PageNo, slot int32) {
	i := m.hash(page)
	for m.index[i] != 0 {
		i = (i + 1) & (len(m.index) - 1)
	}
	m.index[i] = slot + 1
}

func (m *pageMap[T]) grow() {
	old := len(m.slots)
	size := max(2, 2*old)
	m.slots = append(make([]pageSlot[T], 0, size), m.slots...)[:size]
	for slot := size - 1; slot >= old; slot-- {
		m.free = append(m.free, int32(slot))
	}
	m.index = make([]int32, 2*size)
	for slot := range old {
		if m.slots[slot].used {
			m.enter(m.slots[slot].page, int32(slot))
		}
	}
}

// del removes page if it is there. The slots that follow in its run of the index move up, so that no tombstones are needed.
func (m *pageMap[T]) del(page ident.PageNo) {
	if m.n == 0 {
		return
	}
	mask := len(m.index) - 1
	i := m.hash(page)
	for ; ; i = (i + 1) & mask {
		if m.index[i] == 0 {
			return
		}
		if m.slots[m.index[i]-1].page == page {
			break
		}
	}
	slot := m.index[i] - 1
	m.slots[slot] = pageSlot[T]{}
	m.free = append(m.free, slot)
	m.n--
	for j := (i + 1) & mask; m.index[j] != 0; j = (j + 1) & mask {
		home := m.hash(m.slots[m.index[j]-1].page)
		if (j-home)&mask >= (j-i)&mask {
			m.index[i] = m.index[j]
			i = j
		}
	}
	m.index[i] = 0
}

// each calls f for every value until f returns false. f may delete the page it is called with.
func (m *pageMap[T]) each(f func(ident.PageNo, *T) bool) {
	if m.n == 0 {
		return
	}
	for i := range m.slots {
		if s := &m.slots[i]; s.used && !f(s.page, &s.val) {
			return
		}
	}
}

func (m *pageMap[T]) clear() {
	m.free = m.free[:0]
	for i := len(m.slots) - 1; i >= 0; i-- {
		m.slots[i] = pageSlot[T]{}
		m.free = append(m.free, int32(i))
	}
	clear(m.index)
	m.n = 0
}

func (m *pageMap[T]) clone() pageMap[T] {
	return pageMap[T]{
		slots: append([]pageSlot[T](nil), m.slots...),
		free:  append([]int32(nil), m.free...),
		index: append([]int32(nil), m.index...),
		n:     m.n,
	}
}
