package balancer

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// Each test is one claim of Cellular Disco's balancers (Govil, Teodosiu, Huang, Rosenblum: Cellular Disco, SOSP 1999, section 4) that the code follows, in
// our words above it.

// The periodic balancer acts on a difference of more than one vCPU, not on less.
func TestPaperDifferenceOfMoreThanOne(t *testing.T) {
	for _, c := range []struct{ left, right, moves int }{{2, 1, 0}, {2, 0, 1}, {3, 2, 0}, {5, 1, 2}, {4, 4, 0}} {
		servers := []Server{{ID: 1, Name: "a-1", Cell: "a", Open: true, Slots: 4, UsedVCPUs: c.left, MemoryBytes: ident.GiB},
			{ID: 2, Name: "a-2", Cell: "a", Open: true, Slots: 4, UsedVCPUs: c.right, MemoryBytes: ident.GiB}}
		var vms []Running
		for i := range c.left {
			vms = append(vms, Running{VM: ident.VMID(i + 1), Parts: []RunningPart{{1, 1, ident.MiB, 0}}})
		}
		if plan := Rebalance(servers, vms, 10); len(plan) != c.moves {
			t.Errorf("%d and %d vCPUs: %d moves, want %d: %+v", c.left, c.right, len(plan), c.moves, plan)
		}
	}
}

// Where the loads differ and no single move helps, two trade places.
func TestPaperSwaps(t *testing.T) {
	servers := []Server{{ID: 1, Name: "a-1", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 5, MemoryBytes: ident.GiB},
		{ID: 2, Name: "a-2", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 3, MemoryBytes: ident.GiB}}
	vms := []Running{{VM: 1, Parts: []RunningPart{{1, 3, ident.MiB, 0}}}, {VM: 2, Parts: []RunningPart{{1, 2, ident.MiB, 0}}}, {VM: 3, Parts: []RunningPart{{2, 1, ident.MiB, 0}}},
		{VM: 4, Parts: []RunningPart{{2, 2, ident.MiB, 0}}}}
	plan := Rebalance(servers, vms, 10)
	sum := 5
	for _, p := range plan {
		sum += p.WithVCPUs - p.VCPUs
	}
	if len(plan) == 0 || sum != 4 {
		t.Errorf("%+v", plan)
	}
}

// A vCPU does not go where a sibling of it runs: a gang that shares a CPU cannot run at once.
func TestPaperNotBesideASibling(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		servers, vms := drawCluster(rt)
		on := map[ident.VMID][]ident.ServerID{}
		for _, vm := range vms {
			for _, p := range vm.Parts {
				on[vm.VM] = append(on[vm.VM], p.Server)
			}
		}
		move := func(vm ident.VMID, from, to ident.ServerID) {
			if slices.Contains(on[vm], to) {
				rt.Fatalf("VM %d goes from %d to %d, where a sibling runs", vm, from, to)
			}
			on[vm] = append(slices.DeleteFunc(on[vm], func(s ident.ServerID) bool { return s == from }), to)
		}
		for _, m := range Rebalance(slices.Clone(servers), vms, 100) {
			if m.Apart { // to a slot of its own: see TestRebalanceProperties
				continue
			}
			move(m.VM, m.From, m.To)
			if m.With != 0 {
				move(m.With, m.To, m.From)
			}
		}
	})
}

// Balancing does not split a VM over more cells than it lies in: it would depend on all of them.
func TestPaperVMsAreNotSplitOverMoreCells(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		servers, vms := drawCluster(rt)
		cell := func(id ident.ServerID) ident.CellName { return servers[id-1].Cell }
		on := map[ident.VMID]map[ident.ServerID]bool{}
		cells := func(vm ident.VMID) int {
			seen := map[ident.CellName]bool{}
			for s := range on[vm] {
				seen[cell(s)] = true
			}
			return len(seen)
		}
		for _, vm := range vms {
			on[vm.VM] = map[ident.ServerID]bool{}
			for _, p := range vm.Parts {
				on[vm.VM][p.Server] = true
			}
		}
		for _, m := range Rebalance(slices.Clone(servers), vms, 100) {
			if m.Apart { // where the VM lies already
				continue
			}
			before, with := cells(m.VM), 0
			if m.With != 0 {
				with = cells(m.With)
				delete(on[m.With], m.To)
				on[m.With][m.From] = true
			}
			delete(on[m.VM], m.From)
			on[m.VM][m.To] = true
			if cells(m.VM) > before || m.With != 0 && cells(m.With) > with {
				rt.Fatalf("%+v spreads a VM over more cells", m)
			}
		}
	})
}

// An idle CPU looks for work nearby first and further away then, within its cell only, and takes a vCPU only if its whole gang can run.
func TestPaperIdleBalancerStealsNearestWithinTheCell(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		servers, vms := drawCluster(rt)
		var spares []Spare
		for _, s := range servers {
			spares = append(spares, Spare{Server: s, FreeSlots: max(0, s.Slots-s.UsedVCPUs), Distance: rapid.IntRange(0, 3).Draw(rt, "distance")})
		}
		var waiting []Waiting
		for i, vm := range vms {
			waiting = append(waiting, Waiting{Running: vm, Since: ident.Micros(i)})
		}
		self := servers[rapid.IntRange(0, len(servers)-1).Draw(rt, "self")].ID
		m, ok := Steal(self, spares, waiting)
		if !ok {
			return
		}
		here, from := find(spares, self), find(spares, m.From)
		if m.To != self || from.Cell != here.Cell || m.VCPUs > here.FreeSlots {
			rt.Fatalf("%+v for a server of cell %s with %d slots free", m, here.Cell, here.FreeSlots)
		}
		for _, p := range vms[m.VM-1].Parts {
			if m.Apart {
				work := find(spares, p.Server).UsedVCPUs
				if p.Server == m.To {
					work += m.VCPUs
				} else if p.Server == m.From {
					work -= m.VCPUs
				}
				here := p.VCPUs
				if p.Server == m.From {
					here -= m.VCPUs
				}
				if work > find(spares, p.Server).Slots && here > p.Idle {
					rt.Fatalf("%+v: server %d has %d vCPUs with work, and fewer slots", m, p.Server, work)
				}
				continue
			}
			if p.Server != m.From && find(spares, p.Server).FreeSlots < p.VCPUs {
				rt.Fatalf("%+v: on server %d the gang still waits", m, p.Server)
			}
		}
		nearer := slices.DeleteFunc(slices.Clone(spares), func(s Spare) bool { return s.ID != self && s.Distance >= from.Distance })
		if n, ok := Steal(self, nearer, waiting); ok && find(spares, n.From).Distance < from.Distance {
			rt.Fatalf("took from %d at distance %d, though %d is nearer", m.From, from.Distance, n.From)
		}
	})
}

// The load tree holds the sum of what lies below each node, so no server is ever asked.
func TestPaperTheLoadTreeHoldsSums(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		servers, _ := drawCluster(rt)
		want := 0
		for _, s := range servers {
			if s.Open && s.Slots > 0 {
				want += s.UsedVCPUs
			}
		}
		if tree := NewLoadTree(servers); len(tree.order) > 0 && tree.nodes[1].vcpus != want {
			rt.Fatalf("the root has %d vCPUs, the servers have %d", tree.nodes[1].vcpus, want)
		}
	})
}

// It is not polled either: what changes at a leaf travels up by one message a level at most, and stops where the sum above stays what it was.
func TestPaperNobodyIsPolled(t *testing.T) {
	for _, count := range []int{2, 16, 64, 1024} {
		var servers []Server
		for i := range count {
			servers = append(servers, Server{ID: ident.ServerID(i + 1), Name: "s", Cell: ident.CellName(rune('a' + i*8/count)), Open: true, Slots: 4, MemoryBytes: ident.GiB})
		}
		tree := NewLoadTree(servers)
		for i := range servers {
			if n := tree.Set(servers[i].ID, 1+i%3); n > tree.Depth() || 1<<tree.Depth() != count {
				t.Fatalf("%d servers: %d messages for one change, depth %d", count, n, tree.Depth())
			}
			if n := tree.Set(servers[i].ID, 1+i%3); n > 1 {
				t.Fatalf("%d servers: %d messages for no change", count, n)
			}
		}
	}
}

// A single VCPU too goes only to a processor that runs no other of its virtual machine: here to a slot that is left beside those of its siblings.
func TestPaperASingleVCPUHasASlotOfItsOwn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		servers, vms := drawCluster(rt)
		has := map[[2]uint64]int{}
		for _, vm := range vms {
			for _, p := range vm.Parts {
				has[[2]uint64{uint64(vm.VM), uint64(p.Server)}] = p.VCPUs
			}
		}
		shift := func(vm ident.VMID, from, to ident.ServerID, n int) {
			f, l := [2]uint64{uint64(vm), uint64(from)}, [2]uint64{uint64(vm), uint64(to)}
			has[f], has[l] = has[f]-n, has[l]+n
			if has[l] > servers[to-1].Slots {
				rt.Fatalf("VM %d has %d vCPUs on the %d slots of server %d", vm, has[l], servers[to-1].Slots, to)
			}
		}
		for _, m := range Rebalance(slices.Clone(servers), vms, 100) {
			shift(m.VM, m.From, m.To, m.VCPUs)
			if m.With != 0 {
				shift(m.With, m.To, m.From, m.WithVCPUs)
			}
		}
	})
}

// A virtual machine has its processors and memory from a single cell, if one has enough.
func TestPaperFromASingleCellIfPossible(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		servers, _ := drawCluster(rt)
		req := Request{VCPUs: rapid.IntRange(1, 16).Draw(rt, "vcpus"), MemoryBytes: ident.MiB}
		fits := map[ident.CellName]int{}
		for _, s := range servers {
			if s.Open {
				fits[s.Cell] += s.Slots
			}
		}
		parts, err := Place(servers, req)
		if err != nil {
			return
		}
		in := map[ident.CellName]bool{}
		for _, p := range parts {
			in[servers[p.Server-1].Cell] = true
		}
		for cell, slots := range fits {
			if slots >= req.VCPUs && len(in) > 1 {
				rt.Fatalf("%d vCPUs lie in %d cells, though %s has %d slots: %+v", req.VCPUs, len(in), cell, slots, parts)
			}
		}
	})
}

// Between cells a virtual machine moves only where none of its own cell takes it: it costs a copy, and between two virtual machines the one that stays in its
// cell is preferred.
func TestPaperWithinTheCellFirst(t *testing.T) {
	servers := []Server{{ID: 1, Name: "a-1", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 4, MemoryBytes: ident.GiB},
		{ID: 2, Name: "a-2", Cell: "a", Open: true, Slots: 4, MemoryBytes: ident.GiB}, {ID: 3, Name: "b-1", Cell: "b", Open: true, Slots: 4, UsedVCPUs: 2, MemoryBytes: ident.GiB}}
	var vms []Running
	for i := range 4 {
		vms = append(vms, Running{VM: ident.VMID(i + 1), Parts: []RunningPart{{1, 1, ident.MiB, 0}}})
	}
	plan := Rebalance(servers, vms, 10)
	if len(plan) != 2 || plan[0].To != 2 || plan[1].To != 2 {
		t.Errorf("%+v", plan)
	}
}
