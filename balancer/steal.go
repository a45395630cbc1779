package balancer

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Spare is a server with what is free on it at the moment.
type Spare struct {
	Server
	FreeSlots int
	Distance  int // from the server that looks for work: the nearer the smaller
}

// Waiting is a gang that has work and waits.
type Waiting struct {
	Running
	Since ident.Micros
}

// CanaryHalfGang plants a bug, for the simulator: the idle balancer takes some of a gang although others of it go on waiting.
const CanaryHalfGang = "half-gang"

// Steal is the idle balancer: it finds work for a server with free slots. It takes from a gang that waits, from the nearest server, the longest-waiting first, if
// the whole gang can run then: a part, where each other part has its slots free where it is; or, if the VM has a part here, so many single vCPUs that none of
// its servers has more work than slots. It never takes from another cell.
func Steal(self ident.ServerID, spares []Spare, gangs []Waiting) (Transfer, bool) {
	return StealWith(self, spares, gangs, "")
}

// StealWith is Steal with a planted bug, for the simulator.
func StealWith(self ident.ServerID, spares []Spare, gangs []Waiting, canary string) (Transfer, bool) {
	here := find(spares, self)
	if here == nil || !here.Open || here.FreeSlots < 1 {
		return Transfer{}, false
	}
	best, found := Transfer{}, false
	distance, since := 0, ident.Micros(0)
	for i := range gangs {
		g := &gangs[i]
		if g.Settled {
			continue
		}
		sibling := slices.IndexFunc(g.Parts, func(p RunningPart) bool { return p.Server == self })
		for at, p := range g.Parts {
			from := find(spares, p.Server)
			if from == nil || from.Cell != here.Cell || at == sibling || p.busy() < 1 {
				continue
			}
			n := p.VCPUs
			if sibling >= 0 {
				n = takes(spares, here, g, at, sibling, canary)
			} else if p.VCPUs > here.FreeSlots || p.Bytes > here.free() || !othersRun(spares, g, p.Server) && canary != CanaryHalfGang || !relieves(from, here, &p) {
				continue
			}
			if n == 0 || found && (from.Distance > distance || from.Distance == distance && g.Since >= since) {
				continue
			}
			best, found = Transfer{VM: g.VM, VCPUs: n, Apart: sibling >= 0, From: p.Server, To: self}, true
			best.Reason = string(here.Name) + " has free slots, and on " + string(from.Name) + " the VM waits"
			distance, since = from.Distance, g.Since
		}
	}
	return best, found
}

// takes returns how many vCPUs of a gang's part number at go to the part that it has here, the fewest with which all of the gang has slots; 0: that cannot be had.
// Either its server has as many slots as work then, or none of the gang is left there. As that server has more work than slots before, and this one has not
// afterwards, each of them makes the loads more even, so the periodic balancer takes none back.
func takes(spares []Spare, here *Spare, g *Waiting, at, sibling int, canary string) int {
	p, q := &g.Parts[at], &g.Parts[sibling]
	from := find(spares, p.Server)
	n := min(from.UsedVCPUs-from.Slots, p.VCPUs)
	if g.Whole || p.Idle > 0 || n < 1 || q.VCPUs+n > here.Slots {
		return 0
	}
	if canary == CanaryHalfGang {
		return 1
	}
	if n > here.FreeSlots || here.UsedVCPUs+n > here.Slots {
		return 0
	}
	for i := range g.Parts {
		if s := find(spares, g.Parts[i].Server); i != at && i != sibling && g.Parts[i].busy() > 0 && (s == nil || s.UsedVCPUs > s.Slots) {
			return 0
		}
	}
	return n
}

// relieves tells whether the loads are more even once the part has moved; else the periodic balancer would move it back.
func relieves(from, to *Spare, p *RunningPart) bool {
	return lessens(load{vcpus: from.UsedVCPUs, slots: from.Slots}, load{vcpus: to.UsedVCPUs, slots: to.Slots}, p.busy())
}

// othersRun tells whether all parts of a gang but one have their slots free.
func othersRun(spares []Spare, g *Waiting, but ident.ServerID) bool {
	for _, p := range g.Parts {
		if s := find(spares, p.Server); p.Server != but && (s == nil || s.FreeSlots < p.VCPUs) {
			return false
		}
	}
	return true
}

func find(spares []Spare, id ident.ServerID) *Spare {
	i := slices.IndexFunc(spares, func(s Spare) bool { return s.ID == id })
	if i < 0 {
		return nil
	}
	return &spares[i]
}
