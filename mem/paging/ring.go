package paging

import "github.com/cellvisor/cellvisor/ident"

// ring is a queue of pages. An entry is over when its page has left the queue by another way than its head: alive tells whether it is not, and number
// notes an entry's new number.
type ring struct {
	pages      []ident.PageNo // its length is a power of two
	head, tail uint32         // numbers of entries; low bits
}

// push adds a page to the end and returns its number.
func (r *ring) push(page ident.PageNo, alive func(ident.PageNo, uint32) bool, number func(ident.PageNo, uint32)) uint32 {
	if r.tail-r.head == uint32(len(r.pages)) {
		r.compact(alive, number)
	}
	r.pages[r.tail&uint32(len(r.pages)-1)] = page
	r.tail++
	return r.tail - 1
}

// compact drops what is over from a full ring, and lengthens it if much is left.
func (r *ring) compact(alive func(ident.PageNo, uint32) bool, number func(ident.PageNo, uint32)) {
	var kept []ident.PageNo
	for i := r.head; i != r.tail; i++ {
		if page := r.pages[i&uint32(len(r.pages)-1)]; alive(page, i) {
			kept = append(kept, page)
		}
	}
	size := max(64, len(r.pages))
	for size < 2*len(kept) {
		size *= 2
	}
	r.pages = append(make([]ident.PageNo, 0, size), kept...)[:size]
	r.head, r.tail = 0, uint32(len(kept))
	for i, page := range kept {
		number(page, uint32(i))
	}
}

// pop takes the first page that is not over; false if there is none.
func (r *ring) pop(alive func(ident.PageNo, uint32) bool) (ident.PageNo, bool) {
	for r.head != r.tail {
		page, no := r.pages[r.head&uint32(len(r.pages)-1)], r.head
		r.head++
		if alive(page, no) {
			return page, true
		}
	}
	return 0, false
}

// holds tells whether the entry number no is a page's.
func (r *ring) holds(page ident.PageNo, no uint32) bool {
	return no-r.head < r.tail-r.head && r.pages[no&uint32(len(r.pages)-1)] == page
}
