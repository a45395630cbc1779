package gang

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// byWait lists the gangs that have work, in the order in which they get slots.
func (c *Core) byWait() []*gang {
	var order []*gang
	for i := range c.lead.gangs {
		if g := &c.lead.gangs[i]; g.work {
			order = append(order, g)
		}
	}
	slices.SortFunc(order, func(a, b *gang) int {
		if c.cfg.Canary == CanarySmallFirst && a.demand() != b.demand() {
			return a.demand() - b.demand()
		}
		switch {
		case a.virtual < b.virtual:
			return -1
		case a.virtual > b.virtual:
			return 1
		}
		return compareVM(a.vm, b.vm)
	})
	return order
}

// slots returns what each server has.
func (l *conductor) slots() []int {
	free := make([]int, len(l.servers))
	for i, s := range l.servers {
		free[i] = s.slots
	}
	return free
}

// fit takes the gang's slots out of free, all or none. A gang with more vCPUs than its server has slots takes the whole server.
func (c *Core) fit(g *gang, free []int) bool {
	fitting := 0
	for _, p := range g.parts {
		if min(p.busy, c.lead.servers[p.server].slots) <= free[p.server] {
			fitting++
		}
	}
	if fitting < len(g.parts) && (c.cfg.Canary != CanaryPartial || fitting == 0) {
		return false
	}
	for _, p := range g.parts {
		free[p.server] -= min(p.busy, c.lead.servers[p.server].slots)
	}
	return true
}

// sliceLength is such that all gangs run once in Rotation, within the bounds.
func (l *conductor) sliceLength() ident.Micros {
	need := make([]int, len(l.servers))
	for i := range l.gangs {
		for _, p := range l.gangs[i].parts {
			need[p.server] += p.busy
		}
	}
	rounds := 1
	for i, s := range l.servers {
		rounds = max(rounds, (need[i]+s.slots-1)/s.slots)
	}
	return min(max(Rotation/ident.Micros(rounds), MinSlice), MaxSlice)
}
