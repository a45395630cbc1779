package cells

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// Pauses.
//
//	running --PauseVM on, SaveVM--> to stand still --every member's word--> paused --PauseVM off, EndSave--> running
//
// A pause is a wish in the registry, so it outlives every serve process, and a worker that takes over a part of the VM learns of it before it runs
// anything. PauseSeq rises with each change; a part's PausedSeq is the last change that it has carried out. Whoever saves a VM holds it by a token of
// his own beside the operators' wish; his server's end, or a new member set, is the end of that.

// PauseVM lets a running VM's guest stand still, or go on. VM is used if nonzero, else Name.
type PauseVM struct {
	VM     ident.VMID `json:"vm,omitempty"`
	Name   string     `json:"name,omitempty"`
	On     bool       `json:"on"`
	Reason string     `json:"reason,omitempty"`
}

// PartPaused is a part's word that it stands still, or goes on, as change Seq of the VM's pauses asks.
type PartPaused struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Seq         uint64            `json:"seq"`
}

// SaveVM lets a VM stand still while its home's server sends its state away. Token is that server's own word for it, Boot its serve process.
type SaveVM struct {
	VM    ident.VMID `json:"vm"`
	Token string     `json:"token"`
	Boot  string     `json:"boot"`
}

// EndSave ends what SaveVM began: the VM goes on, or, with Stop, it has ended, as its state is kept elsewhere.
type EndSave struct {
	VM    ident.VMID `json:"vm"`
	Token string     `json:"token"`
	Stop  bool       `json:"stop,omitempty"`
}

// Saving is who is saving a VM.
type Saving struct {
	Token  string         `json:"token,omitempty"`
	Boot   string         `json:"boot,omitempty"`
	Server ident.ServerID `json:"server,omitempty"`
}

// Pausing tells whether the VM is to stand still.
func (v *VM) Pausing() bool { return v.Paused || v.Saving.Token != "" }

// Still tells whether every member stands still.
func (v *VM) Still() bool { return v.State == VMRunning && v.Pausing() && v.PauseSettled() }

// PauseSettled tells whether every member has carried out the last change.
func (v *VM) PauseSettled() bool {
	for i := range v.Parts {
		if p := &v.Parts[i]; !p.Gone && !p.Standby && p.PausedSeq != v.PauseSeq {
			return false
		}
	}
	return true
}

func (f *FSM) pauseVM(c *PauseVM) *Fault {
	vm, fault := f.find(c.VM, c.Name)
	switch {
	case fault != nil:
		return fault
	case vm.State != VMRunning:
		return faultf(CodeConflict, "vm %s does not run: it is %s", vm.Spec.Name, vm.State)
	case vm.Saving.Token != "" && !c.On:
		return faultf(CodeConflict, "vm %s is being saved: it goes on when that has ended", vm.Spec.Name)
	case vm.Paused == c.On:
		return nil
	}
	vm.Paused = c.On
	vm.PauseSeq++
	kind, text := EventVMPaused, fmt.Sprintf("vm %s is paused", vm.Spec.Name)
	if !c.On {
		kind, text = EventVMUnpaused, fmt.Sprintf("vm %s goes on", vm.Spec.Name)
	}
	if c.Reason != "" {
		text += ": " + clip(c.Reason, 256)
	}
	f.emit(Event{Kind: kind, Subject: "vm " + vm.Spec.Name, Text: text, Fields: map[string]string{"reason": clip(c.Reason, 256)}})
	return nil
}

func (f *FSM) partPaused(c *PartPaused) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	if c.Seq != vm.PauseSeq || p.PausedSeq == c.Seq {
		return faultf(CodeConflict, "vm %s: pause %d by part %d is not what is awaited", vm.Spec.Name, c.Seq, c.Part)
	}
	p.PausedSeq = c.Seq
	return nil
}

func (f *FSM) saveVM(c *SaveVM) *Fault {
	vm, fault := f.find(c.VM, "")
	if fault != nil {
		return fault
	}
	home := vm.homePart()
	switch {
	case vm.State != VMRunning:
		return faultf(CodeConflict, "vm %s does not run: it is %s", vm.Spec.Name, vm.State)
	case home == nil || vm.Restored && !vm.Resumed:
		return faultf(CodeConflict, "vm %s is being recovered: save it when it runs again", vm.Spec.Name)
	case vm.Move != nil:
		return faultf(CodeConflict, "vm %s is being moved: save it when it has arrived", vm.Spec.Name)
	case vm.Spec.Linux != nil && len(vm.Members()) > 1:
		return faultf(CodeConflict, "vm %s: a Linux guest over several servers cannot be saved yet", vm.Spec.Name)
	case vm.Saving.Token != "":
		return faultf(CodeConflict, "vm %s is being saved already", vm.Spec.Name)
	case c.Token == "" || len(c.Token) > 64 || len(c.Boot) > 64:
		return faultf(CodeInvalid, "vm %s: no token to save it with", vm.Spec.Name)
	}
	vm.Saving = Saving{Token: c.Token, Boot: c.Boot, Server: home.Server}
	vm.PauseSeq++
	f.emit(Event{Kind: EventVMPaused, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s is paused: its state is being saved", vm.Spec.Name), Fields: map[string]string{"reason": "save"}})
	return nil
}

func (f *FSM) endSave(c *EndSave) *Fault {
	vm, fault := f.find(c.VM, "")
	switch {
	case fault != nil:
		return fault
	case !vm.State.Active() || vm.Saving.Token == "" || vm.Saving.Token != c.Token:
		return faultf(CodeConflict, "vm %s: what was saved of it does not count, as it has gone on meanwhile", vm.Spec.Name)
	case !c.Stop:
		f.unsave(vm, "it was not saved")
		return nil
	}
	vm.Saving, vm.Paused = Saving{}, false
	vm.PauseSeq++
	f.confirmDisks(vm)
	f.finish(vm, VMStopped, "saved to a file", 0)
	return nil
}

// unsave ends a save that came to nothing.
func (f *FSM) unsave(vm *VM, why string) {
	if vm.Saving.Token == "" {
		return
	}
	vm.Saving = Saving{}
	vm.PauseSeq++
	if vm.State.Active() && !vm.Paused {
		f.emit(Event{Kind: EventVMUnpaused, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s goes on: %s", vm.Spec.Name, why)})
	}
}

// endSaves ends the saves of a server whose serve process is no longer boot.
func (f *FSM) endSaves(server ident.ServerID, boot string) {
	for i := range f.state.VMs {
		if vm := &f.state.VMs[i]; vm.Saving.Server == server && vm.Saving.Boot != boot {
			f.unsave(vm, "who saved it is gone")
		}
	}
}

func (v *VM) homePart() *VMPart {
	for i := range v.Parts {
		if p := &v.Parts[i]; p.Part == v.Home && !p.Gone && !p.Standby {
			return p
		}
	}
	return nil
}
