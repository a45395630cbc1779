package mem

import "github.com/cellvisor/cellvisor/ident"

// company is the pages that this part had to give up and will want back together: what its vCPUs work on, when turns at it are taken with other parts.
// The first fault for one of them asks for all, so that a turn costs one exchange and not as many as there are pages, one after the other.
//
// Nobody tells which of them are still of use. So a page that somebody here waited for comes along companyTurns times, then not until somebody
// waits for it again.
type company struct {
	gone []gone // in the order in which they left; pages that came back meanwhile may be among them
}

type gone struct {
	page ident.PageNo
	a    access // that was lost
}

const companyTurns = 7

// leaves notes that a page was given up, or write access to it.
func (c *Core) leaves(page ident.PageNo, e *pageEntry, a access) {
	if c.cfg.Company == 0 || e.turns == 0 {
		return
	}
	if all := c.company.gone; len(all) == c.cfg.Company { // the one that left first has been missed by nobody since
		copy(all, all[1:])
		c.company.gone = all[:len(all)-1]
	}
	c.company.gone = append(c.company.gone, gone{page, a})
}

// gather asks for the pages that were given up since the last time: one of this part's vCPUs waits for a page.
func (c *Core) gather() {
	for _, g := range c.company.gone {
		e := c.entry(g.page)
		if e.turns == 0 || e.flags&flagWanted != 0 || e.state.allows(g.a) {
			continue
		}
		e.turns--
		c.counters.Gathered++
		r := c.newRequest(g.page)
		c.reqID++
		r.reqID, r.asked, r.company = c.reqID, g.a, true
		c.sendRequest(g.page, r)
	}
	c.company.gone = c.company.gone[:0]
}
