package mem

import (
	"github.com/cellvisor/cellvisor/ident"
)

// streams are the sequential scans that faults of this part belong to, by the page that the next one is expected at. A few are followed
// at once, one for each vCPU that scans; a new one takes the place of the one longest unused.
type streams struct {
	all  [8]stream
	uses uint64
}

type stream struct {
	next  ident.PageNo // the first page not asked for yet
	size  int          // pages asked for last
	write bool
	used  uint64
}

// readAhead follows a fault and asks for the pages that will be needed next. The number of them doubles while the scan goes on. A scan
// that writes is helped over Zero pages only: the directory refuses the rest, because read-ahead takes write access from nobody.
func (c *Core) readAhead(page ident.PageNo, write bool) {
	c.streams.uses++
	s := c.streams.find(page, write)
	s.used = c.streams.uses
	if s.next == 0 { // a new one
		s.next, s.size, s.write = page+1, 0, write
		return
	}
	if page < s.next && int(s.next-page) > s.size/2 {
		return // far behind what is on its way
	}
	s.size = min(max(2, 2*s.size), c.cfg.ReadAhead)
	from := max(s.next, page+1)
	s.next = from + ident.PageNo(s.size)
	for p := from; p < s.next && uint64(p) < c.cfg.Pages; p++ {
		if r := c.prefetch(p, write); r != nil {
			c.sendRequest(p, r)
		}
	}
}

// prefetch makes a request for a page that nobody waits for; nil if the page is here, or on its way.
func (c *Core) prefetch(page ident.PageNo, write bool) *request {
	if e := c.entry(page); e.flags&flagWanted != 0 || e.state != Invalid {
		return nil
	}
	r := c.newRequest(page)
	c.reqID++
	r.reqID, r.asked, r.prefetch = c.reqID, accessOf(write), true
	return r
}

// find returns the stream in whose range page is, or the one longest unused, cleared.
func (s *streams) find(page ident.PageNo, write bool) *stream {
	oldest := &s.all[0]
	for i := range s.all {
		t := &s.all[i]
		if t.next != 0 && t.write == write && page <= t.next && page+ident.PageNo(t.size) >= t.next {
			return t
		}
		if t.used < oldest.used {
			oldest = t
		}
	}
	*oldest = stream{}
	return oldest
}

// around asks for the other pages of the aligned block of n pages around page, to read: the same has been read nearby. Every so often one is not
// mapped when it comes, which tells whether the block was of use.
func (c *Core) around(page, n ident.PageNo) {
	n = min(n, 1<<c.shift)
	first := page &^ (n - 1)
	for p := first; p < first+n && uint64(p) < c.cfg.Pages; p++ {
		if p == page {
			continue
		}
		if r := c.prefetch(p, false); r != nil {
			r.watched = (p+p/n)%watchEvery == 0
			c.sendRequest(p, r)
		}
	}
}

// watchEvery is how many pages of blocks there are for one that is watched.
const watchEvery = 8
