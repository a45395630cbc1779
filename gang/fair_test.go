package gang

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

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
	due := FairShares(v.Servers, v.VMs)
	level := int64(FairWhole)
	for _, vm := range v.VMs {
		level = min(level, due[vm.ID]/int64(vm.weight()))
	}
	for _, vm := range v.VMs {
		got, want := int64(rig.ran[vm.ID]*FairWhole/long), due[vm.ID]
		if !packs {
			want = level * int64(vm.weight()) * 4 / 5
		}
		if got < want-want/20 {
			t.Errorf("VM %d of weight %d, %v: %d millionths of the time, due are %d", vm.ID, vm.Weight, vm.Parts, got, want)
		}
	}
}
