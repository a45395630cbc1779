package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

func (f *FSM) createVM(c *CreateVM, index uint64) (any, *Fault) {
	spec := c.Spec
	spec.Span, spec.Disks = slices.Clone(spec.Span), slices.Clone(spec.Disks)
	if spec.OnLoss == "" {
		spec.OnLoss = OnLossStop
	}
	if spec.Protect == "" {
		spec.Protect = ProtectNone
	}
	if spec.Weight == 0 {
		spec.Weight = DefaultWeight
	}
	if fault := checkSpec(&spec); fault != nil {
		return nil, fault
	}
	if !hexOf(c.Secret, 64) {
		return nil, faultf(CodeInvalid, "vm %s: the secret must be 64 hex digits", spec.Name)
	}
	for _, cell := range spec.Span {
		if !slices.Contains(f.state.Cells(), cell) {
			return nil, f.noCell(cell)
		}
	}
	if old := f.state.VMNamed(spec.Name); old != nil {
		return nil, faultf(CodeExists, "a vm called %s exists (state %s): choose another name, or remove it first", spec.Name, old.State)
	}
	if len(f.state.VMs) >= MaxVMs {
		return nil, faultf(CodeNoCapacity, "the registry holds %d vms, which is the most it can hold: remove ended ones", MaxVMs)
	}
	if fault := f.fits(&spec); fault != nil {
		return nil, fault
	}
	if fault := f.checkSaved(&spec); fault != nil {
		return nil, fault
	}
	if fault := f.checkAttach(&spec); fault != nil {
		return nil, fault
	}
	placed, fault := f.hooks.Placer.Place(&f.state, &spec)
	if fault != nil {
		return nil, fault
	}
	if fault := checkParts(&spec, len(placed)); fault != nil {
		return nil, fault
	}
	vm := VM{ID: ident.VMID(index), Spec: spec, State: VMStarting, Secret: c.Secret, Epoch: f.state.View.Epoch, Created: f.state.View.Epoch, CreatedMs: f.now.UnixMs}
	for i, p := range placed {
		s := f.state.Server(p.Server)
		vm.Parts = append(vm.Parts, VMPart{Part: ident.Part(i), Server: s.ID, ServerName: s.Name, Cell: s.Cell, Incarnation: s.Incarnation, VCPUs: p.VCPUs})
	}
	vm.LastPart = ident.Part(len(vm.Parts) - 1)
	f.state.VMs = append(f.state.VMs, vm)
	f.attachDisks(&vm, index)
	f.tendStandbys(&f.state.VMs[len(f.state.VMs)-1])
	vm = f.state.VMs[len(f.state.VMs)-1]
	f.emit(Event{Kind: EventVMCreated, Subject: "vm " + spec.Name,
		Text: fmt.Sprintf("vm %s was created with %d vCPUs and %s over %s", spec.Name, spec.VCPUs, spec.MemoryBytes, partNames(&vm))})
	return vm, nil
}

func partNames(vm *VM) string {
	var names []ident.ServerName
	for _, p := range vm.Members() {
		names = append(names, p.ServerName)
	}
	return join(names)
}

// find returns the VM by ID, or by name if the ID is zero.
func (f *FSM) find(id ident.VMID, name string) (*VM, *Fault) {
	vm := f.state.VM(id)
	if id == 0 {
		vm = f.state.VMNamed(name)
	}
	if vm == nil && id == 0 {
		return nil, faultf(CodeNotFound, "no vm is called %q", name)
	}
	if vm == nil {
		return nil, faultf(CodeNotFound, "vm %d does not exist", id)
	}
	return vm, nil
}

func (f *FSM) stopVM(c *StopVM) *Fault {
	vm, fault := f.find(c.VM, c.Name)
	if fault != nil {
		return fault
	}
	if !vm.State.Active() && !vm.Start.Wanted {
		return faultf(CodeConflict, "vm %s does not run: it is %s", vm.Spec.Name, vm.State)
	}
	reason := c.Reason
	if reason == "" {
		reason = "stopped by an operator"
	}
	f.finish(vm, VMStopped, reason, 0)
	return nil
}

func (f *FSM) removeVM(c *RemoveVM) *Fault {
	vm, fault := f.find(c.VM, c.Name)
	if fault != nil {
		return fault
	}
	if vm.State.Active() {
		return faultf(CodeConflict, "vm %s is %s: stop it first", vm.Spec.Name, vm.State)
	}
	id, name := vm.ID, vm.Spec.Name
	f.state.VMs = slices.DeleteFunc(f.state.VMs, func(v VM) bool { return v.ID == id })
	f.emit(Event{Kind: EventVMRemoved, Subject: "vm " + name, Text: fmt.Sprintf("vm %s was removed", name)})
	return nil
}

// part returns an active VM and the part that a server speaks for, if that server speaks as the incarnation it was placed on.
func (f *FSM) part(id ident.VMID, part ident.Part, s ident.ServerID, inc ident.Incarnation) (*VM, *VMPart, *Fault) {
	vm := f.state.VM(id)
	if vm == nil {
		return nil, nil, faultf(CodeNotFound, "vm %d does not exist", id)
	}
	if !vm.State.Active() {
		return nil, nil, faultf(CodeConflict, "vm %s has ended: it is %s", vm.Spec.Name, vm.State)
	}
	p := vm.PartOn(s, inc)
	if p == nil || p.Part != part || !f.state.View.Has(s, inc) {
		return nil, nil, faultf(CodeConflict, "vm %s has no part %d on server %d as incarnation %d", vm.Spec.Name, part, s, inc)
	}
	return vm, p, nil
}

func (f *FSM) partReady(c *PartReady) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	if p.Ready || vm.State != VMStarting && !p.Standby {
		return faultf(CodeConflict, "vm %s: part %d is ready already", vm.Spec.Name, p.Part)
	}
	if len(c.Addr) > 256 {
		return faultf(CodeInvalid, "vm %s: address of part %d is too long", vm.Spec.Name, p.Part)
	}
	p.PID, p.StartTime, p.Addr, p.ReplicaAddr, p.NetAddr, p.Level, p.Ready = c.PID, c.StartTime, c.Addr, c.ReplicaAddr, c.NetAddr, c.Level, true
	if p.Standby {
		vm.ProtectSeq++
		vm.SafeSeq = 0
	}
	if vm.State == VMRunning {
		return nil
	}
	for i := range vm.Parts {
		if !vm.Parts[i].Ready && !vm.Parts[i].Standby {
			return nil
		}
	}
	vm.State, vm.StartedMs = VMRunning, f.now.UnixMs
	f.emit(Event{Kind: EventVMRunning, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s runs on %s", vm.Spec.Name, partNames(vm))})
	return nil
}

func (f *FSM) partGone(c *PartGone) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	if p.Ready && c.PID != 0 && c.PID != p.PID {
		return faultf(CodeConflict, "vm %s: part %d runs as pid %d, not %d", vm.Spec.Name, p.Part, p.PID, c.PID)
	}
	pid := "no pid"
	if c.PID != 0 {
		pid = fmt.Sprintf("pid %d", c.PID)
	}
	reason := fmt.Sprintf("worker of part %d on server %s (%s) is gone: %s", p.Part, p.ServerName, pid, c.Reason)
	return f.losePart(vm, p, VMFailed, reason)
}

// giveUpPart takes a part out of a VM that home cannot reach. Its worker is stopped by its own server, which sees that it has no part any more.
func (f *FSM) giveUpPart(c *GiveUpPart) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	i := slices.IndexFunc(vm.Parts, func(o VMPart) bool { return o.Part == c.Silent && !o.Gone })
	if p.Part != vm.Home || c.Seq != vm.ProtectSeq || i < 0 || c.Silent == c.Part || vm.State != VMRunning {
		return faultf(CodeConflict, "vm %s: part %d has no say about part %d in protection %d", vm.Spec.Name, c.Part, c.Silent, c.Seq)
	}
	silent := &vm.Parts[i]
	return f.losePart(vm, silent, VMFailed, fmt.Sprintf("part %d on server %s is given up: %s", silent.Part, silent.ServerName, clip(c.Reason, 256)))
}

// losePart is the loss of one part while its server lives: a standby is replaced, a protected VM goes back to its replica, any other ends.
func (f *FSM) losePart(vm *VM, p *VMPart, end VMState, reason string) *Fault {
	gone := p.Part
	if p.Standby {
		f.dropStandbys(vm, func(o *VMPart) bool { return o.Part == gone })
		f.tendStandbys(vm)
		return nil
	}
	if image, ok := vm.image([]ident.Part{gone}); ok {
		f.restore(vm, image, []ident.Part{gone}, reason, 0)
		return nil
	}
	if vm.Spec.Protect == ProtectReplica && end == VMFailed {
		end, reason = VMLost, reason+"; no standby was safe"
	}
	f.lose(vm, end, reason, 0)
	return nil
}

func (f *FSM) endVM(c *EndVM) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	switch c.State {
	case VMExited, VMFailed, VMLost:
	default:
		return faultf(CodeInvalid, "vm %s cannot end as %q", vm.Spec.Name, clip(string(c.State), 32))
	}
	if p.Standby {
		return f.losePart(vm, p, c.State, c.Reason)
	}
	if c.Host && c.State == VMFailed {
		return f.losePart(vm, p, VMFailed, c.Reason)
	}
	if c.Crash && c.State == VMFailed {
		return f.crashed(vm, p, c)
	}
	if c.State == VMExited && p.Part != vm.Home {
		return faultf(CodeInvalid, "vm %s: only the home part can say that the guest exited", vm.Spec.Name)
	}
	vm.ExitStatus, vm.Registers = c.ExitStatus, clip(c.Registers, 8192)
	if c.State == VMLost {
		f.lose(vm, VMLost, c.Reason, 0)
		return nil
	}
	if c.State == VMExited {
		f.confirmDisks(vm)
	}
	f.finish(vm, c.State, c.Reason, 0)
	return nil
}

// finish ends a VM. Its workers are stopped by the servers that see this state.
func (f *FSM) finish(vm *VM, state VMState, reason string, cause uint64) {
	f.roomier = true
	vm.Start.Wanted, vm.Paused, vm.Saving, vm.Hand = false, false, Saving{}, nil
	vm.State, vm.Reason, vm.EndedMs = state, clip(reason, 512), f.now.UnixMs
	kind := map[VMState]EventKind{VMStopped: EventVMStopped, VMExited: EventVMExited, VMLost: EventVMLost, VMFailed: EventVMFailed}[state]
	text := fmt.Sprintf("vm %s is %s", vm.Spec.Name, state)
	if state == VMExited {
		text += fmt.Sprintf(" with status %d", vm.ExitStatus)
	}
	if reason != "" {
		text += ": " + vm.Reason
	}
	f.emit(Event{Kind: kind, Subject: "vm " + vm.Spec.Name, Text: text,
		Fields: map[string]string{"reason": vm.Reason, "exit_status": fmt.Sprint(vm.ExitStatus)}, Cause: cause})
}
