package balancer

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Single vCPUs go between parts that their VM has already: that takes no copy, and makes the VM depend on no server more. As the registry knows how many vCPUs
// of a part idle, but not which, they leave only parts all of whose vCPUs have work, or a part altogether.

// CanaryBareCell plants a bug, for the simulator: the last vCPU of a VM leaves a cell of its span.
const CanaryBareCell = "bare-cell"

// apart returns how many vCPUs of a VM's part go to the part that it has on another server, such that each of them makes the load more even; 0: none.
func (b *balance) apart(vm *Running, at, to int, target *Server) int {
	p, q := &vm.Parts[at], &vm.Parts[to]
	if vm.Whole || p.Idle > 0 {
		return 0
	}
	from, light := b.leaf(b.tree.at[p.Server]), b.leaf(b.tree.at[q.Server])
	k := 0
	for k < min(p.VCPUs, target.Slots-q.VCPUs) && lessens(from, light, 1) {
		from.vcpus, light.vcpus, k = from.vcpus-1, light.vcpus+1, k+1
	}
	if k == p.VCPUs && b.bares(vm, at, target.Cell) {
		k--
	}
	return k
}

// bares tells whether a cell that the VM was asked to lie in has none of its vCPUs once its part number at has none.
func (b *balance) bares(vm *Running, at int, to ident.CellName) bool {
	cell := b.cell[vm.Parts[at].Server]
	if len(vm.Span) == 0 || cell == to || b.canary == CanaryBareCell {
		return false
	}
	for i := range vm.Parts {
		if p := &vm.Parts[i]; i != at && p.VCPUs > 0 && b.cell[p.Server] == cell {
			return false
		}
	}
	return true
}

// wider tells on how many servers more a VM's vCPUs run, which may be fewer, once so many of them have left one part for another.
func (vm *Running) wider(at, to, leave int) int {
	n := 0
	if vm.Parts[to].VCPUs == 0 {
		n++
	}
	if vm.Parts[at].VCPUs == leave {
		n--
	}
	return n
}

// gather finds a part all of whose vCPUs can go to another part of their VM at no cost, so that the VM runs on one server less.
func (b *balance) gather() (Transfer, bool) {
	for i := range b.vms {
		vm := &b.vms[i]
		if vm.Settled || vm.Whole || len(vm.Span) > 0 || len(vm.Parts) < 2 {
			continue
		}
		for at := range vm.Parts {
			if to := b.gathers(vm, at); to >= 0 {
				p := vm.Parts[at]
				return Transfer{VM: vm.VM, VCPUs: p.VCPUs, Apart: true, From: p.Server, To: vm.Parts[to].Server,
					Reason: fmt.Sprintf("the VM runs on %d servers, and then on one less", vm.running())}, true
			}
		}
	}
	return Transfer{}, false
}

// gathers returns the part that takes all vCPUs of another one, the one with most vCPUs already; -1: none can, or the loads would be less even.
func (b *balance) gathers(vm *Running, at int) int {
	p, to := &vm.Parts[at], -1
	from, known := b.tree.at[p.Server]
	if !known || p.VCPUs == 0 {
		return -1
	}
	for j := range vm.Parts {
		q := &vm.Parts[j]
		leaf, open := b.tree.at[q.Server]
		if j == at || !open || q.VCPUs == 0 || p.VCPUs+q.VCPUs > b.servers[leaf].Slots || !keeps(b.leaf(from), b.leaf(leaf), p.busy()) {
			continue
		}
		if to < 0 || q.VCPUs > vm.Parts[to].VCPUs {
			to = j
		}
	}
	return to
}

// running counts the servers that run vCPUs of the VM.
func (vm *Running) running() int {
	n := 0
	for _, p := range vm.Parts {
		if p.VCPUs > 0 {
			n++
		}
	}
	return n
}

// shiftVCPUs makes it true that vCPUs have gone from part to part.
func (b *balance) shiftVCPUs(t Transfer) {
	f, l := b.tree.at[t.From], b.tree.at[t.To]
	i := b.on[f][slices.IndexFunc(b.on[f], func(i int) bool { return b.vms[i].VM == t.VM })]
	parts := b.vms[i].Parts
	from := &parts[slices.IndexFunc(parts, func(p RunningPart) bool { return p.Server == t.From })]
	to := &parts[slices.IndexFunc(parts, func(p RunningPart) bool { return p.Server == t.To })]
	before := from.busy()
	from.VCPUs -= t.VCPUs
	idle := max(0, from.Idle-from.VCPUs) // a part that all have left
	from.Idle -= idle
	to.VCPUs, to.Idle = to.VCPUs+t.VCPUs, to.Idle+idle
	moved := before - from.busy()
	b.servers[f].UsedVCPUs -= moved
	b.servers[l].UsedVCPUs += moved
	b.tree.Set(t.From, b.servers[f].UsedVCPUs)
	b.tree.Set(t.To, b.servers[l].UsedVCPUs)
}
