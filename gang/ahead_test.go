package gang

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// What a conductor that tells many slices at once has committed itself to is what one has that tells them one by one, whatever wakes and idles when.
func TestPlanningAheadChangesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v := View{Epoch: 1, Servers: []Server{{1, rapid.IntRange(1, 4).Draw(rt, "slots")}}}
		for i := range rapid.IntRange(2, 8).Draw(rt, "vms") {
			vm := one(ident.VMID(i+1), rapid.IntRange(1, 4).Draw(rt, "vcpus"))
			vm.Weight = rapid.SampledFrom([]int{50, 100, 400}).Draw(rt, "weight")
			v.VMs = append(v.VMs, vm)
		}
		var cores [2]*Core
		now := ident.Second
		for i := range cores {
			cores[i] = New(Config{Self: 1})
			cores[i].Step(now, v)
			cores[i].lead.stepwise = i == 1
		}
		for range rapid.IntRange(1, 12).Draw(rt, "events") {
			at := now + ident.Micros(rapid.IntRange(0, rapid.SampledFrom([]int{1_500_000, 9_000_000}).Draw(rt, "calm")).Draw(rt, "after"))
			note := Note{wire.SliceNote{VM: ident.VMID(rapid.IntRange(1, len(v.VMs)).Draw(rt, "vm")), Busy: rapid.IntRange(0, 2).Draw(rt, "busy")}}
			for _, c := range cores {
				// What is due at the very moment of the note comes before it: who has told ahead has it behind him already.
				for next, ok := c.NextDeadline(); ok && next <= at; next, ok = c.NextDeadline() {
					c.Step(next, Tick{})
				}
				c.Step(at, note)
				c.Orders()
			}
			now = at
			a, b := &cores[0].lead, &cores[1].lead
			if n, m := cores[0].Counters().Slices, cores[1].Counters().Slices; n != m {
				rt.Fatalf("%d slices, step by step %d", n, m)
			}
			if a.start != b.start || a.end != b.end || a.virtual != b.virtual {
				rt.Fatalf("the slice is from %d to %d at %d, step by step from %d to %d at %d", a.start, a.end, a.virtual, b.start, b.end, b.virtual)
			}
			for i := range a.gangs {
				if x, y := &a.gangs[i], &b.gangs[i]; x.running != y.running || x.virtual != y.virtual || x.from != y.from {
					rt.Fatalf("VM %d: %+v, step by step %+v", x.vm, x, y)
				}
			}
		}
	})
}

// While nothing changes, a slice costs a fraction of a message; when something does, everybody is told at once.
func TestPlansAreTakenBack(t *testing.T) {
	pair := func(id ident.VMID) VM { return VM{ID: id, Parts: []Part{{1, 1}, {2, 1}}} }
	r := newRig(t, []Server{{1, 1}, {2, 1}}, pair(1), pair(2), pair(3))
	r.busy(1, 3, 0)
	r.busy(2, 3, 0)
	r.run(3*ident.Second, nil)
	sent, count := r.sent, r.cores[1].Counters().Slices
	r.run(3*ident.Second, nil)
	if n, sent := r.cores[1].Counters().Slices-count, r.sent-sent; n < 100 || sent > 30 {
		t.Errorf("%d messages for %d slices", sent, n)
	}
	for id := range r.turns {
		if len(r.turns[id][1]) < 10 {
			t.Errorf("server %d: the worker knows of %d turns to come", id, len(r.turns[id][1]))
		}
	}
	r.busy(2, 3, 1)
	for id := range r.turns {
		if n := len(r.turns[id][1]) + len(r.turns[id][2]); n > 4 {
			t.Errorf("server %d: %d turns that were planned before are still to come", id, n)
		}
	}
	if r.run(3*MaxSlice, nil); r.ran[3] == 0 {
		t.Error("a gang that woke waits for the end of what was planned without it")
	}
}

// An order says what its worker does not know yet, and takes back what is no longer so.
func TestOrdersSayWhatIsNew(t *testing.T) {
	c := New(Config{Self: 1})
	p := &part{vm: 7, plan: make([]stint, 1), told: make([]stint, 1)}
	c.member.parts = []part{*p}
	p = &c.member.parts[0]
	say := func(now ident.Micros, plan ...stint) wire.SliceOrder {
		t.Helper()
		p.plan = plan
		c.instruct(now, p)
		orders := c.Orders()
		if len(orders) != 1 {
			t.Fatalf("%d orders", len(orders))
		}
		return orders[0].SliceOrder
	}
	run := func(at ident.Micros) stint { return stint{1, at, wire.SliceRun, []uint16{3}} }
	hold := func(at ident.Micros) stint { return stint{1, at, wire.SliceHold, []uint16{3}} }
	if o := say(100, stint{}, hold(110), run(200), hold(220)); o.At != 110 || o.Mode != wire.SliceHold || len(o.Next) != 2 || !slices.Equal(o.Next[0].CPUs, []uint16{3}) {
		t.Errorf("the first order: %+v", o)
	}
	if o := say(120, hold(110), run(200), hold(220), run(300)); o.At != 300 || len(o.Next) != 0 {
		t.Errorf("more of the same: %+v", o)
	}
	if o := say(130, hold(110), hold(220), run(320)); o.At != 200 || o.Mode != wire.SliceHold || len(o.Next) != 2 {
		t.Errorf("a turn that was taken back: %+v", o)
	}
	if o := say(140, hold(110)); o.At != 200 || o.Mode != wire.SliceHold || len(o.Next) != 0 {
		t.Errorf("all turns taken back: %+v", o)
	}
	c.instruct(150, p)
	if o := c.Orders(); len(o) != 0 {
		t.Errorf("nothing is new, and said is %+v", o)
	}
}

// A part that takes many turns, of many slots, knows in time what it does next, although an order does not hold all of it.
func TestLongPlansAreToldInTime(t *testing.T) {
	for _, slots := range []int{1, 8, 64} {
		c, now := New(Config{Self: 1}), ident.Second
		c.Step(now, View{Epoch: 1, Servers: []Server{{1, slots}}, VMs: []VM{one(1, slots), one(2, slots)}})
		told := map[ident.VMID][]stint{} // what each worker knows of
		for from := now; now < from+20*ident.Second; {
			for _, o := range c.Orders() {
				mine := told[o.VM]
				for len(mine) > 0 && mine[len(mine)-1].at >= o.At {
					mine = mine[:len(mine)-1]
				}
				mine = append(mine, stint{at: max(now, o.At), mode: o.Mode})
				for _, n := range o.Next {
					mine = append(mine, stint{at: n.At, mode: n.Mode})
				}
				told[o.VM] = mine
			}
			for vm := range told {
				if told[vm] = since(now, told[vm]); now > from+100*ident.Millisecond && told[vm][0].at+2*MaxSlice < now {
					t.Fatalf("%d slots: VM %d is at what began %d us ago, and knows of %d turns", slots, vm, now-told[vm][0].at, len(told[vm])-1)
				}
			}
			next, _ := c.NextDeadline()
			now = max(now+1, min(next, now+ident.Millisecond))
			c.Step(now, Tick{})
		}
	}
}
