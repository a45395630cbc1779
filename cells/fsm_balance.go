package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// BalanceMode says who acts on an uneven load. The strings are shown to users.
type BalanceMode string

// Modes of balancing.
const (
	BalanceOff     BalanceMode = "off"     // nobody, unless an operator asks
	BalanceSuggest BalanceMode = "suggest" // an event tells what could be done
	BalanceAuto    BalanceMode = "auto"    // the leader starts operations
)

// CanaryStaleMove plants a bug for tests of the simulator: a balance's move goes where it was planned to, whether it still may or not.
const CanaryStaleMove = "stale-move"

// CanaryTwinVCPU plants another: a vCPU that was handed over stays where it was, too.
const CanaryTwinVCPU = "twin-vcpu"

// MaxBalanceMoves bounds the steps of one balance: what it was planned on is old when the last ones begin.
const MaxBalanceMoves = 64

// SetBalance chooses the mode.
type SetBalance struct {
	Mode BalanceMode `json:"mode"`
	By   string      `json:"by,omitempty"`
}

// Loads says which vCPUs idle now; the root of the load tree proposes it. What is not named stays as it was.
type Loads struct {
	Parts []PartIdle `json:"parts"`
}

// PartIdle counts the vCPUs of a part that idle.
type PartIdle struct {
	VM     ident.VMID     `json:"vm"`
	Server ident.ServerID `json:"server"`
	VCPUs  int            `json:"vcpus"`
}

// Transfer is a move, or a swap, that makes the load more even. With, if not zero, is the VM whose part goes the other way. VCPUs, if not zero, is how many
// of the vCPUs go to the part that the VM has there; the part stays.
type Transfer struct {
	VM       ident.VMID
	From, To ident.ServerID
	VCPUs    int
	With     ident.VMID
	Reason   string
}

// Balancer finds what makes the load more even. Like Placer it is called inside Apply. It leaves the VMs in leave, sorted, alone.
type Balancer interface {
	// Next is the periodic balancer's next transfer.
	Next(st *State, leave []ident.VMID) (Transfer, bool)

	// Steal is the idle balancer's: work of the same cell that waits, for a server with free slots.
	Steal(st *State, leave []ident.VMID) (Transfer, bool)

	// Score tells how uneven the load is, in thousandths of a vCPU; 0 is even.
	Score(st *State) uint64
}

// BalanceMode returns the mode in force.
func (s *State) BalanceMode() BalanceMode {
	if s.Balance == "" {
		return BalanceOff
	}
	return s.Balance
}

func (f *FSM) setBalance(c *SetBalance) *Fault {
	switch c.Mode {
	case BalanceOff, BalanceSuggest, BalanceAuto:
	default:
		return faultf(CodeInvalid, "balance mode %q is none of %q, %q, %q", clip(string(c.Mode), 32), BalanceOff, BalanceSuggest, BalanceAuto)
	}
	if before := f.state.BalanceMode(); before != c.Mode {
		f.state.Balance = c.Mode
		f.emit(Event{Kind: EventBalanceMode, Subject: "cluster", Text: fmt.Sprintf("balancing is %s, was %s", c.Mode, before),
			Fields: map[string]string{"mode": string(c.Mode), "by": clip(c.By, 64)}})
	}
	return nil
}

func (f *FSM) loads(c *Loads) *Fault {
	for _, l := range c.Parts {
		vm := f.state.VM(l.VM)
		if vm == nil {
			continue
		}
		for i := range vm.Parts {
			if p := &vm.Parts[i]; p.Server == l.Server && !p.Standby && !p.Gone {
				p.Idle = min(max(0, l.VCPUs), len(p.VCPUs))
			}
		}
	}
	return nil
}

// planBalance plans transfers one by one, each on what the ones before it leave. No VM is moved twice.
func planBalance(st *State, hooks Hooks, c *StartOperation, op *Operation) (*Operation, *Fault) {
	op.Subject = "cluster"
	if hooks.Balancer == nil || hooks.Mover == nil {
		return nil, faultf(CodeUnknown, "nothing can be balanced here")
	}
	if c.MaxMoves < 0 || c.MaxMoves > MaxBalanceMoves {
		return nil, faultf(CodeInvalid, "%d moves; 1 to %d are allowed", c.MaxMoves, MaxBalanceMoves)
	}
	for i := range st.Operations {
		if o := &st.Operations[i]; o.State == OpRunning && o.Kind == OpBalance {
			return nil, faultf(CodeConflict, "operation %d balances already: `op watch %d` shows it, `op cancel %d` ends it", o.ID, o.ID, o.ID)
		}
	}
	p := planner{st: st.Clone(), hooks: hooks}
	op.ScoreBefore = hooks.Balancer.Score(&p.st)
	var leave []ident.VMID
	for i := range p.st.VMs {
		if vm := &p.st.VMs[i]; vm.State != VMRunning || vm.Move != nil || vm.Hand != nil || c.SettledSinceMs != 0 && vm.MovedMs > c.SettledSinceMs {
			leave = append(leave, vm.ID)
		}
	}
	limit := c.MaxMoves
	if limit == 0 {
		limit = MaxBalanceMoves
	}
	next := hooks.Balancer.Next
	if c.Idle {
		next = hooks.Balancer.Steal
	}
	for len(p.steps) < limit {
		t, ok := next(&p.st, leave)
		if !ok {
			break
		}
		p.transfer(t)
		for _, id := range []ident.VMID{t.VM, t.With} { // whether it can be done or not
			if i, known := slices.BinarySearch(leave, id); id != 0 && !known {
				leave = slices.Insert(leave, i, id)
			}
		}
	}
	op.ScoreAfter = hooks.Balancer.Score(&p.st)
	op.Steps = p.steps
	return op, nil
}

// transfer plans the steps of a transfer, all or none.
func (p *planner) transfer(t Transfer) {
	trial := planner{st: p.st.Clone(), hooks: p.hooks, steps: slices.Clone(p.steps)}
	first := len(trial.steps)
	if t.VCPUs > 0 {
		trial.vcpus(trial.st.VM(t.VM), t)
	} else {
		trial.members(trial.st.VM(t.VM), []ident.ServerID{t.From}, Destination{Server: t.To})
	}
	if t.With != 0 {
		trial.members(trial.st.VM(t.With), []ident.ServerID{t.To}, Destination{Server: t.From})
	}
	if len(trial.blocked) > 0 || len(trial.steps) == first {
		return
	}
	for i := first; i < len(trial.steps); i++ {
		trial.steps[i].Reason = t.Reason
	}
	p.st, p.steps = trial.st, trial.steps
}

// vcpus plans that the last vCPUs of one part go to another one, each by a step of its own.
func (p *planner) vcpus(vm *VM, t Transfer) {
	from := slices.IndexFunc(vm.Parts, func(o VMPart) bool { return o.Server == t.From && !o.Gone && !o.Standby })
	for range t.VCPUs {
		if from < 0 || len(vm.Parts[from].VCPUs) == 0 {
			p.blocked = append(p.blocked, fmt.Sprintf("vm %s: it has no vCPU there", vm.Spec.Name))
			return
		}
		f := &vm.Parts[from]
		id := f.VCPUs[len(f.VCPUs)-1]
		to, fault := p.st.partFor(vm, id, Destination{Server: t.To})
		if fault != nil {
			p.blocked = append(p.blocked, fault.Text)
			return
		}
		p.add(StepVCPU, vm, f, t.To)
		last := &p.steps[len(p.steps)-1]
		last.VCPU, last.Bytes = id, 0
		vm.handOver(id, f.Part, to.Part)
	}
}

// putOff tells what becomes of an exact operation's step that cannot be taken now: it waits for those before it, which may make room, or is left out.
func (o *Operation) putOff(i int, why string) {
	s := &o.Steps[i]
	s.Note = why
	if !slices.ContainsFunc(o.Steps[:i], func(x OpStep) bool { return !x.State.over() }) {
		s.State = StepSkipped
	}
}

// givenUp is the end of a step that was tried too often.
func (o *Operation) givenUp() StepState {
	if o.exact() {
		return StepSkipped
	}
	return StepFailed
}
