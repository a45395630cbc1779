package cells

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// startMove gives the VM a standby on the target, or takes one that it has there.
func (f *FSM) startMove(vm *VM, move *Move, target ident.ServerID) bool {
	s := f.state.Server(target)
	f.dropStandbys(vm, func(p *VMPart) bool { return p.Mirror && p.Server == target }) // a copy of the whole VM takes its place
	if i := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Standby && p.Server == target }); i >= 0 {
		move.Image = vm.Parts[i].Part
	} else {
		part, ok := vm.freePart()
		if !ok {
			return false
		}
		move.Image, move.Added = part, true
		vm.Parts = append(vm.Parts, VMPart{Part: part, Server: s.ID, ServerName: s.Name, Cell: s.Cell, Incarnation: s.Incarnation, Standby: true})
	}
	vm.Move = move
	text := fmt.Sprintf("vm %s moves to %s: a copy is made there", vm.Spec.Name, s.Name)
	if move.VCPU != nil {
		text = fmt.Sprintf("vm %s gets a part on %s for its vCPU %d: a copy is made there", vm.Spec.Name, s.Name, *move.VCPU)
	}
	f.emit(Event{Kind: EventVMMoving, Subject: "vm " + vm.Spec.Name, Text: text, Fields: map[string]string{"operation": fmt.Sprint(move.Op), "to": string(s.Name)}})
	return true
}

// followMove takes a VM's move on, or notes that it has ended.
func (f *FSM) followMove(vm *VM) {
	m := vm.Move
	leaves := slices.ContainsFunc(vm.Parts, func(p VMPart) bool { return slices.Contains(m.Parts, p.Part) && !p.Gone }) ||
		m.VCPU != nil && vm.holder(*m.VCPU) != nil
	image := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Part == m.Image })
	switch {
	case !vm.State.Active():
		f.endMove(vm, f.state.Operation(m.Op).ofEndedVM(), fmt.Sprintf("the vm is %s: %s", vm.State, vm.Reason))
	case !leaves:
		f.endMove(vm, StepDone, "what was to be moved is gone: the vm went on without it")
	case image < 0:
		f.endMove(vm, StepWaiting, "the target was lost")
	case !vm.Parts[image].Standby:
		f.endMove(vm, StepWaiting, "the vm went on from the target, after a loss")
	case vm.Safe() && vm.Parts[image].Ready && m.Switching != vm.ProtectSeq:
		m.Switching = vm.ProtectSeq
		f.setStep(vm, StepSwitching, "")
	case !vm.Safe() && m.Switching != 0:
		m.Switching = 0 // its standbys have changed: home goes on, and makes them safe anew
		f.setStep(vm, StepCopying, "")
	}
}

// endMove forgets a move. A step that has to be taken again is given up after some tries.
func (f *FSM) endMove(vm *VM, state StepState, note string) {
	if state == StepWaiting {
		if s := f.step(vm.Move.Op, vm.Move.Step); s != nil {
			if s.Tries++; s.Tries >= maxTries {
				state = f.state.Operation(vm.Move.Op).givenUp()
			}
		}
		f.emit(Event{Kind: EventOpStep, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s was not moved: %s", vm.Spec.Name, note),
			Fields: map[string]string{"operation": fmt.Sprint(vm.Move.Op)}})
	}
	f.setStep(vm, state, note)
	vm.Move = nil
}

func (f *FSM) step(op OpID, i int) *OpStep {
	if o := f.state.Operation(op); o != nil && i < len(o.Steps) {
		return &o.Steps[i]
	}
	return nil
}

// setStep follows a VM's move in the operation that it belongs to.
func (f *FSM) setStep(vm *VM, state StepState, note string) {
	if s := f.step(vm.Move.Op, vm.Move.Step); s != nil && !s.State.over() {
		s.State, s.Note = state, note
	}
}

// abandon ends a VM's move where it stands: it runs on where it is.
func (f *FSM) abandon(vm *VM, note string) {
	m := vm.Move
	f.endMove(vm, StepWaiting, note)
	if m.Added {
		f.dropStandbys(vm, func(p *VMPart) bool { return p.Part == m.Image })
	} else if m.Switching != 0 {
		vm.ProtectSeq++ // home hears that it goes on
		vm.SafeSeq = 0
	}
}

func (f *FSM) abandonMove(c *AbandonMove) *Fault {
	vm := f.state.VM(c.VM)
	if vm == nil || vm.Move == nil || vm.Move.Image != c.Image || vm.Move.Switching != c.Switching {
		return faultf(CodeConflict, "vm %d: the move is not where it was", c.VM)
	}
	f.abandon(vm, clip(c.Reason, 256))
	return nil
}

// switchVM is the switchover: the VM goes on from the target. All standbys hold all that it did, so it is as a loss of the parts that leave, with
// nothing lost. Where only a vCPU leaves, its former part and all others begin the new epoch as members.
func (f *FSM) switchVM(c *SwitchVM) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	m := vm.Move
	if m == nil || p.Part != vm.Home || m.VCPU != nil && vm.holder(*m.VCPU) == nil || m.Switching == 0 || m.Switching != c.Seq || vm.ProtectSeq != c.Seq || !vm.Safe() {
		return faultf(CodeConflict, "vm %s: a switchover under protection %d is not what is awaited", vm.Spec.Name, c.Seq)
	}
	f.setStep(vm, StepResuming, "")
	vm.Move = nil
	origin := f.origin(vm, m)
	f.takeOver(vm, m.Image, m.Parts, true)
	if m.VCPU != nil {
		vm.handOver(*m.VCPU, vm.holder(*m.VCPU).Part, m.Image)
	}
	for i := range vm.Parts {
		if p := &vm.Parts[i]; p.Part == m.Image {
			p.Origin = origin
		}
	}
	vm.MovedMs = f.now.UnixMs
	vm.Moved = Moved{Op: m.Op, Step: m.Step, Epoch: vm.Epoch, CutMicros: c.CutMicros}
	f.roomier = true
	f.tendStandbys(vm)
	return nil
}

// origin says where a restore is to bring back what a move takes along: a drain notes where it took it from, unless it is away from somewhere else
// already. Whoever moves it for another reason decides that it stays.
func (f *FSM) origin(vm *VM, m *Move) ident.ServerID {
	if op := f.state.Operation(m.Op); op == nil || op.Kind != OpDrain {
		return 0
	}
	for _, p := range vm.Parts {
		if slices.Contains(m.Parts, p.Part) {
			return cmp.Or(p.Origin, p.Server)
		}
	}
	return 0
}

func (f *FSM) vmMoved(c *VMMoved) *Fault {
	vm := f.state.VM(c.VM)
	if vm == nil || vm.Moved.Epoch != c.Epoch || c.Epoch == 0 {
		return faultf(CodeConflict, "vm %d was not moved in its epoch %d", c.VM, c.Epoch)
	}
	vm.Resumed = vm.Resumed || vm.Epoch == c.Epoch
	down := vm.Moved.CutMicros + c.ResumeMicros
	if s := f.step(vm.Moved.Op, vm.Moved.Step); s != nil && s.State == StepResuming {
		s.State, s.Down = StepDone, down
	}
	f.emit(Event{Kind: EventVMMoved, Subject: "vm " + vm.Spec.Name,
		Text:   fmt.Sprintf("vm %s runs on %s: it stood still for %d.%d ms", vm.Spec.Name, partNames(vm), down/1000, down%1000/100),
		Fields: map[string]string{"operation": fmt.Sprint(vm.Moved.Op), "down_us": fmt.Sprint(int64(down)), "vm_epoch": fmt.Sprint(c.Epoch)}})
	return nil
}
