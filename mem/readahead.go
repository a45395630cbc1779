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
		c.prefetch(p, write)
	}
}

func (c *Core) prefetch(page ident.PageNo, write bool) {
	if e := c.entry(page); e.flags&flagWanted != 0 || e.state != Invalid {
		return
	}
	r := c.newRequest(page)
	c.reqID++
	r.reqID, r.asked, r.prefetch = c.reqID, accessOf(write), true
	c.sendRequest(page, r)
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
