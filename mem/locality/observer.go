package locality

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// RegionPages is the number of pages in a region of observation, and the most that is fetched around a fault.
const RegionPages = 32

// The table of regions, and how readers are trusted.
const (
	tableSize  = 512
	sureAfter  = 2 // watched pages of a region that tell
	trustAfter = 8 // of all regions
	blockSmall = 8 // pages that are fetched on a suspicion
)

// faultExtra is what a fault costs beside the wait: leaving the guest and coming back.
const faultExtra = 20 * ident.Micros(1)

// region is what is known of 32 pages. All but no ages.
type region struct {
	no           uint64 // of the region, from 1; 0: unused
	heat         uint32 // micros waited
	reads        uint16 // faults that fetched a page to read
	faults       uint16 // all that fetched something
	used, unused uint16 // watched pages
	by           uint16 // who waits most, as in mem.Event.By, and by how many faults more than all others
	byLead       uint16
	peer         ident.Part // likewise: for whom
	peerLead     uint16
}

// Observer counts at one part.
type Observer struct {
	policy       Policy
	table        [tableSize]region
	rows         [][]row // by vCPU, then by part; nil until the vCPU has waited
	used, unused uint32  // watched pages of all regions; ages
	homes        homes
	busy         bool // something was noted since the last report
}

// row is what one vCPU waited for one part since the last report.
type row struct {
	waited ident.Micros
	faults uint32
}

// NewObserver returns one for a part of a VM of so many vCPUs.
func NewObserver(policy Policy, vcpus int) *Observer {
	return &Observer{policy: policy, rows: make([][]row, vcpus)}
}

// By names a vCPU in mem.Event.By.
func By(id ident.VCPU) uint16 { return uint16(id) + 1 }

func (o *Observer) region(page ident.PageNo) *region {
	no := uint64(page) / RegionPages
	return &o.table[(no*0x9e3779b97f4a7c15>>32)%tableSize]
}

// look returns what is known of a page's region, or nil.
func (o *Observer) look(page ident.PageNo) *region {
	if r := o.region(page); r.no == uint64(page)/RegionPages+1 {
		return r
	}
	return nil
}

// enter returns the entry of a page's region. One that another region has is taken over when that has cooled down; until then nil.
func (o *Observer) enter(page ident.PageNo) *region {
	r, no := o.region(page), uint64(page)/RegionPages+1
	if r.no == no {
		return r
	}
	if r.faults > 1 {
		r.faults--
		return nil
	}
	*r = region{no: no}
	return r
}

// Note takes in a page that came or went.
func (o *Observer) Note(t *mem.Traffic) {
	switch t.Kind {
	case mem.CameRead, mem.CameWrite, mem.Upgraded:
		o.busy = true
		o.waited(t)
	case mem.Used:
		o.used++
		if r := o.look(t.Page); r != nil {
			r.used++
		}
	case mem.Unused:
		o.unused++
		if r := o.look(t.Page); r != nil {
			r.unused++
		}
	case mem.Asked:
		o.homes.ask(t, o.policy == Rehome)
	}
}

func (o *Observer) waited(t *mem.Traffic) {
	cost := t.Waited + faultExtra
	if r := o.enter(t.Page); r != nil {
		r.heat += uint32(min(cost, ident.Second))
		r.faults++
		if t.Kind == mem.CameRead {
			r.reads++
		}
		lead(&r.by, &r.byLead, t.By)
		lead(&r.peer, &r.peerLead, t.Peer)
	}
	v := int(t.By) - 1
	if v < 0 || v >= len(o.rows) || t.Peer >= ident.MaxParts {
		return
	}
	if o.rows[v] == nil {
		o.rows[v] = make([]row, ident.MaxParts)
	}
	to := &o.rows[v][t.Peer]
	to.waited += cost
	to.faults++
}

// lead keeps the value that came most often in a row of values, if one came more often than all others together.
func lead[T comparable](who *T, by *uint16, now T) {
	switch {
	case *by == 0:
		*who, *by = now, 1
	case *who == now:
		*by++
	default:
		*by--
	}
}

// Around is how many pages are to be fetched in the block around a fault that reads; 0 or 1 is only the page.
func (o *Observer) Around(page ident.PageNo) uint16 {
	switch o.policy {
	case Replicate:
		return RegionPages
	case Auto:
	default:
		return 0
	}
	r := o.look(page)
	if r != nil && r.used+r.unused >= sureAfter {
		if r.used*2 >= r.unused {
			return RegionPages
		}
		return 0
	}
	if o.used+o.unused >= trustAfter {
		if o.used >= o.unused {
			return RegionPages
		}
		if r == nil || r.reads < blockSmall/2 {
			return 0
		}
	}
	switch {
	case r == nil || r.reads == 0:
		return 0
	case r.reads < 3:
		return blockSmall
	}
	return RegionPages
}

// Age lets what was observed fade. It is to be called about four times a second.
func (o *Observer) Age() {
	for i := range o.table {
		r := &o.table[i]
		r.heat, r.reads, r.faults = r.heat/2, r.reads/2, r.faults/2
		r.byLead, r.peerLead = r.byLead/2, r.peerLead/2
		if r.used+r.unused > 16 {
			r.used, r.unused = r.used/2, r.unused/2
		}
	}
	if o.used+o.unused > 64 {
		o.used, o.unused = o.used/2, o.unused/2
	}
	o.homes.fade()
}

// Hot is a region that vCPUs of this part wait for.
type Hot struct {
	Page   ident.PageNo // the first
	Waited ident.Micros // lately
	Faults int          // lately
	By     uint16       // the vCPU that waits most, as in mem.Event.By; 0: none does
	Peer   ident.Part   // that most pages come from
	Around bool         // reading fetches all of it
}

// Top returns the regions that are waited for most, hottest first.
func (o *Observer) Top(n int) []Hot {
	var all []Hot
	for i := range o.table {
		if r := &o.table[i]; r.no != 0 && r.faults > 0 {
			page := ident.PageNo((r.no - 1) * RegionPages)
			all = append(all, Hot{Page: page, Waited: ident.Micros(r.heat), Faults: int(r.faults), By: r.by, Peer: r.peer, Around: o.Around(page) == RegionPages})
		}
	}
	slices.SortFunc(all, func(a, b Hot) int { return cmp.Or(cmp.Compare(b.Waited, a.Waited), cmp.Compare(a.Page, b.Page)) })
	return all[:min(n, len(all))]
}
