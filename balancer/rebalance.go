package balancer

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Running is a VM as the balancers see it.
type Running struct {
	VM      ident.VMID
	Parts   []RunningPart
	Span    []ident.CellName // cells that it was asked to lie in; empty: any
	Settled bool             // moved not long ago, or otherwise not to be touched
	Whole   bool             // its vCPUs do not go one by one
}

// RunningPart is a VM's part. Those of its vCPUs that idle are no load.
type RunningPart struct {
	Server ident.ServerID
	VCPUs  int
	Bytes  ident.Bytes
	Idle   int
}

// busy counts the vCPUs that have work.
func (p *RunningPart) busy() int { return p.VCPUs - min(p.Idle, p.VCPUs) }

// Transfer moves the part that a VM has on one server to another one, or, Apart, some of its vCPUs to the part that it has there. With, if not zero, is the VM
// whose part goes the other way.
type Transfer struct {
	VM        ident.VMID
	VCPUs     int
	Apart     bool
	From, To  ident.ServerID
	With      ident.VMID
	WithVCPUs int
	Reason    string
}

// tries bounds how many pairs of servers are looked at for one imbalance.
const tries = 64

// Rebalance is the periodic balancer: it goes down the load tree to where left and right differ by more than one vCPU and moves or swaps a part from
// the heavy side to the light one, until nothing is left to do or there are limit transfers. A part never goes to a server that is closed, has too few slots or too
// little memory, runs a sibling, or lies outside the VM's span; it never spreads its VM over more cells. Single vCPUs go to where their VM has a part, as long as
// that has slots for them. At last it brings VMs together that lie in several cells, or run on several servers, without need, where that costs nothing. The
// servers' UsedVCPUs count the vCPUs that have work.
func Rebalance(servers []Server, vms []Running, limit int) []Transfer {
	return RebalanceWith(servers, vms, limit, "")
}

// RebalanceWith is Rebalance with a planted bug, for the simulator.
func RebalanceWith(servers []Server, vms []Running, limit int, canary string) []Transfer {
	b := newBalance(servers, vms)
	b.canary = canary
	var out []Transfer
	for len(out) < limit {
		t, ok := b.next(1)
		if !ok { // sides are even, yet a server of one may be heavier than one of the other
			t, ok = b.between(1, 1)
		}
		if !ok {
			t, ok = b.together()
		}
		if !ok {
			t, ok = b.gather()
		}
		if !ok {
			break
		}
		b.apply(t)
		out = append(out, t)
	}
	return out
}

// balance is the state while transfers are planned.
type balance struct {
	tree    *LoadTree
	servers []Server  // by leaf
	vms     []Running // own copies
	on      [][]int   // by leaf: indices of VMs with a part there
	cell    map[ident.ServerID]ident.CellName
	canary  string
}

func newBalance(servers []Server, vms []Running) *balance {
	b := &balance{tree: NewLoadTree(servers), cell: make(map[ident.ServerID]ident.CellName, len(servers))}
	byID := make(map[ident.ServerID]Server, len(servers))
	for _, s := range servers {
		byID[s.ID], b.cell[s.ID] = s, s.Cell
	}
	for _, id := range b.tree.order {
		b.servers = append(b.servers, byID[id])
	}
	b.on = make([][]int, len(b.servers))
	for i, vm := range vms {
		vm.Parts = slices.Clone(vm.Parts)
		b.vms = append(b.vms, vm)
		for _, p := range vm.Parts {
			if leaf, ok := b.tree.at[p.Server]; ok {
				b.on[leaf] = append(b.on[leaf], i)
			}
		}
	}
	return b
}

// next finds a transfer at or below a node of the tree, the highest first.
func (b *balance) next(node int) (Transfer, bool) {
	if node >= b.tree.leaves {
		return Transfer{}, false
	}
	left, right := b.tree.nodes[2*node], b.tree.nodes[2*node+1]
	if left.slots > 0 && right.slots > 0 {
		for _, heavyLeft := range []bool{true, false} {
			from, to := 2*node, 2*node+1
			if !heavyLeft {
				from, to = to, from
			}
			if !lessens(b.tree.nodes[from], b.tree.nodes[to], 1) {
				continue
			}
			if t, ok := b.between(from, to); ok {
				return t, true
			}
		}
	}
	if t, ok := b.next(2 * node); ok {
		return t, true
	}
	return b.next(2*node + 1)
}

// between finds a transfer from below one node to below another: from the heaviest server to the lightest if one is possible, else among others.
func (b *balance) between(from, to int) (Transfer, bool) {
	h, l := b.tree.nodes[from].heaviest, b.tree.nodes[to].lightest
	if t, ok := b.pair(h, l); ok {
		return t, true
	}
	heavy, light := b.below(from), b.below(to)
	slices.SortStableFunc(heavy, func(x, y int) int { return b.byLoad(y, x) })
	slices.SortStableFunc(light, b.byLoad)
	tried := 0
	for _, h := range heavy {
		for _, l := range light {
			if tried++; tried > tries || !lessens(b.leaf(h), b.leaf(l), 1) {
				break
			}
			if t, ok := b.pair(h, l); ok {
				return t, true
			}
		}
	}
	return Transfer{}, false
}

func (b *balance) leaf(i int) load { return b.tree.nodes[b.tree.leaves+i] }

func (b *balance) byLoad(x, y int) int {
	switch {
	case b.tree.heavier(x, y):
		return 1
	case b.tree.heavier(y, x):
		return -1
	}
	return 0
}

// below lists the leaves of a node.
func (b *balance) below(node int) []int {
	first, last := node, node
	for first < b.tree.leaves {
		first, last = 2*first, 2*last+1
	}
	var out []int
	for i := first - b.tree.leaves; i <= last-b.tree.leaves; i++ {
		if i < len(b.servers) && b.leaf(i).slots > 0 {
			out = append(out, i)
		}
	}
	return out
}

// option is a part that may move, or some of its vCPUs.
type option struct {
	vm, part int
	apart    int // so many vCPUs go to the part that the VM has there; 0: the part moves
	cells    int // that its VM depends on more than before; negative is good
	wider    int // servers that run vCPUs of the VM more than before, likewise
	far      int // 1 if it leaves its cell
	copies   int // 1 if memory is copied
}

// pair finds the best transfer between two servers.
func (b *balance) pair(from, to int) (Transfer, bool) {
	if from < 0 || to < 0 || !lessens(b.leaf(from), b.leaf(to), 1) {
		return Transfer{}, false
	}
	options := b.options(from, to)
	for _, o := range options {
		p := b.vms[o.vm].Parts[o.part]
		if o.apart > 0 || lessens(b.leaf(from), b.leaf(to), p.busy()) && p.Bytes <= b.servers[to].free() {
			return b.transfer(o, from, to, nil), true
		}
	}
	back := b.options(to, from)
	for _, o := range options {
		for _, w := range back {
			p, q := b.vms[o.vm].Parts[o.part], b.vms[w.vm].Parts[w.part]
			if net := p.busy() - q.busy(); w.apart > 0 || net < 1 || !lessens(b.leaf(from), b.leaf(to), net) || o.vm == w.vm ||
				p.Bytes > b.servers[to].free()+q.Bytes || q.Bytes > b.servers[from].free()+p.Bytes {
				continue
			}
			return b.transfer(o, from, to, &w), true
		}
	}
	return Transfer{}, false
}

// options lists the parts on one server that may go to another, or some of whose vCPUs may, those first that bring VMs together, then those that stay in their
// cell, then those that copy nothing, then the largest. Memory is for the caller to look at: a swap frees some.
func (b *balance) options(from, to int) []option {
	var out []option
	target := &b.servers[to]
	for _, i := range b.on[from] {
		vm := &b.vms[i]
		at := slices.IndexFunc(vm.Parts, func(p RunningPart) bool { return p.Server == b.servers[from].ID })
		if vm.Settled || at < 0 || vm.Parts[at].busy() < 1 {
			continue
		}
		o := option{vm: i, part: at, copies: 1}
		if sibling := slices.IndexFunc(vm.Parts, func(p RunningPart) bool { return p.Server == target.ID }); sibling >= 0 {
			if o.apart, o.copies = b.apart(vm, at, sibling, target), 0; o.apart == 0 {
				continue
			}
			o.wider = vm.wider(at, sibling, o.apart)
		} else if cells, ok := b.cellsAfter(vm, at, target.Cell); ok && vm.Parts[at].VCPUs <= target.Slots && !b.bares(vm, at, target.Cell) {
			o.cells = cells
		} else {
			continue
		}
		if target.Cell != b.servers[from].Cell {
			o.far = 1
		}
		out = append(out, o)
	}
	slices.SortFunc(out, func(x, y option) int {
		return cmp.Or(cmp.Compare(x.cells, y.cells), cmp.Compare(x.wider, y.wider), cmp.Compare(x.far, y.far), cmp.Compare(x.copies, y.copies),
			cmp.Compare(b.vms[y.vm].Parts[y.part].busy(), b.vms[x.vm].Parts[x.part].busy()), cmp.Compare(b.vms[x.vm].VM, b.vms[y.vm].VM))
	})
	return out
}

// cellsAfter tells how many cells more a VM would depend on, which may be fewer, once its part number moved lies in another cell, and whether it may lie there.
func (b *balance) cellsAfter(vm *Running, moved int, cell ident.CellName) (more int, ok bool) {
	if len(vm.Parts) == 1 {
		return 0, len(vm.Span) == 0 || slices.Contains(vm.Span, cell)
	}
	before, after := b.cellsOf(vm, -1, ""), b.cellsOf(vm, moved, cell)
	return len(after) - len(before), len(after) <= len(before) && keepsSpan(vm.Span, before, after)
}

// cellsOf lists the cells that a VM depends on, once its part number moved lies in another cell; -1: none moves.
func (b *balance) cellsOf(vm *Running, moved int, cell ident.CellName) []ident.CellName {
	var out []ident.CellName
	for i, p := range vm.Parts {
		in := b.cell[p.Server]
		if i == moved {
			in = cell
		}
		if !slices.Contains(out, in) {
			out = append(out, in)
		}
	}
	return out
}

// keepsSpan tells whether a VM with these cells lies where it was asked to: in no other cell than those of its span, and in as many of them as before.
func keepsSpan(span, before, after []ident.CellName) bool {
	if len(span) == 0 {
		return true
	}
	outside := func(c ident.CellName) bool { return !slices.Contains(span, c) }
	return !slices.ContainsFunc(after, outside) && len(after) >= len(before)
}

// together finds a part whose VM depends on fewer cells once it has moved, at no cost: the loads are as even then as now.
func (b *balance) together() (Transfer, bool) {
	for i := range b.vms {
		vm := &b.vms[i]
		if vm.Settled || len(vm.Parts) < 2 || len(vm.Span) > 0 {
			continue
		}
		before := b.cellsOf(vm, -1, "")
		if len(before) < 2 {
			continue
		}
		for at := range vm.Parts {
			if from, to, ok := b.joins(vm, at, before); ok {
				t := b.transfer(option{vm: i, part: at}, from, to, nil)
				t.Reason = fmt.Sprintf("the VM depends on %d cells, and then on one less", len(before))
				return t, true
			}
		}
	}
	return Transfer{}, false
}

// joins finds the least loaded server in another cell of the VM that its part can move to at no cost.
func (b *balance) joins(vm *Running, at int, cells []ident.CellName) (from, to int, ok bool) {
	p := &vm.Parts[at]
	from, known := b.tree.at[p.Server]
	if !known {
		return 0, 0, false
	}
	to = -1
	for leaf := range b.servers {
		s := &b.servers[leaf]
		if s.Cell == b.servers[from].Cell || !slices.Contains(cells, s.Cell) || p.VCPUs > s.Slots || p.Bytes > s.free() || !keeps(b.leaf(from), b.leaf(leaf), p.busy()) ||
			slices.ContainsFunc(vm.Parts, func(o RunningPart) bool { return o.Server == s.ID }) {
			continue
		}
		if after := b.cellsOf(vm, at, s.Cell); len(after) < len(cells) && (to < 0 || b.tree.heavier(to, leaf)) {
			to = leaf
		}
	}
	return from, to, to >= 0
}

func (b *balance) transfer(o option, from, to int, w *option) Transfer {
	f, t := &b.servers[from], &b.servers[to]
	p := b.vms[o.vm].Parts[o.part]
	out := Transfer{VM: b.vms[o.vm].VM, VCPUs: p.VCPUs, From: f.ID, To: t.ID}
	if o.apart > 0 {
		out.VCPUs, out.Apart = o.apart, true
	}
	out.Reason = fmt.Sprintf("%s has %d busy vCPUs on %d slots, %s %d on %d", f.Name, b.leaf(from).vcpus, f.Slots, t.Name, b.leaf(to).vcpus, t.Slots)
	if w != nil {
		out.With, out.WithVCPUs = b.vms[w.vm].VM, b.vms[w.vm].Parts[w.part].VCPUs
	}
	return out
}

// apply makes a transfer true in the plan.
func (b *balance) apply(t Transfer) {
	if t.Apart {
		b.shiftVCPUs(t)
		return
	}
	b.shift(t.VM, t.From, t.To)
	if t.With != 0 {
		b.shift(t.With, t.To, t.From)
	}
}

func (b *balance) shift(vm ident.VMID, from, to ident.ServerID) {
	f, t := b.tree.at[from], b.tree.at[to]
	at := slices.IndexFunc(b.on[f], func(i int) bool { return b.vms[i].VM == vm })
	i := b.on[f][at]
	b.on[f] = slices.Delete(b.on[f], at, at+1)
	b.on[t] = append(b.on[t], i)
	for j := range b.vms[i].Parts {
		p := &b.vms[i].Parts[j]
		if p.Server != from {
			continue
		}
		p.Server = to
		b.servers[f].UsedBytes -= min(p.Bytes, b.servers[f].UsedBytes)
		b.servers[t].UsedBytes += p.Bytes
		b.servers[f].UsedVCPUs -= p.busy()
		b.servers[t].UsedVCPUs += p.busy()
	}
	b.tree.Set(from, b.servers[f].UsedVCPUs)
	b.tree.Set(to, b.servers[t].UsedVCPUs)
}
