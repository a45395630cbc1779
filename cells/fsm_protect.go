package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Protection of VMs by replicas.
//
//	           standby placed, its worker ready      home reports a checkpoint complete there
//	(none) -----------------------------------> syncing ------------------------------------> safe
//	   ^                                            |                                            |
//	   +---- standby lost, or not wanted any more --+--------------------------------------------+
//	                                                                                             |
//	               members lost: the standby becomes home, in a new VM epoch (restored) <--------+
//
// ProtectSeq rises with every change of the set of ready standbys; SafeSeq is the last ProtectSeq that home reported complete. While they are
// equal the VM is as safe as was asked for. The VM can go back to the checkpoint of a standby that Holds: home lets no output leave before that one
// has the checkpoint after it. A standby goes on holding while others are added, changed or lost, until it is itself dropped or taken over.

// MaxReplicas is the most copies in other cells that a VM may ask for.
const MaxReplicas = 4

// Safe tells whether all standbys that the VM has hold its checkpoints.
func (v *VM) Safe() bool {
	return v.State == VMRunning && v.SafeSeq == v.ProtectSeq && v.SafeSeq != 0 && slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Standby && p.Ready })
}

// Held tells whether the VM can go back to some checkpoint.
func (v *VM) Held() bool {
	return slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Standby && p.Holds && !p.Mirror })
}

// enough tells whether the standbys that hold lie in as many cells as it takes: one more than asked for if one of them is in a cell that also runs
// the VM, for then one loss may take both.
func (v *VM) enough() bool { return v.covered(func(p *VMPart) bool { return p.Holds }) }

// covered is enough for the standbys that count.
func (v *VM) covered(counts func(*VMPart) bool) bool {
	var in []ident.CellName
	want := v.Spec.Replicas
	inside := false
	for _, p := range v.Parts {
		if p.Standby && counts(&p) && !slices.Contains(in, p.Cell) {
			in = append(in, p.Cell)
			inside = inside || slices.ContainsFunc(v.Parts, func(m VMPart) bool { return !m.Standby && m.Cell == p.Cell })
		}
	}
	if inside && v.Spec.Protect == ProtectReplica {
		want++
	}
	return len(in) >= want
}

// Protection tells operators how the VM is protected now: "none"; "syncing"; "safe"; "partial" if it survives some losses, but there is no server for
// the replica that it takes to survive all; or "unprotected" if it should be protected and cannot.
func (v *VM) Protection() string {
	switch {
	case v.Spec.Protect != ProtectReplica || !v.State.Active():
		return "none"
	case v.Safe() && v.enough():
		return "safe"
	case v.Safe():
		return "partial"
	case slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Standby }):
		return "syncing"
	}
	return "unprotected"
}

// Members returns the parts that run the VM, as against standbys.
func (v *VM) Members() []VMPart {
	return slices.DeleteFunc(slices.Clone(v.Parts), func(p VMPart) bool { return p.Standby || p.Gone })
}

func (f *FSM) protectVM(c *ProtectVM) *Fault {
	vm, fault := f.find(c.VM, c.Name)
	if fault != nil {
		return fault
	}
	if !vm.State.Active() {
		return faultf(CodeConflict, "vm %s does not run: it is %s", vm.Spec.Name, vm.State)
	}
	spec := vm.Spec
	spec.Protect, spec.Replicas, spec.CheckpointMillis = c.Protect, c.Replicas, c.CheckpointMillis
	if fault := checkProtect(&spec); fault != nil {
		return fault
	}
	if fault := checkLinux(&spec); fault != nil {
		return fault
	}
	if fault := checkDisks(&spec); fault != nil {
		return fault
	}
	if fault := checkParts(&spec, len(vm.Members())); fault != nil {
		return fault
	}
	fewer := spec.Protect != ProtectReplica || spec.Replicas < vm.Spec.Replicas
	vm.Spec = spec
	if fewer {
		f.roomier = true
		f.dropStandbys(vm, func(p *VMPart) bool { return !p.Mirror })
	} else {
		f.dropStandbys(vm, func(p *VMPart) bool { return p.Mirror }) // the replicas have copies of their own
		vm.ProtectSeq++                                              // home is told the new interval
		vm.SafeSeq = 0
	}
	f.emit(Event{Kind: EventVMProtect, Subject: "vm " + spec.Name, Text: fmt.Sprintf("vm %s asks for protection %s", spec.Name, spec.protectText())})
	f.tendStandbys(vm)
	return nil
}

func (s *VMSpec) protectText() string {
	if s.Protect != ProtectReplica {
		return string(ProtectNone)
	}
	return fmt.Sprintf("%s:%d", ProtectReplica, s.Replicas)
}

func checkProtect(spec *VMSpec) *Fault {
	switch {
	case spec.Protect == ProtectNone:
		spec.Replicas = 0
	case spec.Protect != ProtectReplica:
		return faultf(CodeInvalid, "vm %s: protect %q is neither %q nor %q", spec.Name, clip(string(spec.Protect), 32), ProtectNone, ProtectReplica)
	case spec.Replicas == 0:
		spec.Replicas = 1
	}
	if spec.Replicas < 0 || spec.Replicas > MaxReplicas {
		return faultf(CodeInvalid, "vm %s: %d replicas; 1 to %d are allowed", spec.Name, spec.Replicas, MaxReplicas)
	}
	if spec.CheckpointMillis < 0 || spec.CheckpointMillis > 60000 {
		return faultf(CodeInvalid, "vm %s: %d ms between checkpoints; 1 to 60000 are allowed, or 0 for adaptive", spec.Name, spec.CheckpointMillis)
	}
	return nil
}

// vmProtected takes home's word that the standbys of protection Seq hold a complete checkpoint.
func (f *FSM) vmProtected(c *VMProtected) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	if p.Part != vm.Home || c.Seq != vm.ProtectSeq || vm.SafeSeq == c.Seq {
		return faultf(CodeConflict, "vm %s: protection %d by part %d is not what is awaited", vm.Spec.Name, c.Seq, c.Part)
	}
	vm.SafeSeq = c.Seq
	f.confirmDisks(vm)
	for i := range vm.Parts {
		if p := &vm.Parts[i]; p.Standby && p.Ready {
			p.Holds = true
		}
	}
	if vm.Spec.Protect != ProtectReplica {
		return nil // the standby is there for a move
	}
	f.emit(Event{Kind: EventVMProtected, Subject: "vm " + vm.Spec.Name,
		Text: fmt.Sprintf("vm %s survives the loss of a cell from now on: %s", vm.Spec.Name, standbyNames(vm))})
	return nil
}

func standbyNames(vm *VM) string {
	text := "no standby"
	for _, p := range vm.Parts {
		if p.Standby {
			if text == "no standby" {
				text = "standby on"
			}
			text += fmt.Sprintf(" %s", p.ServerName)
		}
	}
	return text
}

// dropStandbys takes away the standbys that match.
func (f *FSM) dropStandbys(vm *VM, match func(*VMPart) bool) {
	before := len(vm.Parts)
	wasSafe := vm.Safe()
	vm.Parts = slices.DeleteFunc(vm.Parts, func(p VMPart) bool { return p.Standby && match(&p) })
	if len(vm.Parts) == before {
		return
	}
	vm.ProtectSeq++
	vm.SafeSeq = 0
	if wasSafe && vm.Spec.Protect == ProtectReplica && !vm.enough() {
		f.emit(Event{Kind: EventVMUnprotected, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s does not survive the loss of a cell: a standby is gone", vm.Spec.Name)})
	}
}

// useRoom looks for servers for the standbys that VMs lack if an entry has made room: a VM has ended or moved, a server has been opened.
func (f *FSM) useRoom() {
	if f.roomier {
		f.tendAllStandbys()
	}
}

// tendAllStandbys looks for servers for the standbys that VMs lack.
func (f *FSM) tendAllStandbys() {
	for i := range f.state.VMs {
		if vm := &f.state.VMs[i]; vm.lacksStandbys() {
			f.tendStandbys(vm)
		}
	}
}

// lacksStandbys tells whether the VM has fewer standbys than it is to have, those that are not ready yet counted.
func (v *VM) lacksStandbys() bool {
	any := func(*VMPart) bool { return true }
	switch {
	case !v.State.Active():
		return false
	case v.Spec.Protect == ProtectReplica:
		return !v.covered(any)
	}
	return v.mirrors(any) < v.Spec.Mirrors()
}

// tendStandbys adds the standbys that the VM lacks, if there are servers for them.
func (f *FSM) tendStandbys(vm *VM) {
	if !vm.wantsStandbys() || !vm.State.Active() {
		return
	}
	for _, id := range f.hooks.Placer.Standbys(&f.state, vm) {
		if !f.addStandby(vm, id, 0) {
			return
		}
	}
}

func (f *FSM) addStandby(vm *VM, on, origin ident.ServerID) bool {
	s := f.state.Server(on)
	part, ok := vm.freePart()
	if s == nil || !ok {
		return false
	}
	vm.Parts = append(vm.Parts, VMPart{Part: part, Server: s.ID, ServerName: s.Name, Cell: s.Cell, Incarnation: s.Incarnation, Standby: true, Origin: origin})
	what := "standby"
	if vm.Spec.Protect != ProtectReplica {
		vm.Parts[len(vm.Parts)-1].Mirror, what = true, "mirror of its disks"
	}
	f.emit(Event{Kind: EventVMProtect, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s gets a %s on %s", vm.Spec.Name, what, s.Name)})
	return true
}

// freePart returns the next index that no part has. Indexes go round, so that one which was used lately is not used again at once.
func (v *VM) freePart() (ident.Part, bool) {
	for range ident.MaxParts {
		v.LastPart = (v.LastPart + 1) % ident.MaxParts
		if !slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Part == v.LastPart }) {
			return v.LastPart, true
		}
	}
	return 0, false
}

// restore lets the VM go on from what its standby image holds, without the parts in gone. The standby takes over their vCPUs and the devices.
func (f *FSM) restore(vm *VM, image ident.Part, gone []ident.Part, reason string, cause uint64) {
	origin := f.origin(vm, &Move{Op: f.drains(vm, gone), Parts: gone})
	f.takeOver(vm, image, gone, true)
	for i := range vm.Parts {
		if p := &vm.Parts[i]; p.Part == image {
			p.Origin = origin
		}
	}
	vm.Recoveries++
	f.emit(Event{Kind: EventVMRecovering, Subject: "vm " + vm.Spec.Name, Cause: cause,
		Text:   fmt.Sprintf("vm %s goes on from its replica on %s: %s", vm.Spec.Name, partNames(vm), reason),
		Fields: map[string]string{"reason": reason, "vm_epoch": fmt.Sprint(vm.Epoch)}})
	f.tendStandbys(vm)
}

// takeOver makes the standby image the home of a new VM epoch, in the place of the parts in gone. With keep, the other standbys that hold a
// checkpoint stay what the VM can go back to.
func (f *FSM) takeOver(vm *VM, image ident.Part, gone []ident.Part, keep bool) {
	var vcpus []ident.VCPU
	for _, p := range vm.Parts {
		if slices.Contains(gone, p.Part) {
			vcpus = append(vcpus, p.VCPUs...)
		}
	}
	// Another standby that holds may hold the checkpoint before or after the one that the VM goes back to. Home brings it to its own, and lets no
	// output leave before. One that does not hold yet begins anew, and so does a mirror: it may have what the VM has not, or not what it has.
	vm.Parts = slices.DeleteFunc(vm.Parts, func(p VMPart) bool {
		return slices.Contains(gone, p.Part) || p.Gone || p.Standby && p.Part != image && !(keep && p.Holds && !p.Mirror)
	})
	for i := range vm.Parts {
		if p := &vm.Parts[i]; p.Part == image {
			p.Standby, p.Holds, p.VCPUs = false, false, append(slices.Clone(p.VCPUs), vcpus...)
			slices.Sort(p.VCPUs)
		}
	}
	vm.Borrows = vm.Loans()
	vm.Home, vm.Image, vm.Restored, vm.Resumed = image, image, true, false
	f.unsave(vm, "it was not saved, as it went on elsewhere")
	vm.Hand = nil
	vm.Epoch = max(f.state.View.Epoch, vm.Epoch+1)
	vm.ProtectSeq++
	vm.SafeSeq = 0
}

// CanGoBackTo tells whether a part has a checkpoint that the VM can go back to: a standby that holds one, or the image of a recovery that is not
// complete, to which it then goes back again.
func (v *VM) CanGoBackTo(p *VMPart) bool {
	return p.Standby && p.Holds && !p.Mirror || v.Restored && !v.Resumed && p.Part == v.Image && !p.Gone
}

// vmResumed takes home's word that a recovery is complete.
func (f *FSM) vmResumed(c *VMResumed) *Fault {
	vm := f.state.VM(c.VM)
	if vm == nil || !vm.State.Active() || vm.Epoch != c.Epoch || !vm.Restored || vm.Resumed {
		return faultf(CodeConflict, "vm %d does not wait to be resumed in its epoch %d", c.VM, c.Epoch)
	}
	vm.Resumed = true
	f.emit(Event{Kind: EventVMRecovered, Subject: "vm " + vm.Spec.Name, Text: c.Text, Fields: c.Fields})
	return nil
}

// image returns the standby that the VM can go back to, if it survives the loss of the parts in gone.
func (v *VM) image(gone []ident.Part) (ident.Part, bool) {
	if v.State != VMRunning {
		return 0, false
	}
	found, part := false, ident.Part(0)
	for i := range v.Parts {
		if p := &v.Parts[i]; v.CanGoBackTo(p) && !slices.Contains(gone, p.Part) && (!found || !p.Standby) {
			found, part = true, p.Part // the image of a recovery that is under way before any other: so that stays one more
		}
	}
	return part, found
}
