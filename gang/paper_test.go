package gang

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Each test is one claim of Cellular Disco's scheduler (Govil, Teodosiu, Huang, Rosenblum: Cellular Disco, SOSP 1999, section 4) that
// the code follows, in our words above it.

// The VCPUs of a virtual machine that are not idle run together or not at all, here over all its servers.
func TestPaperGangTogetherOrNotAtAll(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := anyRig(t, rt)
		r.run(500*ident.Millisecond, func() {
			for _, vm := range r.view.VMs {
				held, run := 0, 0
				for _, p := range vm.Parts {
					switch r.modes[p.Server][vm.ID] {
					case wire.SliceHold:
						held++
					case wire.SliceRun:
						run++
					}
				}
				if held > 0 && run > 0 {
					rt.Fatalf("VM %d runs on %d of its servers and waits on %d", vm.ID, run, held)
				}
			}
		})
	})
}

// Each physical processor runs one VCPU at a time: a slot is never promised twice.
func TestPaperOneVCPUForEachProcessor(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := anyRig(t, rt)
		r.run(500*ident.Millisecond, func() {
			for _, s := range r.view.Servers {
				var used []uint16
				for _, vm := range r.view.VMs {
					if r.modes[s.ID][vm.ID] != wire.SliceRun {
						continue
					}
					for _, slot := range r.cpus[s.ID][vm.ID] {
						if slices.Contains(used, slot) {
							rt.Fatalf("slot %d of server %d is promised twice", slot, s.ID)
						}
						used = append(used, slot)
					}
				}
			}
		})
	})
}

// The eligible VCPU that has waited longest is chosen, and its gang with it: of gangs of one weight, the one that waited longest is the next to run.
func TestPaperLongestWaitingFirst(t *testing.T) {
	r := newRig(t, []Server{{1, 2}}, one(1, 2), one(2, 2), one(3, 2), one(4, 2))
	var order []ident.VMID
	r.run(ident.Second, func() {
		for _, vm := range r.view.VMs {
			if r.modes[1][vm.ID] == wire.SliceRun && (len(order) == 0 || order[len(order)-1] != vm.ID) {
				order = append(order, vm.ID)
			}
		}
	})
	for i := 4; i < len(order); i++ {
		if order[i] != order[i-4] {
			t.Fatalf("the order of turns is %v", order)
		}
	}
}

// Idle VCPUs are left out of the gang: a vCPU that idles needs no slot, and a gang that idles altogether is not run.
func TestPaperIdleVCPUsAreExcluded(t *testing.T) {
	r := newRig(t, []Server{{1, 2}}, one(1, 2), one(2, 2))
	r.busy(1, 1, 1)
	r.busy(1, 2, 1)
	r.run(100*ident.Millisecond, nil)
	if r.modes[1][1] != wire.SliceRun || r.modes[1][2] != wire.SliceRun {
		t.Errorf("two gangs with one vCPU at work each do not share two slots: %v", r.modes[1])
	}
	r.busy(1, 2, 0)
	r.run(keepAlive, nil)
	if r.modes[1][2] != wire.SliceHold {
		t.Errorf("a gang without work has slots: %v", r.modes[1])
	}
}

// The siblings' processors are told by RPC and switch at once: here a slice names its begin ahead of time, on each
// receiver's clock, though the clocks differ.
func TestPaperGangStartsAtOnce(t *testing.T) {
	const far = 3 * ident.Second // how far the second server's clock is ahead
	pair := func(id ident.VMID) VM { return VM{ID: id, Parts: []Part{{1, 1}, {2, 1}}} }
	v := View{Epoch: 1, Servers: []Server{{1, 1}, {2, 1}}, VMs: []VM{pair(1), pair(2)}}
	a, b := New(Config{Self: 1}), New(Config{Self: 2})
	now := ident.Second
	a.Step(now, v)
	b.Step(now+far, v)
	const delay = 150
	pass := func() { // messages take their time, one way and back
		for i := 0; i < 2; i++ {
			now += delay
			for _, m := range a.Messages() {
				b.Step(now+far, Slice{1, 1, *m.Slice})
			}
			for _, m := range b.Messages() {
				a.Step(now, Report{2, 1, *m.Report})
			}
		}
	}
	for range 100 {
		at, _ := a.NextDeadline()
		if bt, ok := b.NextDeadline(); ok && bt-far < at {
			at = bt - far
		}
		now = max(now, at)
		a.Step(now, Tick{})
		b.Step(now+far, Tick{})
		pass()
	}
	at, _ := a.NextDeadline()
	now = max(now, at)
	a.Orders()
	a.Step(now, Tick{})
	for len(a.messages) == 0 || a.messages[0].Slice == nil {
		at, _ = a.NextDeadline()
		now = max(now+1, at)
		a.Orders()
		a.Step(now, Tick{})
	}
	here, there := a.Orders(), a.Messages()[0].Slice
	if len(here) == 0 || here[0].At <= now {
		t.Fatalf("the slice does not lie ahead: %+v at %d", here, now)
	}
	if skew := there.Start - far - here[0].At; skew < -delay || skew > delay {
		t.Errorf("the gang starts %d us apart", skew)
	}
}

// Nobody starves: under any mix of sizes, weights and idling, a gang that has work runs within a bound.
func TestPaperNoStarvation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := anyRig(t, rt)
		ran := map[ident.VMID]ident.Micros{}
		const long = 6 * ident.Second
		r.run(long, nil)
		for id, d := range r.ran {
			ran[id] = d
		}
		total := 0
		for _, vm := range r.view.VMs {
			total += vm.weight()
		}
		for _, vm := range r.view.VMs {
			// The least that is due: its weight's part of the time as if all gangs excluded each other, less some slices for what is under way.
			due := long*ident.Micros(vm.weight())/ident.Micros(total) - 8*MaxSlice*ident.Micros(1+MaxTestWeight/vm.weight())
			if ran[vm.ID] < due {
				rt.Fatalf("VM %d of weight %d of %d ran %d us of %d, due are %d; all: %v", vm.ID, vm.weight(), total, ran[vm.ID], long, due, ran)
			}
		}
	})
}

// MaxTestWeight bounds the weights that the tests draw.
const MaxTestWeight = 400

// anyRig draws servers and VMs that fit on them.
func anyRig(t *testing.T, rt *rapid.T) *rig {
	var servers []Server
	for i := range rapid.IntRange(1, 3).Draw(rt, "servers") {
		servers = append(servers, Server{ident.ServerID(i + 1), rapid.IntRange(1, 4).Draw(rt, "slots")})
	}
	var vms []VM
	for i := range rapid.IntRange(2, 8).Draw(rt, "vms") {
		vm := VM{ID: ident.VMID(i + 1), Weight: rapid.SampledFrom([]int{0, 50, 100, 200, MaxTestWeight}).Draw(rt, "weight")}
		for _, s := range servers {
			if n := rapid.IntRange(0, s.Slots).Draw(rt, fmt.Sprintf("vcpus of %d at %d", vm.ID, s.ID)); n > 0 {
				vm.Parts = append(vm.Parts, Part{s.ID, n})
			}
		}
		if len(vm.Parts) > 0 {
			vms = append(vms, vm)
		}
	}
	if len(vms) == 0 {
		vms = append(vms, one(1, 1))
	}
	return newRig(t, servers, vms...)
}
