package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

func (f *FSM) startOperation(c *StartOperation, index uint64) (any, *Fault) {
	op, fault := PlanOperation(&f.state, f.hooks, c)
	if fault != nil {
		return nil, fault
	}
	op.ID, op.StartedMs = OpID(index), f.now.UnixMs
	for _, id := range op.Servers {
		f.state.Server(id).Cordoned = op.Kind == OpDrain
	}
	f.state.Operations = append(f.state.Operations, *op)
	for i := 0; len(f.state.Operations) > MaxOperations && i < len(f.state.Operations); {
		if f.state.Operations[i].State == OpRunning {
			i++
			continue
		}
		f.state.Operations = slices.Delete(f.state.Operations, i, i+1)
	}
	text := fmt.Sprintf("operation %d started: %s %s, %d steps", op.ID, op.Kind, op.Subject, len(op.Steps))
	if op.Reason != "" {
		text += ": " + op.Reason
	}
	f.emit(Event{Kind: EventOpStarted, Subject: op.Subject, Text: text, Fields: map[string]string{"operation": fmt.Sprint(op.ID), "by": op.By}})
	if op.Kind == OpRestore {
		f.tendAllStandbys()
	}
	f.tendOperations()
	return f.state.Operation(op.ID), nil
}

func (f *FSM) endOperation(c *EndOperation) *Fault {
	op := f.state.Operation(c.ID)
	switch {
	case op == nil:
		return faultf(CodeNotFound, "no operation has the number %d", c.ID)
	case op.State != OpRunning:
		return faultf(CodeConflict, "operation %d is %s already", c.ID, op.State)
	case !c.Expired:
		note := "cancelled"
		if c.By != "" {
			note += " by " + clip(c.By, 64)
		}
		f.closeOperation(op, OpCancelled, note)
	case op.Kind == OpDrain && op.OnDeadline == DeadlineStop:
		f.releaseMoves(op)
		for i := range f.state.VMs {
			if vm := &f.state.VMs[i]; vm.State.Active() && vm.runsOn(op.Servers) {
				f.finish(vm, VMStopped, fmt.Sprintf("%s was still being drained at its deadline", op.Subject), 0)
			}
		}
	default:
		left := 0
		for _, s := range op.Steps {
			if !s.State.over() {
				left++
			}
		}
		f.closeOperation(op, OpFailed, fmt.Sprintf("the deadline passed with %d of %d steps not done", left, len(op.Steps)))
	}
	if op.State == OpRunning {
		op.DeadlineMs = 0 // what is left to do takes no time of the guests
	}
	return nil
}

// closeOperation ends an operation. What is under way is given up; what was moved stays where it is.
func (f *FSM) closeOperation(op *Operation, state OpState, note string) {
	f.releaseMoves(op)
	op.State, op.Note, op.EndedMs = state, clip(note, 512), f.now.UnixMs
	kind := map[OpState]EventKind{OpDone: EventOpDone, OpFailed: EventOpFailed, OpCancelled: EventOpCancelled}[state]
	text := fmt.Sprintf("operation %d, %s %s, is %s", op.ID, op.Kind, op.Subject, state)
	if note != "" {
		text += ": " + op.Note
	}
	f.emit(Event{Kind: kind, Subject: op.Subject, Text: text, Fields: map[string]string{"operation": fmt.Sprint(op.ID)}})
}

func (f *FSM) releaseMoves(op *Operation) {
	for i := range f.state.VMs {
		if vm := &f.state.VMs[i]; vm.Move != nil && vm.Move.Op == op.ID {
			f.abandon(vm, "the operation has ended")
		}
	}
}

// runsOn tells whether a member of the VM is on one of the servers.
func (v *VM) runsOn(servers []ident.ServerID) bool {
	return slices.ContainsFunc(v.Members(), func(p VMPart) bool { return slices.Contains(servers, p.Server) })
}

// tendOperations takes all operations as far as they can go now. It follows every command that changed something.
func (f *FSM) tendOperations() {
	for i := range f.state.VMs {
		if vm := &f.state.VMs[i]; vm.Move != nil {
			f.followMove(vm)
		}
	}
	for i := range f.state.Operations {
		if op := &f.state.Operations[i]; op.State == OpRunning {
			f.tendOperation(op)
		}
	}
}

func (f *FSM) tendOperation(op *Operation) {
	busy, left, failed := 0, 0, ""
	for i := range op.Steps {
		f.followStep(op, &op.Steps[i])
		if s := op.Steps[i]; s.Kind != StepStandby && s.State.busy() {
			busy++
		}
	}
	op.Note = ""
	for i := range op.Steps {
		s := &op.Steps[i]
		if s.State == StepWaiting && busy < op.MaxParallel {
			f.beginStep(op, i)
			if s.Kind != StepStandby && s.State.busy() {
				busy++
			}
		}
		switch {
		case s.State == StepFailed && failed == "":
			failed = fmt.Sprintf("vm %s: %s", s.Name, s.Note)
		case !s.State.over():
			left++
			if op.Note == "" && s.Note != "" {
				op.Note = fmt.Sprintf("vm %s: %s", s.Name, s.Note)
			}
		}
	}
	switch {
	case failed != "":
		f.closeOperation(op, OpFailed, failed)
	case left > 0:
	case op.Kind == OpDrain && f.addSteps(op):
	case f.awaitsProtection(op), op.Kind == OpDrain && f.awaitsLoans(op):
	default:
		f.closeOperation(op, OpDone, "")
	}
}

// followStep ends a step that is over without a word of its own.
func (f *FSM) followStep(op *Operation, s *OpStep) {
	vm := f.state.VM(s.VM)
	switch {
	case s.State.over():
	case vm == nil || !vm.State.Active():
		s.State, s.Note = op.ofEndedVM(), "the vm has ended"
	case s.State == StepResuming && vm.Moved.Epoch < vm.Epoch:
		s.State, s.Note = StepDone, "another loss followed at once: the vm went on from its replica"
	case s.State == StepResuming && vm.Resumed:
		s.State, s.Down = StepDone, vm.Moved.CutMicros // home runs again, and how long it took is not known
	case s.Kind == StepStandby && s.State == StepCopying:
		f.followStandby(op, s, vm)
	case s.Kind == StepVCPU && s.State.busy() && s.State != StepResuming && vm.Hand == nil && vm.Move == nil:
		s.State, s.Note = op.givenUp(), "the vm began anew meanwhile: its vCPUs are where they were"
	}
}

// beginStep begins a step if it can be taken now; its note says why not.
func (f *FSM) beginStep(op *Operation, i int) {
	s := &op.Steps[i]
	vm := f.state.VM(s.VM)
	at := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Server == s.From && !p.Gone && p.Standby == (s.Kind == StepStandby) })
	switch {
	case at < 0:
		s.State, s.Note = StepDone, "it has left already"
	case vm.Move != nil, vm.Hand != nil:
		s.Note = "another move of the vm is under way"
	case vm.Saving.Token != "":
		s.Note = "the vm is being saved"
	case vm.State != VMRunning:
		s.Note = "the vm is starting"
	case s.Kind == StepStandby:
		f.moveStandby(op, i, vm)
	case s.Kind == StepVCPU:
		f.beginHand(op, i, vm)
	default:
		parts := []ident.Part{vm.Parts[at].Part}
		target, fault := f.target(vm, parts, s.To, op.destination(s))
		if fault != nil && f.hooks.Canary == CanaryStaleMove {
			target, fault = s.To, nil
		}
		if fault != nil && op.exact() {
			op.putOff(i, fault.Text)
			return
		}
		if fault != nil {
			s.Note = fault.Text
			if op.Kind != OpDrain {
				s.State = StepFailed
			}
			return
		}
		if op.Kind == OpBalance && vm.spreads(at, f.state.Server(target).Cell) {
			s.State, s.Note = op.givenUp(), "the vm got another part meanwhile: it would depend on one cell more"
			return
		}
		if f.startMove(vm, &Move{Op: op.ID, Step: i, Parts: parts}, target) {
			s.State, s.Note, s.To, s.ToName = StepCopying, "", target, f.state.Server(target).Name
			f.followMove(vm)
		}
	}
}

// spreads tells whether a VM depends on more cells once its part at an index of Parts is in another one.
func (v *VM) spreads(at int, cell ident.CellName) bool {
	after := v.clone()
	after.Parts[at].Cell = cell
	return len(after.Cells()) > len(v.Cells())
}

// target finds the server that parts of a VM go to: the one that was planned if it still can take them.
func (f *FSM) target(vm *VM, parts []ident.Part, planned ident.ServerID, to Destination) (ident.ServerID, *Fault) {
	if f.hooks.Mover == nil {
		return 0, faultf(CodeUnknown, "nothing can be moved here")
	}
	if planned != 0 && to.Server == 0 {
		if id, fault := f.hooks.Mover.Target(&f.state, vm, parts, Destination{Server: planned}); fault == nil {
			return id, nil
		}
	}
	return f.hooks.Mover.Target(&f.state, vm, parts, to)
}

// addSteps adds steps for what still is on the servers of a drain, and tells whether there is any, blocked or not.
func (f *FSM) addSteps(op *Operation) bool {
	more, blocked := planSteps(f.state.Clone(), f.hooks, op.Servers, Destination{})
	if len(blocked) > 0 {
		op.Note = blocked[0]
	}
	op.Steps = append(op.Steps, more...)
	return len(more)+len(blocked) > 0
}

// drains returns the running drain of a server of one of the parts, 0 if there is none.
func (f *FSM) drains(vm *VM, parts []ident.Part) OpID {
	for i := range f.state.Operations {
		op := &f.state.Operations[i]
		for _, p := range vm.Parts {
			if op.Kind == OpDrain && op.State == OpRunning && slices.Contains(parts, p.Part) && slices.Contains(op.Servers, p.Server) {
				return op.ID
			}
		}
	}
	return 0
}

// awaitsProtection tells whether a VM that the operation moved is still without the replicas that it had before.
func (f *FSM) awaitsProtection(op *Operation) bool {
	for _, s := range op.Steps {
		if vm := f.state.VM(s.VM); vm != nil && vm.Protection() == "syncing" {
			op.Note = fmt.Sprintf("vm %s: its new replica is not complete yet", s.Name)
			return true
		} else if vm != nil && vm.Mirroring() == "syncing" {
			op.Note = fmt.Sprintf("vm %s: the new mirror of its disks is not in step yet", s.Name)
			return true
		}
	}
	return false
}
