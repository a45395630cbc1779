// Package locality simulates a virtual machine over several servers whose vCPUs share memory in ways that change, under each policy of mem/locality. The
// cores are the production ones: the page protocol, the observers of the parts, the chooser at home, and the registry, which grants what is wished
// or does not. What a message, a fault and a hand-over take is set to what was measured.
//
// There are three classes of worlds. In those that compare, the same work is done under every policy:
//   - auto never takes more than 40% longer than the fixed policy that is best for the world, and the time that it needs to learn.
//
// In those that are steady, vCPUs do the same all the time, mostly more of them than one server has room for:
//   - vCPUs move less and less.
//
// In those with faults, messages are lost, repeated and late, so are reports and wishes, and servers are cordoned. In all of them
//   - a read returns the latest write, whichever vCPU made it and wherever both run by now;
//   - no part has more vCPUs than its server has slots, and none goes to a server that is cordoned, or to a part that the VM does not have;
//   - who has refused is asked less and less often;
//   - everything ends.
package locality

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/sim"
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "locality",
		Doc:      "vCPUs that share memory in ways that change: pages read ahead and vCPUs moved by what was observed; never far from the best fixed policy, no ping-pong",
		Run:      Run,
		Canaries: append([]string{canaryUnasked}, locality.Canaries...),
	})
}

// canaryUnasked is a bug of home's serve: it does not ask the registry.
const canaryUnasked = "unasked"

// Times of the simulated machine.
const (
	accessTime = ident.Micros(1)
	faultTime  = ident.Micros(20) // to leave the guest and to come back
	pollTime   = ident.Micros(5)
	agreeTime  = 3 * ident.Millisecond // from a wish until the registry has granted it and home knows
	moveTime   = ident.Millisecond     // for which a vCPU stands still
	tickTime   = 20 * ident.Millisecond
	ageTime    = 250 * ident.Millisecond
	steadyTime = 6 * ident.Second
	longest    = 600 * ident.Second
)

// How much worse than the best fixed policy auto may be, in percent, and for how long it may learn: a move or two, after each of which it looks whether that was
// right. (Who moves when waiting has cost what a move costs pays at most twice what was due. That is the worst case of one change; work that goes on gives
// it back.)
const (
	worstPercent = 140
	learning     = 100 * ident.Millisecond
)

// Fixed are the policies that always do the same.
var Fixed = []locality.Policy{locality.Fetch, locality.Replicate, locality.Move, locality.Rehome}

// Run runs the world of a seed.
func Run(seed uint64, canary string) error {
	s := draw(seed, canary)
	auto, err := s.Play(locality.Auto)
	if err != nil {
		return fmt.Errorf("policy auto, %+v: %w", s, err)
	}
	if vain, most := auto.Asked-auto.Moves, vainWishes(s, auto.Total); vain > most {
		return fmt.Errorf("%d wishes in vain in %d us, more than %d: %+v", vain, auto.Total, most, s)
	}
	if most := 2*s.VCPUs + 4; s.Class == Steady && auto.Late > most {
		return fmt.Errorf("%d moves in the second half of %d us although nothing changes, more than %d: %+v, %+v", auto.Late, auto.Total, most, s, auto)
	}
	if s.Class != Compare || canary != "" && canary != locality.CanaryStubborn { // only that one shows in time
		return nil
	}
	for _, p := range Fixed {
		fixed, err := s.Play(p)
		if err != nil {
			return fmt.Errorf("policy %v, %+v: %w", p, s, err)
		}
		if auto.Total > worstPercent*fixed.Total/100+learning {
			return fmt.Errorf("auto takes %d us, %v %d us: %+v, auto %+v, %v %+v", auto.Total, p, fixed.Total, s, auto, p, fixed)
		}
	}
	return nil
}

// vainWishes is how many wishes may come to nothing: a part that refuses is asked again after 0.5, 1, 2, 4, 8, 16, 16, ... seconds, or when it has room.
func vainWishes(s Shape, over ident.Micros) int {
	return (6+int(over/(2*ident.Second)))*s.Parts + s.Cordons
}
