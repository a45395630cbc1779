package gang

import (
	"slices"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// rig drives the cores of several servers whose messages arrive at once.
type rig struct {
	t     *testing.T
	now   ident.Micros
	view  View
	cores map[ident.ServerID]*Core
	turns map[ident.ServerID]map[ident.VMID][]wire.SliceTurn // to come
	modes map[ident.ServerID]map[ident.VMID]wire.SliceMode
	cpus  map[ident.ServerID]map[ident.VMID][]uint16
	ran   map[ident.VMID]ident.Micros
	sent  int
	dead  map[ident.ServerID]bool
}

func newRig(t *testing.T, servers []Server, vms ...VM) *rig {
	r := &rig{t: t, now: ident.Second, view: View{Epoch: 1, Servers: servers, VMs: vms}, cores: map[ident.ServerID]*Core{},
		turns: map[ident.ServerID]map[ident.VMID][]wire.SliceTurn{}, modes: map[ident.ServerID]map[ident.VMID]wire.SliceMode{}, cpus: map[ident.ServerID]map[ident.VMID][]uint16{}, ran: map[ident.VMID]ident.Micros{}, dead: map[ident.ServerID]bool{}}
	for _, s := range servers {
		r.cores[s.ID] = New(Config{Self: s.ID})
		r.turns[s.ID] = map[ident.VMID][]wire.SliceTurn{}
		r.modes[s.ID], r.cpus[s.ID] = map[ident.VMID]wire.SliceMode{}, map[ident.VMID][]uint16{}
	}
	r.setView(r.view)
	return r
}

func (r *rig) setView(v View) {
	r.view = v
	for _, s := range v.Servers {
		r.step(s.ID, v)
	}
}

func (r *rig) step(id ident.ServerID, ev Event) {
	c := r.cores[id]
	if r.dead[id] {
		return
	}
	c.Step(r.now, ev)
	for _, o := range c.Orders() {
		r.obey(id, o)
	}
	for _, m := range c.Messages() {
		r.sent++
		if m.Slice != nil {
			r.step(m.To, Slice{id, r.view.Epoch, *m.Slice})
		} else {
			r.step(m.To, Report{id, r.view.Epoch, *m.Report})
		}
	}
}

// obey takes an order in. What is to be done within ownLead is done at once, as if messages took no time.
func (r *rig) obey(id ident.ServerID, o Order) {
	turns := slices.DeleteFunc(r.turns[id][o.VM], func(t wire.SliceTurn) bool { return t.At >= o.At })
	turns = append(turns, wire.SliceTurn{Number: o.Number, Mode: o.Mode, At: o.At, CPUs: o.CPUs})
	r.turns[id][o.VM] = append(turns, o.Next...)
	r.carryOut()
}

// carryOut does what is due.
func (r *rig) carryOut() {
	for id := range r.turns {
		for vm, turns := range r.turns[id] {
			for len(turns) > 0 && turns[0].At <= r.now+rigLead {
				r.modes[id][vm], r.cpus[id][vm] = turns[0].Mode, turns[0].CPUs
				turns = turns[1:]
			}
			r.turns[id][vm] = turns
		}
	}
}

// rigLead is by how much rigs do things too early: slices are planned ahead of their begin.
const rigLead = maxLead

// busy says how many of a part's vCPUs have work.
func (r *rig) busy(id ident.ServerID, vm ident.VMID, n int) {
	r.step(id, Note{wire.SliceNote{VM: vm, Busy: n}})
}

// run lets time pass, event by event, and sums up how long each gang had all its parts running.
func (r *rig) run(d ident.Micros, each func()) {
	end := r.now + d
	for r.now < end {
		next := end
		for _, s := range r.view.Servers {
			if at, ok := r.cores[s.ID].NextDeadline(); ok && !r.dead[s.ID] {
				next = min(next, max(at, r.now))
			}
			for _, turns := range r.turns[s.ID] {
				if len(turns) > 0 {
					next = min(next, max(turns[0].At-rigLead, r.now))
				}
			}
		}
		for _, vm := range r.view.VMs {
			if r.runs(vm) {
				r.ran[vm.ID] += next - r.now
			}
		}
		r.now = next
		r.carryOut()
		for _, s := range r.view.Servers {
			if at, ok := r.cores[s.ID].NextDeadline(); ok && at <= r.now {
				r.step(s.ID, Tick{})
			}
		}
		if each != nil {
			each()
		}
	}
}

// runs tells whether all parts of the VM run or are free.
func (r *rig) runs(vm VM) bool {
	for _, p := range vm.Parts {
		if r.modes[p.Server][vm.ID] == wire.SliceHold {
			return false
		}
	}
	return true
}

func one(id ident.VMID, vcpus int) VM { return VM{ID: id, Parts: []Part{{Server: 1, VCPUs: vcpus}}} }

func TestFreeWhenAllFit(t *testing.T) {
	r := newRig(t, []Server{{1, 4}, {2, 4}}, one(1, 2), one(2, 2), VM{ID: 3, Parts: []Part{{2, 4}}})
	r.run(ident.Second, nil)
	for id, c := range r.cores {
		if _, ok := c.NextDeadline(); ok || c.Counters().Orders != 0 || r.sent != 0 {
			t.Errorf("server %d: a schedule without need costs %+v, %d messages", id, c.Counters(), r.sent)
		}
	}
}

func TestTwoGangsAlternate(t *testing.T) {
	r := newRig(t, []Server{{1, 2}}, one(1, 2), one(2, 2))
	r.run(ident.Second, func() {
		if r.modes[1][1] == wire.SliceRun && r.modes[1][2] == wire.SliceRun {
			t.Fatal("both run on the same slots")
		}
	})
	if d := r.ran[1] - r.ran[2]; d > MaxSlice || -d > MaxSlice || r.ran[1]+r.ran[2] < 990*ident.Millisecond {
		t.Errorf("ran %v", r.ran)
	}
}

func TestGangSpansServers(t *testing.T) {
	pair := func(id ident.VMID) VM { return VM{ID: id, Parts: []Part{{1, 1}, {2, 1}}} }
	r := newRig(t, []Server{{1, 1}, {2, 1}}, pair(1), pair(2))
	r.run(ident.Second, func() {
		for _, vm := range r.view.VMs {
			if r.modes[1][vm.ID] != r.modes[2][vm.ID] {
				t.Fatalf("VM %d: %v on one server, %v on the other", vm.ID, r.modes[1][vm.ID], r.modes[2][vm.ID])
			}
		}
	})
	if d := r.ran[1] - r.ran[2]; d > MaxSlice || -d > MaxSlice || r.ran[1] < 450*ident.Millisecond {
		t.Errorf("ran %v", r.ran)
	}
}

func TestWeights(t *testing.T) {
	a, b := one(1, 2), one(2, 2)
	a.Weight, b.Weight = 300, 100
	r := newRig(t, []Server{{1, 2}}, a, b)
	r.run(10*ident.Second, nil)
	if share := r.ran[1] * 100 / (r.ran[1] + r.ran[2]); share < 74 || share > 76 {
		t.Errorf("weights 3 to 1 give %d%%", share)
	}
}

func TestIdleGangComesBackAtOnce(t *testing.T) {
	r := newRig(t, []Server{{1, 2}}, one(1, 2), one(2, 1))
	r.busy(1, 2, 0)
	r.run(500*ident.Millisecond, nil)
	if r.ran[1] < 480*ident.Millisecond {
		t.Errorf("the gang beside an idle one ran %d of 500000 us", r.ran[1])
	}
	r.busy(1, 2, 1)
	r.run(MinSlice, nil)
	if r.modes[1][2] != wire.SliceRun {
		t.Error("a gang that woke does not run after MinSlice")
	}
}

func TestWokenGangFillsAHole(t *testing.T) {
	r := newRig(t, []Server{{1, 3}}, one(1, 2), one(2, 1), one(3, 1))
	r.busy(1, 2, 0)
	r.busy(1, 3, 0)
	r.run(100*ident.Millisecond, nil)
	r.busy(1, 3, 1)
	if r.modes[1][3] != wire.SliceRun || r.modes[1][1] != wire.SliceRun {
		t.Errorf("a free slot is not given to a gang that wakes: %v", r.modes[1])
	}
}

func TestSlotsAreKeptAndNeverShared(t *testing.T) {
	r := newRig(t, []Server{{1, 4}}, one(1, 3), one(2, 2), one(3, 2), one(4, 1))
	first := map[ident.VMID][]uint16{}
	r.run(2*ident.Second, func() {
		var used []uint16
		for vm, mode := range r.modes[1] {
			if mode != wire.SliceRun {
				continue
			}
			for _, s := range r.cpus[1][vm] {
				if slices.Contains(used, s) {
					t.Fatalf("slot %d is used twice: %v", s, r.cpus[1])
				}
				used = append(used, s)
			}
			first[vm] = r.cpus[1][vm]
		}
	})
	if len(first) != 4 {
		t.Errorf("only these ran: %v", first)
	}
}

// A conductor that dies leaves nobody waiting.
func TestSilentConductor(t *testing.T) {
	pair := func(id ident.VMID) VM { return VM{ID: id, Parts: []Part{{1, 1}, {2, 1}}} }
	r := newRig(t, []Server{{1, 1}, {2, 1}}, pair(1), pair(2))
	r.run(100*ident.Millisecond, nil)
	r.dead[1] = true
	r.run(SliceLease+ident.Millisecond, nil)
	if r.modes[2][1] != wire.SliceFree || r.modes[2][2] != wire.SliceFree {
		t.Fatalf("after the conductor's death: %v", r.modes[2])
	}
	r.setView(View{Epoch: 2, Servers: []Server{{2, 1}}, VMs: []VM{{ID: 1, Parts: []Part{{2, 1}}}, {ID: 2, Parts: []Part{{2, 1}}}}})
	r.run(100*ident.Millisecond, nil)
	if r.modes[2][1] == r.modes[2][2] {
		t.Errorf("the next conductor slices nothing: %v", r.modes[2])
	}
}

// An order that did not reach its worker is given again with the next slice, others only now and then.
func TestLostOrderIsRepeated(t *testing.T) {
	r := newRig(t, []Server{{1, 1}}, one(1, 1), one(2, 1), one(3, 1))
	r.busy(1, 3, 0)
	r.run(200*ident.Millisecond, nil)
	const lost = wire.SliceMode(99)
	r.modes[1][3] = lost
	r.run(200*ident.Millisecond, nil)
	if r.modes[1][3] != lost {
		t.Error("an order is repeated without need")
	}
	r.step(1, Undelivered{VM: 3})
	r.run(200*ident.Millisecond, nil)
	if r.modes[1][3] != wire.SliceHold {
		t.Error("an order that was lost is not repeated")
	}
	r.step(1, Undelivered{VM: 9}) // gone meanwhile
}

func TestOversizeGangRunsAlone(t *testing.T) {
	r := newRig(t, []Server{{1, 2}}, one(1, 5), one(2, 1), one(3, 1))
	r.run(ident.Second, nil)
	if r.ran[1] < 300*ident.Millisecond || r.ran[2] < 300*ident.Millisecond {
		t.Errorf("ran %v", r.ran)
	}
}

// A server that leaves its vCPUs to Linux frees its whole domain, and no other.
func TestHostServerFreesItsDomain(t *testing.T) {
	servers := []Server{{1, 1}, {2, 1}, {3, 1}}
	r := newRig(t, servers, VM{ID: 1, Parts: []Part{{1, 1}, {2, 1}}}, VM{ID: 2, Parts: []Part{{1, 1}, {2, 1}}}, VM{ID: 3, Parts: []Part{{3, 1}}}, VM{ID: 4, Parts: []Part{{3, 1}}})
	if n := r.cores[1].Counters().Conducts + r.cores[3].Counters().Conducts; n != 2 {
		t.Fatalf("%d conductors, want 2", n)
	}
	v := r.view
	v.Epoch, v.Host = 2, []ident.ServerID{2}
	r.setView(v)
	for id, want := range map[ident.ServerID]uint64{1: 0, 3: 1} {
		if got := r.cores[id].Counters().Conducts; got != want {
			t.Errorf("server %d conducts: %d, want %d", id, got, want)
		}
	}
	for vm, mode := range r.modes[1] {
		if mode != wire.SliceFree {
			t.Errorf("VM %d is not free: %v", vm, mode)
		}
	}
}

// A part that needs more slots gets those nearest to what it has, and a part that lost its slots the nearest to them.
func TestSlotsAreTakenNearestFirst(t *testing.T) {
	// Slots 0 and 2 share a cache, so do 1 and 3.
	distance := [][]uint8{{0, 3, 1, 3}, {3, 0, 3, 1}, {1, 3, 0, 3}, {3, 1, 3, 0}}
	p := part{vcpus: 2, busy: 2}
	p.assign([]bool{false, false, false, false}, distance)
	if !slices.Equal(p.slots, []uint16{0, 2}) {
		t.Errorf("a gang of two got %v, which share no cache", p.slots)
	}
	p = part{vcpus: 1, busy: 1, slots: []uint16{1}}
	p.assign([]bool{false, true, false, false}, distance)
	if !slices.Equal(p.slots, []uint16{3}) {
		t.Errorf("a vCPU that was on slot 1 got %v", p.slots)
	}
	p = part{vcpus: 2, busy: 2}
	p.assign([]bool{true, false, false, false}, nil)
	if !slices.Equal(p.slots, []uint16{1, 2}) {
		t.Errorf("where all are alike: %v", p.slots)
	}
}

// BenchmarkSlice is what a slice costs the conductor of 100 VMs on one server: planning, and the orders to workers.
func BenchmarkSlice(b *testing.B) {
	v := View{Epoch: 1, Servers: []Server{{1, 2}}}
	for i := range 100 {
		v.VMs = append(v.VMs, one(ident.VMID(i+1), 1+i%2))
	}
	c := New(Config{Self: 1})
	now := ident.Second
	c.Step(now, v)
	for b.Loop() {
		now, _ = c.NextDeadline()
		c.Step(now, Tick{})
		c.Orders()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(c.Counters().Slices), "ns/slice")
}
