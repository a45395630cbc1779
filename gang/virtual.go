package gang

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// How far a gang may be ahead of the next one behind it, in slices of the lightest, and of the last one, in slices of its own.
const (
	gapSlices   = 2
	aheadSlices = 50
)

// virtualOf is a time by weight, in units that keep the weights' ratios without fractions.
func (g *gang) virtualOf(t ident.Micros) int64 { return int64(t) * MaxWeight / g.weight }

// charge adds what a running gang has run.
func (c *Core) charge(until ident.Micros, g *gang) {
	if !g.running {
		return
	}
	ran := until - g.from
	if g.fresh {
		ran = max(ran, MinCharge)
	}
	if ran > 0 {
		g.virtual += g.virtualOf(ran)
	}
	g.fresh = false
	g.from = max(g.from, until)
}

// advance moves the present virtual time on, and bounds how far ahead of it gangs can be that ran while others could not: on a server where few wait,
// or in holes that are too small for others. They go on ahead together, and share by weight what the others cannot use; so where a
// gap opens below some of them, it is closed for all of them alike. Gangs that wait for the same slots never have such a gap between them.
func (c *Core) advance() {
	l := &c.lead
	var order []*gang
	lightest := int64(MaxWeight)
	for i := range l.gangs {
		g := &l.gangs[i]
		order = append(order, g)
		if g.work {
			lightest = min(lightest, g.weight)
		}
	}
	slices.SortFunc(order, func(a, b *gang) int { return cmp.Or(cmp.Compare(a.virtual, b.virtual), compareVM(a.vm, b.vm)) })
	if i := slices.IndexFunc(order, func(g *gang) bool { return g.work }); i >= 0 {
		l.virtual = max(l.virtual, order[i].virtual)
	}
	gap := int64(gapSlices*MaxSlice) * MaxWeight / lightest
	last, shift := l.virtual, int64(0)
	for _, g := range order {
		was := g.virtual
		if g.work {
			shift += max(0, was-last-gap)
			last = max(last, was)
		}
		if was >= l.virtual {
			g.virtual = min(was-shift, l.virtual+g.virtualOf(aheadSlices*MaxSlice))
		}
	}
}
