package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Hand is a vCPU on its way from one part of its VM to another. Home's worker carries it out (see package gang/handover); the registry follows what home
// has decided.
//
//	(none) --step begins, or home pulls--> Hand --home: it is the target's, VCPUs follow / it stays--> (none)
//	                          \---a new life of the guest, which begins with the registry's placement--> (none)
type Hand struct {
	Op   OpID       `json:"op,omitempty"` // 0: home wished for it
	Step int        `json:"step"`
	Seq  uint64     `json:"seq"`
	VCPU ident.VCPU `json:"vcpu"`
	From ident.Part `json:"from"`
	To   ident.Part `json:"to"`
}

// VCPUHanded is home's word on a hand-over that has ended.
type VCPUHanded struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Seq         uint64            `json:"seq"`
	Moved       bool              `json:"moved"`
	Why         string            `json:"why,omitempty"`
	DownMicros  ident.Micros      `json:"down_micros,omitempty"`
}

// PullVCPU is home's wish that a vCPU goes to another part of the VM, where its pages are.
type PullVCPU struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	VCPU        ident.VCPU        `json:"vcpu"`
	To          ident.Part        `json:"to"`
}

// pullToldMs is how often at most an event tells that a VM's vCPUs are pulled about.
const pullToldMs = 10_000

// pullVCPU begins a hand-over that no operation asks for, if nothing else is going on.
func (f *FSM) pullVCPU(c *PullVCPU) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	from := vm.holder(c.VCPU)
	at := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Part == c.To && !p.Gone && !p.Standby })
	switch {
	case p.Part != vm.Home || vm.Spec.Linux != nil || from == nil || at < 0 || from.Part == c.To:
		return faultf(CodeInvalid, "vm %s: part %d cannot have vCPU %d go to part %d", vm.Spec.Name, c.Part, c.VCPU, c.To)
	case vm.State != VMRunning || vm.Paused || vm.Move != nil || vm.Hand != nil || vm.Saving.Token != "":
		return faultf(CodeConflict, "vm %s: something else is done with it", vm.Spec.Name)
	}
	to, fault := f.state.partFor(vm, c.VCPU, Destination{Server: vm.Parts[at].Server})
	if fault != nil {
		return fault
	}
	vm.HandSeq++
	vm.Hand = &Hand{Seq: vm.HandSeq, VCPU: c.VCPU, From: from.Part, To: to.Part}
	return nil
}

// holder returns the part that has a vCPU, or nil.
func (v *VM) holder(id ident.VCPU) *VMPart {
	for i := range v.Parts {
		if p := &v.Parts[i]; !p.Gone && !p.Standby && slices.Contains(p.VCPUs, id) {
			return p
		}
	}
	return nil
}

// handOver makes a vCPU another part's. How many of theirs idle is what is known until the next reports.
func (v *VM) handOver(id ident.VCPU, from, to ident.Part) {
	for i := range v.Parts {
		p := &v.Parts[i]
		if p.Part == from {
			p.VCPUs = slices.DeleteFunc(slices.Clone(p.VCPUs), func(o ident.VCPU) bool { return o == id })
			p.Idle = min(p.Idle, len(p.VCPUs))
		}
		if p.Part == to {
			p.VCPUs = append(slices.Clone(p.VCPUs), id)
			slices.Sort(p.VCPUs)
		}
	}
}

// planVCPU plans that one vCPU goes to another part of its VM.
func planVCPU(st *State, hooks Hooks, c *StartOperation, op *Operation) (*Operation, *Fault) {
	vm, id := st.VMNamed(c.VM), *c.VCPU
	op.Subject = fmt.Sprintf("vCPU %d of vm %s", id, c.VM)
	from := vm.holder(id)
	switch {
	case vm.Spec.Linux != nil && len(vm.Members()) == 1:
		return nil, faultf(CodeInvalid, "vm %s: the vCPUs of a Linux machine on one server move with it only: leave --vcpu out", c.VM)
	case vm.Spec.Linux != nil && id == 0:
		return nil, faultf(CodeInvalid, "vm %s: vCPU 0, the boot processor of a Linux machine, stays at home with its devices", c.VM)
	case int(id) >= vm.Spec.VCPUs:
		return nil, faultf(CodeInvalid, "vm %s has no vCPU %d: it has %d, numbered from 0", c.VM, id, vm.Spec.VCPUs)
	case vm.Paused:
		return nil, faultf(CodeConflict, "vm %s is paused: `vm resume %s` first", c.VM, c.VM)
	case from == nil:
		return nil, faultf(CodeConflict, "vm %s: vCPU %d is gone, with the server that it was on", c.VM, id)
	case len(c.Cells)+len(c.Servers) > 0:
		return nil, faultf(CodeInvalid, "vm %s: --vcpu says what moves: leave --from out", c.VM)
	case op.To.Server == from.Server || op.To.Cell != "" && op.To.Cell == from.Cell:
		return nil, faultf(CodeConflict, "vm %s: vCPU %d is on %s already", c.VM, id, from.ServerName)
	case op.To == Destination{}:
		return nil, faultf(CodeInvalid, "vm %s: name the server or the cell that vCPU %d is to go to", c.VM, id)
	}
	step := OpStep{Kind: StepVCPU, State: StepWaiting, VM: vm.ID, Name: vm.Spec.Name, VCPU: id, From: from.Server, FromName: from.ServerName, Reason: clip(c.Reason, 256)}
	to, fault := st.partFor(vm, id, op.To)
	switch {
	case fault == nil:
		step.To, step.ToName = to.Server, to.ServerName
	case vm.runsOn([]ident.ServerID{op.To.Server}), vm.Spec.Linux != nil: // a Linux machine has the parts that it booted with
		return nil, fault
	case len(from.VCPUs) == 1: // its part would be left without one: it goes along
		p := planner{st: st.Clone(), hooks: hooks}
		p.members(p.st.VM(vm.ID), []ident.ServerID{from.Server}, op.To)
		if len(p.blocked) > 0 {
			return nil, faultf(CodeNoCapacity, "%s", p.blocked[0])
		}
		op.Steps = p.steps
		return op, nil
	default:
		target, none := st.newPart(hooks, vm, op.To)
		if none != nil {
			return nil, none
		}
		step.To, step.ToName, step.Bytes = target, st.Server(target).Name, vm.Spec.MemoryBytes
	}
	op.Steps = []OpStep{step}
	return op, nil
}

// newPart finds the server on which a VM gets one part more, for a vCPU.
func (s *State) newPart(hooks Hooks, vm *VM, to Destination) (ident.ServerID, *Fault) {
	if vm.Spec.Linux != nil {
		return 0, faultf(CodeInvalid, "vm %s: a Linux machine has the parts that it booted with", vm.Spec.Name)
	}
	if n := len(vm.Parts); n >= ident.MaxParts {
		return 0, faultf(CodeNoCapacity, "vm %s has %d parts and replicas: there cannot be more", vm.Spec.Name, n)
	}
	if hooks.Mover == nil {
		return 0, faultf(CodeUnknown, "nothing can be moved here")
	}
	target, fault := hooks.Mover.Target(s, vm, nil, to)
	if fault != nil {
		return 0, fault
	}
	// Where its replica lies, the VM would survive no loss of that cell until another replica is complete.
	sv := s.Server(target)
	after := vm.clone()
	after.Parts = append(after.Parts, VMPart{Server: target, Cell: sv.Cell})
	held := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Standby && !p.Mirror && p.Cell == sv.Cell })
	if vm.Spec.Protect == ProtectReplica && held >= 0 && !after.covered(func(p *VMPart) bool { return p.Holds && p.Server != target }) {
		return 0, faultf(CodeConflict, "vm %s: its replica is on %s: a part in the same cell would leave it unprotected for a while. Name a server in another cell, or end its protection (`vm protect %s none`) first",
			vm.Spec.Name, vm.Parts[held].ServerName, vm.Spec.Name)
	}
	return target, nil
}

// partFor chooses the part that a vCPU goes to: of those at the destination the one with most slots left.
func (s *State) partFor(vm *VM, id ident.VCPU, to Destination) (*VMPart, *Fault) {
	var best *VMPart
	var refused *Fault
	for i := range vm.Parts {
		p := &vm.Parts[i]
		if p.Gone || p.Standby || to.Server != 0 && p.Server != to.Server || to.Cell != "" && p.Cell != to.Cell {
			continue
		}
		switch sv := s.Server(p.Server); {
		case sv == nil || sv.State != ServerLive:
			refused = faultf(CodeConflict, "vm %s: server %s is not live", vm.Spec.Name, p.ServerName)
		case sv.Cordoned:
			refused = faultf(CodeConflict, "vm %s: server %s is cordoned: `server uncordon %s` lets work on again", vm.Spec.Name, p.ServerName, p.ServerName)
		case len(p.VCPUs)+1 > sv.Slots:
			refused = faultf(CodeNoCapacity, "vm %s: server %s has %d slots and runs %d of its vCPUs already; one more would share a slot with a sibling",
				vm.Spec.Name, p.ServerName, sv.Slots, len(p.VCPUs))
		case best == nil || sv.Slots-len(p.VCPUs) > s.Server(best.Server).Slots-len(best.VCPUs):
			best = p
		}
	}
	switch {
	case best != nil:
		return best, nil
	case refused != nil:
		return nil, refused
	}
	return nil, faultf(CodeConflict, "vm %s has no part there, it runs on %s", vm.Spec.Name, partNames(vm))
}

// beginHand begins a step that hands a vCPU over; its note says why not.
func (f *FSM) beginHand(op *Operation, i int, vm *VM) {
	s := &op.Steps[i]
	from := vm.holder(s.VCPU)
	to, fault := f.state.partFor(vm, s.VCPU, Destination{Server: s.To})
	if fault != nil && f.hooks.Canary == CanaryStaleMove {
		if at := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Server == s.To && !p.Gone && !p.Standby }); at >= 0 {
			to, fault = &vm.Parts[at], nil
		}
	}
	switch {
	case from != nil && from.Server == s.To:
		s.State, s.Note = StepDone, ""
	case from == nil || from.Server != s.From:
		s.State, s.Note = op.givenUp(), "it is no longer there"
	case vm.Paused && op.exact():
		op.putOff(i, "the vm is paused")
	case vm.Paused:
		s.Note = "the vm is paused"
	case fault != nil && !vm.runsOn([]ident.ServerID{s.To}) && !op.exact():
		f.beginJoin(op, i, vm)
	case fault != nil:
		s.State, s.Note = op.givenUp(), fault.Text
	default:
		vm.HandSeq++
		vm.Hand = &Hand{Op: op.ID, Step: i, Seq: vm.HandSeq, VCPU: s.VCPU, From: from.Part, To: to.Part}
		s.State, s.Note = StepSwitching, ""
	}
}

// beginJoin begins a step that takes a vCPU to a server which has no part of the VM. That is a move in which no part leaves.
//
// All that a member has to do to join is what a standby does that takes over: it has the whole memory as of the last checkpoint, the states of all vCPUs
// and devices, and the others ask it for what they need. So whatever fails meanwhile is what it is in a move.
func (f *FSM) beginJoin(op *Operation, i int, vm *VM) {
	s := &op.Steps[i]
	to := Destination{Server: s.To}
	target, fault := f.state.newPart(f.hooks, vm, to)
	if fault != nil && op.To.Server == 0 {
		target, fault = f.state.newPart(f.hooks, vm, op.To)
	}
	if fault != nil {
		s.State, s.Note = StepFailed, fault.Text
		return
	}
	id := s.VCPU
	if f.startMove(vm, &Move{Op: op.ID, Step: i, VCPU: &id}, target) {
		s.State, s.Note, s.To, s.ToName = StepCopying, "", target, f.state.Server(target).Name
		f.followMove(vm)
	}
}

// vcpuHanded takes home's word.
func (f *FSM) vcpuHanded(c *VCPUHanded) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	h := vm.Hand
	if h == nil || h.Seq != c.Seq || p.Part != vm.Home {
		return faultf(CodeConflict, "vm %s: hand-over %d is not what is awaited", vm.Spec.Name, c.Seq)
	}
	vm.Hand = nil
	s := f.step(h.Op, h.Step)
	if !c.Moved {
		if s != nil && !s.State.over() {
			s.State, s.Note = f.state.Operation(h.Op).givenUp(), clip(c.Why, 256)
		}
		return nil
	}
	if f.hooks.Canary == CanaryTwinVCPU {
		vm.handOver(h.VCPU, h.To, h.To)
	} else if from := vm.holder(h.VCPU); from != nil {
		vm.handOver(h.VCPU, from.Part, h.To)
	}
	for i := range vm.Parts {
		if to := &vm.Parts[i]; to.Part == h.To {
			if h.Op == 0 && f.now.UnixMs-vm.PulledMs < pullToldMs {
				continue
			}
			f.emit(Event{Kind: EventVCPUMoved, Subject: "vm " + vm.Spec.Name,
				Text:   fmt.Sprintf("vCPU %d of vm %s runs on %s: it stood still for %d us", h.VCPU, vm.Spec.Name, to.ServerName, c.DownMicros),
				Fields: map[string]string{"operation": fmt.Sprint(h.Op), "vcpu": fmt.Sprint(h.VCPU), "to": string(to.ServerName), "down_us": fmt.Sprint(int64(c.DownMicros))}})
		}
	}
	if h.Op == 0 {
		if f.now.UnixMs-vm.PulledMs >= pullToldMs {
			vm.PulledMs = f.now.UnixMs
		}
		return nil
	}
	vm.MovedMs = f.now.UnixMs
	if s != nil && !s.State.over() {
		s.State, s.Down = StepDone, c.DownMicros
	}
	return nil
}
