package cells

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// VMs that are started again.
//
//	running, starting --lost, or its worker or host failed--> lost, failed --room for it--> starting
//
// A VM whose spec says restart always starts again from its spec, as one that was just created, wherever there is room: at once, or when servers have
// come back, as after a loss of power. Its memory is gone, and with it what it had not put out; console and output begin anew.

// What a VM's spec says about its restart after a loss.
const (
	RestartNo     = "no" // "" means no
	RestartAlways = "always"
)

// maxStarts bounds how often a VM is started again within one view: what fails so often without a server being lost fails by itself.
const maxStarts = 5

// Start is what is known of a VM's starts from its spec.
type Start struct {
	Wanted bool        `json:"wanted,omitempty"` // it waits for room
	Count  uint64      `json:"count,omitempty"`  // how often it was started again
	Epoch  ident.Epoch `json:"epoch,omitempty"`  // of the view in which it was last
	Tries  int         `json:"tries,omitempty"`  // in that view
}

// lose ends a VM that has lost what it depended on; it may be started again.
func (f *FSM) lose(vm *VM, state VMState, reason string, cause uint64) {
	f.finish(vm, state, reason, cause)
	vm.Start.Wanted = vm.Spec.Restart == RestartAlways
}

// tendStarts starts the VMs that wait for it and for which there is room.
func (f *FSM) tendStarts() {
	for i := range f.state.VMs {
		if vm := &f.state.VMs[i]; vm.Start.Wanted {
			f.startAgain(vm)
		}
	}
}

func (f *FSM) startAgain(vm *VM) {
	if vm.Start.Epoch != f.state.View.Epoch {
		vm.Start.Epoch, vm.Start.Tries = f.state.View.Epoch, 0
	}
	if vm.Start.Tries >= maxStarts {
		vm.Start.Wanted = false
		vm.Reason += fmt.Sprintf("; it was started %d times in epoch %d and is not started again", vm.Start.Tries, vm.Start.Epoch)
		return
	}
	if f.checkAttach(&vm.Spec) != nil {
		return // until its disks are free
	}
	placed, fault := f.hooks.Placer.Place(&f.state, &vm.Spec)
	if fault != nil || checkParts(&vm.Spec, len(placed)) != nil {
		return // when there is room
	}
	// Parts get indexes that none of the former parts had: a worker that is still on its way out is not taken for one of these.
	var parts []VMPart
	for _, p := range placed {
		part, ok := vm.freePart()
		if !ok {
			return
		}
		s := f.state.Server(p.Server)
		parts = append(parts, VMPart{Part: part, Server: s.ID, ServerName: s.Name, Cell: s.Cell, Incarnation: s.Incarnation, VCPUs: p.VCPUs})
	}
	reason := vm.Reason
	vm.Start.Wanted = false
	vm.Start.Tries++
	vm.Start.Count++
	vm.State, vm.Reason, vm.Registers, vm.EndedMs, vm.ExitStatus = VMStarting, "", "", 0, 0
	vm.Epoch = max(f.state.View.Epoch, vm.Epoch+1)
	vm.Created, vm.Booted, vm.Crashes = vm.Epoch, 0, 0
	vm.Parts, vm.Home, vm.Borrows = parts, parts[0].Part, nil
	f.attachDisks(vm, f.state.Applied)
	vm.ProtectSeq++
	vm.Paused, vm.Saving, vm.Spec.Saved = false, Saving{}, nil
	vm.PauseSeq++
	vm.SafeSeq, vm.Restored, vm.Resumed, vm.Move = 0, false, false, nil
	f.emit(Event{Kind: EventVMStartedAgain, Subject: "vm " + vm.Spec.Name,
		Text:   fmt.Sprintf("vm %s starts again from its spec on %s (start %d after a loss): %s", vm.Spec.Name, partNames(vm), vm.Start.Count, reason),
		Fields: map[string]string{"reason": reason, "vm_epoch": fmt.Sprint(vm.Epoch)}})
	f.tendStandbys(vm)
}
