package gang

import (
	"cmp"
	"math"
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
	least, most, lightest := int64(math.MaxInt64), int64(0), int64(MaxWeight)
	for i := range l.gangs {
		if g := &l.gangs[i]; g.work {
			least, most, lightest = min(least, g.virtual), max(most, g.virtual), min(lightest, g.weight)
		}
	}
	if least != math.MaxInt64 {
		l.virtual = max(l.virtual, least)
	}
	gap := int64(gapSlices*MaxSlice) * MaxWeight / lightest
	if most-l.virtual > gap {
		c.closeGaps(gap)
	}
	for i := range l.gangs {
		if g := &l.gangs[i]; g.virtual >= l.virtual {
			g.virtual = min(g.virtual, l.virtual+g.virtualOf(aheadSlices*MaxSlice))
		}
	}
}

// closeGaps brings gangs back by what the gaps below them are too wide. It is for gangs that are further apart than one gap may be: most slices find none.
func (c *Core) closeGaps(gap int64) {
	l := &c.lead
	order := make([]*gang, len(l.gangs))
	for i := range l.gangs {
		order[i] = &l.gangs[i]
	}
	slices.SortFunc(order, func(a, b *gang) int { return cmp.Or(cmp.Compare(a.virtual, b.virtual), compareVM(a.vm, b.vm)) })
	last, shift := l.virtual, int64(0)
	for _, g := range order {
		was := g.virtual
		if g.work {
			shift += max(0, was-last-gap)
			last = max(last, was)
		}
		if was >= l.virtual {
			g.virtual = was - shift
		}
	}
}
