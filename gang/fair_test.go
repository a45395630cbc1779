package gang

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// fairShares is the definition of a fair share: the weighted max-min division of time among gangs. The time of all gangs rises together, by their
// weights, until a server of some has no more slots; those stop there, and the others rise on. A gang's time is one figure: it holds its slots on all its
// servers or none.
func fairShares(servers []Server, vms []VM) map[ident.VMID]float64 {
	share, done := map[ident.VMID]float64{}, map[ident.VMID]bool{}
	for len(done) < len(vms) {
		used, growth := map[ident.ServerID]float64{}, map[ident.ServerID]float64{}
		for _, vm := range vms {
			for _, p := range vm.Parts {
				used[p.Server] += share[vm.ID] * float64(p.VCPUs)
				if !done[vm.ID] {
					growth[p.Server] += float64(weightOf(vm) * p.VCPUs)
				}
			}
		}
		step := -1.0
		lower := func(s float64) {
			if step < 0 || s < step {
				step = s
			}
		}
		for _, s := range servers {
			if growth[s.ID] > 0 {
				lower((float64(s.Slots) - used[s.ID]) / growth[s.ID])
			}
		}
		for _, vm := range vms {
			if !done[vm.ID] {
				lower((1 - share[vm.ID]) / float64(weightOf(vm)))
			}
		}
		full := map[ident.ServerID]bool{}
		for _, s := range servers {
			full[s.ID] = growth[s.ID] > 0 && float64(s.Slots)-used[s.ID]-step*growth[s.ID] < 1e-9
		}
		for _, vm := range vms {
			if done[vm.ID] {
				continue
			}
			share[vm.ID] += step * float64(weightOf(vm))
			if share[vm.ID] > 1-1e-9 || slices.ContainsFunc(vm.Parts, func(p Part) bool { return full[p.Server] }) {
				done[vm.ID] = true
			}
		}
	}
	return share
}

// What is due is had, by weight: of all on one server, and on two servers of one slot; on more slots as far as gangs pack. What nobody else can use is
// extra.
func TestFairShares(t *testing.T) {
	for servers := 1; servers <= 2; servers++ {
		for slots := 1; slots <= 2; slots++ {
			for seed := range uint64(10) {
				t.Run(fmt.Sprintf("%d servers of %d, seed %d", servers, slots, seed), func(t *testing.T) {
					fairRun(t, anyMix(servers, slots, seed), servers*slots <= 2)
				})
			}
		}
	}
}

// anyMix draws twenty VMs of all sizes and weights.
func anyMix(servers, slots int, seed uint64) View {
	r := rand.New(rand.NewPCG(seed, 1))
	v := View{Epoch: 1}
	for i := range servers {
		v.Servers = append(v.Servers, Server{ident.ServerID(i + 1), slots})
	}
	for i := range 20 {
		vm := VM{ID: ident.VMID(i + 1), Weight: []int{50, 100, 200, 400}[r.IntN(4)]}
		for len(vm.Parts) == 0 {
			for _, s := range v.Servers {
				if n := r.IntN(slots + 1); n > 0 {
					vm.Parts = append(vm.Parts, Part{s.ID, n})
				}
			}
		}
		v.VMs = append(v.VMs, vm)
	}
	return v
}

// fairRun lets the VMs run for about 5000 slices. If packs is true, all that is due must be had; if not, four fifths of what the most loaded server
// can give.
func fairRun(t *testing.T, v View, packs bool) {
	rig := newRig(t, v.Servers, v.VMs...)
	rig.run(ident.Second, nil)
	clear(rig.ran)
	const long = 50 * ident.Second
	rig.run(long, nil)
	due := fairShares(v.Servers, v.VMs)
	level := 1.0
	for _, vm := range v.VMs {
		level = min(level, due[vm.ID]/float64(weightOf(vm)))
	}
	for _, vm := range v.VMs {
		got, want := float64(rig.ran[vm.ID])/float64(long), due[vm.ID]
		if !packs {
			want = 0.8 * level * float64(weightOf(vm))
		}
		if got < 0.95*want {
			t.Errorf("VM %d of weight %d, %v: %.4f of the time, due are %.4f", vm.ID, vm.Weight, vm.Parts, got, want)
		}
	}
}
