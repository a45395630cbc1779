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

// Steal is the idle balancer: it finds work for a server with free slots. It takes a part of a gang that waits, from the nearest server, the longest-waiting
// first, if the whole gang can run once the part is here: each other part must have its slots free where it is. It never takes from another cell, and
// never what has a sibling here.
func Steal(self ident.ServerID, spares []Spare, gangs []Waiting) (Transfer, bool) {
	here := find(spares, self)
	if here == nil || !here.Open || here.FreeSlots < 1 {
		return Transfer{}, false
	}
	best, found := Transfer{}, false
	distance, since := 0, ident.Micros(0)
	for i := range gangs {
		g := &gangs[i]
		if g.Settled || slices.ContainsFunc(g.Parts, func(p RunningPart) bool { return p.Server == self }) {
			continue
		}
		for _, p := range g.Parts {
			from := find(spares, p.Server)
			if from == nil || from.Cell != here.Cell || p.VCPUs > here.FreeSlots || p.Bytes > here.free() || !othersRun(spares, g, p.Server) || !relieves(from, here, &p) {
				continue
			}
			if found && (from.Distance > distance || from.Distance == distance && g.Since >= since) {
				continue
			}
			best, found = Transfer{VM: g.VM, VCPUs: p.VCPUs, From: p.Server, To: self}, true
			best.Reason = string(here.Name) + " has free slots, and on " + string(from.Name) + " the VM waits"
			distance, since = from.Distance, g.Since
		}
	}
	return best, found
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
