package gang

import (
	"cmp"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// BenchmarkCrowd is what a slice costs to decide on a server of two slots with 100 VMs, 40 of which have work.
func BenchmarkCrowd(b *testing.B) {
	v := View{Epoch: 1, Servers: []Server{{1, 2}}}
	for i := range 100 {
		v.VMs = append(v.VMs, one(ident.VMID(i+1), 1))
	}
	c, now := New(Config{Self: 1}), ident.Second
	c.Step(now, v)
	for i := 40; i < 100; i++ {
		c.Step(now, Note{wire.SliceNote{VM: ident.VMID(i + 1)}})
	}
	orders, from := 0, uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		for from = c.Counters().Slices + 1; c.Counters().Slices < from; {
			now, _ = c.NextDeadline()
			c.Step(now, Tick{})
			orders += len(c.Orders())
		}
	}
	b.ReportMetric(float64(orders)/float64(b.N), "orders/op")
}

// What a slice does to virtual times is what it does if all gangs are put in order each time.
func TestAdvanceIsAsWithOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		spread := rapid.SampledFrom([]int64{1000, 30_000, 100_000, 10_000_000}).Draw(rt, "spread") * MaxWeight / DefaultWeight
		var c, twin Core
		for i := range rapid.IntRange(0, 12).Draw(rt, "gangs") {
			c.lead.gangs = append(c.lead.gangs, gang{
				vm: ident.VMID(i + 1), weight: rapid.SampledFrom([]int64{50, 100, 400, MaxWeight}).Draw(rt, "weight"),
				virtual: rapid.Int64Range(0, spread).Draw(rt, "virtual"), work: rapid.Bool().Draw(rt, "work"),
			})
		}
		c.lead.virtual = rapid.Int64Range(0, spread).Draw(rt, "present")
		twin.lead, twin.lead.gangs = c.lead, slices.Clone(c.lead.gangs)
		c.advance()
		advanceInOrder(&twin.lead)
		if c.lead.virtual != twin.lead.virtual {
			rt.Fatalf("the present is %d, with order %d", c.lead.virtual, twin.lead.virtual)
		}
		for i := range c.lead.gangs {
			if a, b := &c.lead.gangs[i], &twin.lead.gangs[i]; a.virtual != b.virtual {
				rt.Fatalf("VM %d: %d, with order %d", a.vm, a.virtual, b.virtual)
			}
		}
	})
}

// advanceInOrder is advance without its short cut.
func advanceInOrder(l *conductor) {
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
