package gang

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// weight is the VM's, or what it has without one.
func (vm *VM) weight() int {
	if vm.Weight < 1 {
		return DefaultWeight
	}
	return vm.Weight
}

// Units of FairShares, and those in which it reckons.
const (
	FairWhole = 1_000_000 // all of the time
	fairUnit  = 1_000_000_000_000
	fairError = fairUnit / 100_000
)

// FairShares is the definition of a fair share, to compare with: the weighted max-min division of time among gangs that always have work. The time of all
// gangs rises together, by their weights, until a server of some has no slots left; those have their share then, and the others rise on. A gang's
// time is one figure: it holds its slots on all its servers or none. Shares are in millionths of the time.
func FairShares(servers []Server, vms []VM) map[ident.VMID]int64 {
	share, done := map[ident.VMID]int64{}, map[ident.VMID]bool{}
	for len(done) < len(vms) {
		step, full := fairStep(servers, vms, share, done)
		for i := range vms {
			vm := &vms[i]
			if done[vm.ID] {
				continue
			}
			share[vm.ID] += step * int64(vm.weight())
			if share[vm.ID] > fairUnit-fairError || slices.ContainsFunc(vm.Parts, func(p Part) bool { return full[p.Server] }) {
				done[vm.ID] = true
			}
		}
	}
	for i := range vms {
		share[vms[i].ID] /= fairUnit / FairWhole
	}
	return share
}

// fairStep is how far the shares by weight of those that are not done can rise, and which servers are full then.
func fairStep(servers []Server, vms []VM, share map[ident.VMID]int64, done map[ident.VMID]bool) (step int64, full map[ident.ServerID]bool) {
	left, growth := map[ident.ServerID]int64{}, map[ident.ServerID]int64{}
	for _, s := range servers {
		left[s.ID] = int64(s.Slots) * fairUnit
	}
	step = fairUnit
	for i := range vms {
		vm := &vms[i]
		for _, p := range vm.Parts {
			left[p.Server] -= share[vm.ID] * int64(p.VCPUs)
			if !done[vm.ID] {
				growth[p.Server] += int64(vm.weight() * p.VCPUs)
			}
		}
		if !done[vm.ID] {
			step = min(step, (fairUnit-share[vm.ID])/int64(vm.weight()))
		}
	}
	for _, s := range servers {
		if growth[s.ID] > 0 {
			step = min(step, max(0, left[s.ID])/growth[s.ID])
		}
	}
	full = map[ident.ServerID]bool{}
	for _, s := range servers {
		full[s.ID] = growth[s.ID] > 0 && left[s.ID]-step*growth[s.ID] < fairError
	}
	return step, full
}
