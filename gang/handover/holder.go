package handover

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// Op is what home asks a part for.
type Op uint8

// The operations. Each may be repeated.
const (
	Stop    Op = iota + 1 // source: stop the vCPU and capture it
	Install               // target: put the captured state in place
	Run                   // target: it is yours
	Leave                 // source: it is no longer yours
	Forget                // target: it does not come
	Resume                // source: it stays
	opEnd
)

var opNames = [...]string{"", "stop", "install", "run", "leave", "forget", "resume"}

// Known tells whether this is one of the operations.
func (o Op) Known() bool { return o > 0 && o < opEnd }

// String names the operation.
func (o Op) String() string {
	if o.Known() {
		return opNames[o]
	}
	return fmt.Sprintf("operation %d", uint8(o))
}

// Verdict is a part's answer.
type Verdict uint8

// The verdicts.
const (
	NoAnswer Verdict = iota // lost, or not yet: ask again
	Done                    // it is so, now or since before
	Refused                 // it is not so, and will not be under this number
)

// State is what a part has of a vCPU.
type State uint8

// The states of a vCPU at one part. It runs in Here only.
const (
	Away      State = iota
	Here            // this part's
	Stopping        // it is to be captured as soon as it stops
	Stopped         // captured; it waits for home's word
	Installed       // in place; it waits for home's word
)

var stateNames = [...]string{"away", "here", "stopping", "stopped", "installed"}

// String names the state.
func (s State) String() string { return stateNames[s] }

// Holder is one part's side: what it has of each vCPU.
//
//	source   Here --Stop--> Stopping --captured--> Stopped --Leave--> Away
//	            ^--------------Resume----------------/
//	target   Away --Install--> Installed --Run--> Here
//	            ^----Forget-----/
type Holder struct {
	vcpus  []held
	canary string
}

type held struct {
	state State
	seq   uint64 // of the hand-over that is under way
	done  uint64 // the last one that ended here
}

// NewHolder returns the holder of a part that has none of so many vCPUs. canary plants a bug, for the simulator.
func NewHolder(vcpus int, canary string) *Holder {
	return &Holder{vcpus: make([]held, vcpus), canary: canary}
}

// Begin begins a life of the guest, in which this part has these vCPUs first. Numbers of hand-overs go on rising.
func (h *Holder) Begin(mine []ident.VCPU) {
	for i := range h.vcpus {
		v := &h.vcpus[i]
		*v = held{done: max(v.done, v.seq)}
	}
	for _, id := range mine {
		if int(id) < len(h.vcpus) {
			h.vcpus[id].state = Here
		}
	}
}

// State is what this part has of a vCPU.
func (h *Holder) State(id ident.VCPU) State {
	if int(id) >= len(h.vcpus) {
		return Away
	}
	return h.vcpus[id].state
}

// Runs tells whether this part may run the vCPU.
func (h *Holder) Runs(id ident.VCPU) bool {
	s := h.State(id)
	return s == Here || h.canary == CanaryEager && s == Installed
}

// Take takes an operation of home's and returns the answer. The caller carries out what has changed before it gives the answer: an Install that is
// Done must be in place, after a Stop that came to NoAnswer the vCPU is to be captured and Captured called, after which the Stop is answered.
func (h *Holder) Take(op Op, id ident.VCPU, seq uint64) Verdict {
	if int(id) >= len(h.vcpus) || !op.Known() || seq == 0 {
		return Refused
	}
	v := &h.vcpus[id]
	switch op {
	case Stop:
		return v.stop(seq)
	case Install:
		return v.install(seq, h.canary)
	case Run:
		return v.end(seq, Installed, Here, op, h.canary)
	case Leave:
		return v.end(seq, Stopped, Away, op, h.canary)
	case Forget:
		return v.end(seq, Installed, Away, op, h.canary)
	}
	if v.state == Stopping && v.seq == seq {
		v.state = Stopped // it was never captured, and need not be
	}
	return v.end(seq, Stopped, Here, op, h.canary)
}

func (v *held) stop(seq uint64) Verdict {
	switch {
	case v.state == Stopped && v.seq == seq:
		return Done
	case v.state == Stopping && v.seq == seq:
		return NoAnswer
	case v.state != Here || seq <= v.done:
		return Refused
	}
	v.state, v.seq = Stopping, seq
	return NoAnswer
}

// Captured says that a vCPU has stopped and its state is at hand; false: it is not awaited any more, and goes on.
func (h *Holder) Captured(id ident.VCPU) bool {
	v := &h.vcpus[id]
	if v.state != Stopping {
		return false
	}
	v.state = Stopped
	return true
}

func (v *held) install(seq uint64, canary string) Verdict {
	switch {
	case v.state == Installed && v.seq == seq:
		return Done
	case v.state != Away || seq <= v.done && canary != CanaryStale:
		return Refused
	}
	v.state, v.seq = Installed, seq
	return Done
}

// end ends this part's share in a hand-over: from one state to another. Said again, it is as it was said. An end that comes before the begin keeps
// the begin from happening.
func (v *held) end(seq uint64, from, to State, op Op, canary string) Verdict {
	switch {
	case v.state == from && v.seq == seq:
		v.state, v.done = to, seq
		return Done
	case v.done >= seq:
		return Done
	case op == Run || op == Leave: // only what was begun is committed
		return Refused
	case v.state != to:
		return Refused
	case canary != CanaryStale:
		v.done = seq
	}
	return Done
}

// Bugs that can be planted, to prove that the simulator's checks find them.
const (
	CanaryEager  = "eager"  // a target runs what is installed, without waiting for the commit
	CanaryStale  = "stale"  // a target takes an Install that was forgotten already
	CanaryCommit = "commit" // home commits without the target's answer
	CanaryRevoke = "revoke" // home aborts after the commit
)

// Canaries lists them.
var Canaries = []string{CanaryEager, CanaryStale, CanaryCommit, CanaryRevoke}
