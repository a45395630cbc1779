package balancer

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// cluster draws open servers in cells, some of them closed, and VMs that lie on them.
func drawCluster(t *rapid.T) ([]Server, []Running) {
	var servers []Server
	for i := range rapid.IntRange(1, 12).Draw(t, "servers") {
		cell := ident.CellName(rune('a' + rapid.IntRange(0, 3).Draw(t, "cell")))
		servers = append(servers, Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(fmt.Sprintf("%s-%d", cell, i+1)), Cell: cell,
			Open: rapid.IntRange(0, 9).Draw(t, "closed") > 0, Slots: rapid.IntRange(1, 8).Draw(t, "slots"), MemoryBytes: 64 * ident.GiB})
	}
	var vms []Running
	for i := range rapid.IntRange(0, 30).Draw(t, "vms") {
		vm := Running{VM: ident.VMID(i + 1), Settled: rapid.IntRange(0, 9).Draw(t, "settled") == 0, Whole: rapid.IntRange(0, 9).Draw(t, "whole") == 0}
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			s := &servers[rapid.IntRange(0, len(servers)-1).Draw(t, "server")]
			if slices.ContainsFunc(vm.Parts, func(p RunningPart) bool { return p.Server == s.ID }) {
				continue
			}
			p := RunningPart{s.ID, rapid.IntRange(1, s.Slots).Draw(t, "vcpus"), ident.GiB, 0}
			p.Idle = rapid.SampledFrom([]int{0, 0, 1, p.VCPUs}).Draw(t, "idle")
			vm.Parts = append(vm.Parts, p)
			s.UsedVCPUs += p.busy()
			s.UsedBytes += p.Bytes
			if rapid.Bool().Draw(t, "asked") && !slices.Contains(vm.Span, s.Cell) {
				vm.Span = append(vm.Span, s.Cell)
			}
		}
		if rapid.Bool().Draw(t, "anywhere") || len(vm.Span) < len(cellsIn(servers, vm)) {
			vm.Span = nil
		}
		vms = append(vms, vm)
	}
	return servers, vms
}

func cellsIn(servers []Server, vm Running) []ident.CellName {
	var out []ident.CellName
	for _, p := range vm.Parts {
		if c := servers[p.Server-1].Cell; !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// unevenness is the sum of the squares of the loads by slot, over the least common multiple of 1 to 8.
func unevenness(servers []Server) int {
	sum := 0
	for _, s := range servers {
		if s.Open {
			sum += s.UsedVCPUs * s.UsedVCPUs * 840 / s.Slots
		}
	}
	return sum
}

// Every transfer evens out the loads, so that none is ever undone in a circle, and goes only where it may.
func TestRebalanceProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers, vms := drawCluster(t)
		total := 0
		for _, s := range servers {
			total += s.UsedVCPUs
		}
		plan := Rebalance(slices.Clone(servers), vms, 1000)
		if len(plan) == 1000 {
			t.Fatal("it never ends")
		}
		for _, x := range plan {
			before, cells, running := unevenness(servers), len(cellsIn(servers, vms[x.VM-1])), vms[x.VM-1].running()
			if x.Apart {
				moveVCPUs(t, servers, vms, x)
			} else {
				move(t, servers, vms, x.VM, x.From, x.To, x.VCPUs)
			}
			if x.With != 0 {
				move(t, servers, vms, x.With, x.To, x.From, x.WithVCPUs)
			}
			closer := len(cellsIn(servers, vms[x.VM-1])) < cells || vms[x.VM-1].running() < running
			if after := unevenness(servers); after > before || after == before && !closer {
				t.Fatalf("%+v: unevenness goes from %d to %d", x, before, after)
			}
		}
		for _, s := range servers {
			total -= s.UsedVCPUs
		}
		if total != 0 {
			t.Fatalf("%d vCPUs are lost", total)
		}
		if again := Rebalance(servers, vms, 1); len(again) != 0 {
			t.Fatalf("a balanced cluster is balanced again: %+v", again)
		}
	})
}

func move(t *rapid.T, servers []Server, vms []Running, id ident.VMID, from, to ident.ServerID, vcpus int) {
	vm, target := &vms[id-1], &servers[to-1]
	before := len(cellsIn(servers, *vm))
	at := slices.IndexFunc(vm.Parts, func(p RunningPart) bool { return p.Server == from })
	switch {
	case at < 0 || vm.Parts[at].VCPUs != vcpus:
		t.Fatalf("VM %d has no %d vCPUs on %d: %+v", id, vcpus, from, vm.Parts)
	case !target.Open:
		t.Fatalf("VM %d goes to a server that is closed", id)
	case slices.ContainsFunc(vm.Parts, func(p RunningPart) bool { return p.Server == to }):
		t.Fatalf("VM %d goes to a sibling", id)
	case vcpus > target.Slots:
		t.Fatalf("VM %d goes to too few slots", id)
	case vm.Settled:
		t.Fatalf("VM %d is to be left alone", id)
	}
	if cell := servers[from-1].Cell; len(vm.Span) > 0 && cell != target.Cell && runsIn(servers, vm, cell) == vcpus {
		t.Fatalf("VM %d leaves cell %s of its span without a vCPU", id, cell)
	}
	vm.Parts[at].Server = to
	servers[from-1].UsedVCPUs -= vm.Parts[at].busy()
	target.UsedVCPUs += vm.Parts[at].busy()
	after := cellsIn(servers, *vm)
	if len(after) > before {
		t.Fatalf("VM %d depends on more cells than before", id)
	}
	for _, c := range after {
		if len(vm.Span) > 0 && !slices.Contains(vm.Span, c) {
			t.Fatalf("VM %d leaves its span %v for %s", id, vm.Span, c)
		}
	}
}

// runsIn counts the vCPUs that a VM has in a cell.
func runsIn(servers []Server, vm *Running, cell ident.CellName) int {
	n := 0
	for _, p := range vm.Parts {
		if servers[p.Server-1].Cell == cell {
			n += p.VCPUs
		}
	}
	return n
}

func moveVCPUs(t *rapid.T, servers []Server, vms []Running, x Transfer) {
	vm, target := &vms[x.VM-1], &servers[x.To-1]
	from := slices.IndexFunc(vm.Parts, func(p RunningPart) bool { return p.Server == x.From })
	to := slices.IndexFunc(vm.Parts, func(p RunningPart) bool { return p.Server == x.To })
	switch {
	case from < 0 || to < 0 || x.With != 0 || x.VCPUs < 1:
		t.Fatalf("%+v of %+v", x, vm)
	case vm.Parts[from].VCPUs < x.VCPUs || vm.Parts[from].Idle > 0 && vm.Parts[from].VCPUs != x.VCPUs:
		t.Fatalf("%d vCPUs leave %+v", x.VCPUs, vm.Parts[from])
	case vm.Settled || vm.Whole:
		t.Fatalf("VM %d is to be left alone", x.VM)
	case !target.Open || vm.Parts[to].VCPUs+x.VCPUs > target.Slots:
		t.Fatalf("%+v: too much for %+v", x, target)
	}
	p, q := &vm.Parts[from], &vm.Parts[to]
	servers[x.From-1].UsedVCPUs -= p.busy()
	target.UsedVCPUs -= q.busy()
	p.VCPUs, q.VCPUs = p.VCPUs-x.VCPUs, q.VCPUs+x.VCPUs
	if p.VCPUs == 0 {
		p.Idle, q.Idle = 0, q.Idle+p.Idle
	}
	servers[x.From-1].UsedVCPUs += p.busy()
	target.UsedVCPUs += q.busy()
	if cell := servers[x.From-1].Cell; len(vm.Span) > 0 && runsIn(servers, vm, cell) == 0 {
		t.Fatalf("%+v leaves VM %d without a vCPU in cell %s of its span", x, x.VM, cell)
	}
}

// The tree's sums are right after any change and any loss, and a change costs at most one message a level.
func TestLoadTreeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers, _ := drawCluster(t)
		tree := NewLoadTree(servers)
		lost := map[ident.ServerID]bool{}
		for range rapid.IntRange(0, 40).Draw(t, "changes") {
			s := &servers[rapid.IntRange(0, len(servers)-1).Draw(t, "server")]
			n := 0
			if rapid.IntRange(0, 9).Draw(t, "lose") == 0 {
				lost[s.ID] = true
				n = tree.Lose(s.ID)
			} else {
				vcpus := rapid.IntRange(0, 20).Draw(t, "vcpus")
				if n = tree.Set(s.ID, vcpus); s.Open && !lost[s.ID] {
					s.UsedVCPUs = vcpus
				}
			}
			if n > tree.Depth() {
				t.Fatalf("%d messages in a tree of depth %d", n, tree.Depth())
			}
			if err := tree.Check(); err != nil {
				t.Fatal(err)
			}
			vcpus, slots := 0, 0
			for _, s := range servers {
				if s.Open && !lost[s.ID] {
					vcpus, slots = vcpus+s.UsedVCPUs, slots+s.Slots
				}
			}
			if v, s := tree.Total(); v != vcpus || s != slots {
				t.Fatalf("the root has %d on %d, the servers %d on %d", v, s, vcpus, slots)
			}
		}
	})
}

func TestSwapWhereNoMoveHelps(t *testing.T) {
	servers := []Server{{ID: 1, Name: "a-1", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 6, MemoryBytes: ident.GiB},
		{ID: 2, Name: "a-2", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 4, MemoryBytes: ident.GiB}}
	vms := []Running{{VM: 1, Parts: []RunningPart{{1, 3, ident.MiB, 0}}}, {VM: 2, Parts: []RunningPart{{1, 3, ident.MiB, 0}}},
		{VM: 3, Parts: []RunningPart{{2, 2, ident.MiB, 0}}}, {VM: 4, Parts: []RunningPart{{2, 2, ident.MiB, 0}}}}
	plan := Rebalance(servers, vms, 10)
	if len(plan) != 1 || plan[0].With == 0 || plan[0].VCPUs-plan[0].WithVCPUs != 1 {
		t.Errorf("%+v", plan)
	}
}

func TestSteal(t *testing.T) {
	spare := func(id ident.ServerID, cell ident.CellName, free, distance int) Spare {
		used := 4 - free
		if free == 0 {
			used = 5
		}
		return Spare{Server{ID: id, Name: ident.ServerName(cell), Cell: cell, Open: true, Slots: 4, UsedVCPUs: used, MemoryBytes: ident.GiB}, free, distance}
	}
	waits := func(id ident.VMID, since ident.Micros, parts ...RunningPart) Waiting {
		return Waiting{Running{VM: id, Parts: parts}, since}
	}
	for _, c := range []struct {
		name string
		here Spare
		all  []Waiting
		want ident.VMID
	}{
		{"the longest-waiting", spare(1, "a", 2, 0), []Waiting{waits(1, 9, RunningPart{2, 1, 0, 0}), waits(2, 5, RunningPart{2, 2, 0, 0})}, 2},
		{"the nearest first", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{3, 1, 0, 0}), waits(2, 5, RunningPart{2, 1, 0, 0})}, 2},
		{"never from another cell", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{4, 1, 0, 0})}, 0},
		{"never half a gang", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{2, 1, 0, 0}, RunningPart{3, 1, 0, 0})}, 0},
		{"a gang that can run then", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{2, 1, 0, 0}, RunningPart{5, 1, 0, 0})}, 1},
		{"a vCPU to a sibling", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{1, 1, 0, 0}, RunningPart{2, 3, 0, 0})}, 1},
		{"no vCPU while the gang waits elsewhere", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{1, 1, 0, 0}, RunningPart{2, 1, 0, 0}, RunningPart{3, 1, 0, 0})}, 0},
		{"none of those that share it with who idles", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{1, 1, 0, 0}, RunningPart{2, 3, 0, 1})}, 0},
		{"no part without work", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{2, 1, 0, 1})}, 0},
		{"no vCPU from another cell", spare(1, "a", 2, 0), []Waiting{waits(1, 1, RunningPart{1, 1, 0, 0}, RunningPart{4, 1, 0, 0})}, 0},
		{"not more than is free", spare(1, "a", 1, 0), []Waiting{waits(1, 1, RunningPart{2, 2, 0, 0})}, 0},
		{"nothing for a full server", spare(1, "a", 0, 0), []Waiting{waits(1, 1, RunningPart{2, 1, 0, 0})}, 0},
	} {
		spares := []Spare{c.here, spare(2, "a", 0, 1), spare(3, "a", 0, 2), spare(4, "b", 0, 1), spare(5, "a", 1, 3)}
		got, ok := Steal(1, spares, c.all)
		if ok != (c.want != 0) || got.VM != c.want {
			t.Errorf("%s: got %+v", c.name, got)
		}
	}
}

// A thousand servers and ten thousand VMs, all of them on a tenth of the servers.
func BenchmarkRebalanceThousand(b *testing.B) {
	var servers []Server
	for i := range 1000 {
		cell := ident.CellName(fmt.Sprintf("c%d", i/16))
		servers = append(servers, Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(fmt.Sprintf("%s-%d", cell, i)), Cell: cell, Open: true, Slots: 16, MemoryBytes: 1024 * ident.GiB})
	}
	var vms []Running
	for i := range 10_000 {
		s, n := &servers[i%100], 1+i%4
		vms = append(vms, Running{VM: ident.VMID(i + 1), Parts: []RunningPart{{s.ID, n, ident.GiB, 0}}})
		s.UsedVCPUs += n
		s.UsedBytes += ident.GiB
	}
	for b.Loop() {
		plan := Rebalance(slices.Clone(servers), vms, 100_000)
		b.ReportMetric(float64(len(plan)), "transfers")
	}
}

// A VM in two cells comes together where that costs nothing, unless it was asked to lie there.
func TestTogether(t *testing.T) {
	servers := []Server{{ID: 1, Name: "a-1", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 2, MemoryBytes: ident.GiB},
		{ID: 2, Name: "a-2", Cell: "a", Open: true, Slots: 4, UsedVCPUs: 1, MemoryBytes: ident.GiB},
		{ID: 3, Name: "b-1", Cell: "b", Open: true, Slots: 4, UsedVCPUs: 2, MemoryBytes: ident.GiB}}
	parts := []RunningPart{{1, 2, ident.MiB, 0}, {3, 1, ident.MiB, 0}}
	plan := Rebalance(slices.Clone(servers), []Running{{VM: 1, Parts: parts}}, 10)
	if len(plan) != 1 || plan[0].From != 3 || plan[0].To != 2 {
		t.Errorf("%+v", plan)
	}
	if plan := Rebalance(servers, []Running{{VM: 1, Parts: parts, Span: []ident.CellName{"a", "b"}}}, 10); len(plan) != 0 {
		t.Errorf("against its span: %+v", plan)
	}
}

// Single vCPUs go where their VM has a part already: as many as even the load out and as have slots, and never the last one of a cell of the span.
func TestSingleVCPUs(t *testing.T) {
	servers := func(slots ...int) []Server {
		var out []Server
		for i, n := range slots {
			cell := ident.CellName(rune('a' + i))
			out = append(out, Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(cell) + "-1", Cell: cell, Open: true, Slots: n, MemoryBytes: ident.GiB})
		}
		return out
	}
	part := func(on ident.ServerID, vcpus int) RunningPart { return RunningPart{on, vcpus, ident.MiB, 0} }
	two := []ident.CellName{"a", "b"}
	for _, c := range []struct {
		name    string
		servers []Server
		vm      Running
		moved   int
		from    ident.ServerID
	}{
		{"half of them", servers(4, 4), Running{Parts: []RunningPart{part(1, 4), part(2, 0)}}, 2, 1},
		{"as many as have slots", servers(8, 1), Running{Parts: []RunningPart{part(1, 8), part(2, 0)}}, 1, 1},
		{"a difference of one is none", servers(4, 4), Running{Span: two, Parts: []RunningPart{part(1, 2), part(2, 1)}}, 0, 0},
		{"a Linux guest's stay", servers(4, 4), Running{Whole: true, Parts: []RunningPart{part(1, 4), part(2, 0)}}, 0, 0},
		{"some idle, and nobody knows which", servers(4, 4), Running{Span: two, Parts: []RunningPart{{1, 4, 0, 1}, part(2, 0)}}, 0, 0},
		{"each cell of the span keeps one", servers(1, 8), Running{Span: two, Parts: []RunningPart{part(1, 1), part(2, 1)}}, 0, 0},
		{"together, where that costs nothing", servers(1, 8), Running{Parts: []RunningPart{part(1, 1), part(2, 1)}}, 1, 1},
	} {
		for _, p := range c.vm.Parts {
			c.servers[p.Server-1].UsedVCPUs += p.busy()
		}
		c.vm.VM = 1
		before := Score(c.servers)
		plan := Rebalance(slices.Clone(c.servers), []Running{c.vm}, 10)
		if c.moved == 0 {
			if len(plan) > 0 {
				t.Errorf("%s: %+v", c.name, plan)
			}
			continue
		}
		if len(plan) != 1 || !plan[0].Apart || plan[0].VCPUs != c.moved || plan[0].From != c.from {
			t.Errorf("%s: %+v, want %d vCPUs from server %d", c.name, plan, c.moved, c.from)
			continue
		}
		for _, x := range plan {
			c.servers[x.From-1].UsedVCPUs -= x.VCPUs
			c.servers[x.To-1].UsedVCPUs += x.VCPUs
		}
		if after := Score(c.servers); after > before {
			t.Errorf("%s: the score goes from %d to %d", c.name, before, after)
		}
	}
}

// As many vCPUs go as the others of their gang need to have slots, and not more; those that stay together, and those for which there is no room, stay.
func TestStealSingleVCPUs(t *testing.T) {
	server := func(id ident.ServerID, slots, used int) Spare {
		return Spare{Server{ID: id, Cell: "a", Open: true, Slots: slots, UsedVCPUs: used, MemoryBytes: ident.GiB}, max(0, slots-used), int(id)}
	}
	for _, c := range []struct {
		name       string
		here, from Spare
		whole      bool
		mine       int // vCPUs of the VM here, 3 are there
		want       int
	}{
		{"one", server(1, 4, 1), server(2, 4, 5), false, 1, 1},
		{"two", server(1, 4, 1), server(2, 4, 6), false, 1, 2},
		{"all, where there are others, too", server(1, 4, 1), server(2, 4, 9), false, 1, 3},
		{"no room for all", server(1, 4, 2), server(2, 4, 9), false, 1, 0},
		{"a sibling to each slot", server(1, 2, 1), server(2, 4, 6), false, 1, 0},
		{"to a part without vCPUs", server(1, 4, 0), server(2, 4, 5), false, 0, 1},
		{"nobody waits", server(1, 4, 0), server(2, 4, 4), false, 1, 0},
		{"whole", server(1, 4, 1), server(2, 4, 5), true, 1, 0},
	} {
		vm := Running{VM: 1, Parts: []RunningPart{{1, c.mine, 0, 0}, {2, 3, 0, 0}}, Whole: c.whole}
		got, ok := Steal(1, []Spare{c.here, c.from}, []Waiting{{vm, 0}})
		if ok != (c.want > 0) || got.VCPUs != c.want || ok && (!got.Apart || got.From != 2 || got.To != 1) {
			t.Errorf("%s: got %+v, want %d", c.name, got, c.want)
		}
	}
}
