package gang

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// waiter is a gang that has work.
type waiter struct {
	virtual int64
	gang    int // index in conductor.gangs, so by VM
}

// byWait lists the gangs that have work, in the order in which they get slots. The list is good until the next call.
func (c *Core) byWait() []waiter {
	order := c.order[:0]
	for i := range c.lead.gangs {
		if g := &c.lead.gangs[i]; g.work {
			order = append(order, waiter{g.virtual, i})
		}
	}
	slices.SortFunc(order, func(a, b waiter) int {
		switch {
		case a.virtual < b.virtual:
			return -1
		case a.virtual > b.virtual:
			return 1
		}
		return a.gang - b.gang
	})
	if c.cfg.Canary == CanarySmallFirst {
		slices.SortStableFunc(order, func(a, b waiter) int { return c.lead.gangs[a.gang].demand() - c.lead.gangs[b.gang].demand() })
	}
	c.order = order
	return order
}

// slots returns what each server has. The list is good until the next call.
func (c *Core) slots() []int {
	c.spare = c.spare[:0]
	for _, s := range c.lead.servers {
		c.spare = append(c.spare, s.slots)
	}
	return c.spare
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
