package cells

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// A replica goes elsewhere without a moment in which there is none: its successor is made first.
//
//	waiting --successor placed--> copying --successor holds a checkpoint: the old one goes--> copying --home says that all is safe--> done
//	   ^                            |
//	   +---- successor lost --------+

// standbyOn returns the VM's standby on a server, or nil.
func (v *VM) standbyOn(server ident.ServerID) *VMPart {
	for i := range v.Parts {
		if p := &v.Parts[i]; p.Standby && p.Server == server {
			return p
		}
	}
	return nil
}

// moveStandby begins to replace a standby by one elsewhere.
func (f *FSM) moveStandby(op *Operation, i int, vm *VM) {
	s := &op.Steps[i]
	to := standbyTargets(&f.state, f.hooks, vm, s.From, op.destination(s).Server)
	switch {
	case !vm.wantsStandbys() || vm.spare(s.From): // it is of no use any more
		f.dropStandbys(vm, func(p *VMPart) bool { return p.Server == s.From })
		s.State, s.Note = StepDone, ""
	case len(to) == 0 && op.exact():
		op.putOff(i, "it cannot keep the replica now")
	case len(to) == 0 && vm.standbyOn(s.From).Mirror: // the disks are not what keeps a server from being taken out of service
		f.dropStandbys(vm, func(p *VMPart) bool { return p.Server == s.From })
		s.State, s.Note = StepDone, "no other server can keep the mirror of its disks: it goes on without"
	case len(to) == 0:
		s.Note = "no other server can keep its replica: make room, or end its protection (vm protect " + vm.Spec.Name + " none)"
	default:
		origin := ident.ServerID(0)
		if op.Kind == OpDrain {
			origin = cmp.Or(vm.standbyOn(s.From).Origin, s.From)
		}
		if f.addStandby(vm, to[0], origin) {
			s.To, s.ToName, s.State, s.Note = to[0], f.state.Server(to[0]).Name, StepCopying, ""
		}
	}
}

// followStandby takes such a step on.
func (f *FSM) followStandby(op *Operation, s *OpStep, vm *VM) {
	old, next := vm.standbyOn(s.From), vm.standbyOn(s.To)
	switch {
	case old != nil && next == nil:
		s.State, s.Note = StepWaiting, "the target was lost"
		if s.Tries++; s.Tries >= maxTries {
			s.State = op.givenUp()
		}
	case old != nil && next.Holds && vm.Safe():
		f.dropStandbys(vm, func(p *VMPart) bool { return p.Server == s.From })
	case old == nil && vm.Protection() != "syncing" && vm.Mirroring() != "syncing":
		s.State, s.Note = StepDone, ""
	}
}

// spare tells whether the VM is protected well enough without its standby on a server.
func (v *VM) spare(server ident.ServerID) bool {
	elsewhere := func(p *VMPart) bool { return p.Server != server }
	if v.Spec.Protect != ProtectReplica {
		return v.mirrors(elsewhere) >= v.Spec.Mirrors()
	}
	return v.covered(elsewhere)
}

// standbyTargets returns where a VM's standby can go from a server; only, if not zero, is the one place that is wanted.
func standbyTargets(st *State, hooks Hooks, vm *VM, from, only ident.ServerID) []ident.ServerID {
	without := vm.clone()
	without.Parts = slices.DeleteFunc(without.Parts, func(p VMPart) bool { return p.Standby && p.Server == from })
	if only != 0 {
		scratch := st.Clone()
		for i := range scratch.Servers {
			s := &scratch.Servers[i]
			s.Cordoned = s.Cordoned || s.ID != only
		}
		st = &scratch
	}
	return hooks.Placer.Standbys(st, &without)
}
