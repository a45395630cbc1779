package balance

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// checkMoves looks at what one command began and ended. It decides by the rules as an operator knows them, not by the balancer's code.
func (w *world) checkMoves(before, after *cells.State) error {
	for i := range after.VMs {
		vm := &after.VMs[i]
		old := before.VM(vm.ID)
		if old == nil {
			continue
		}
		if vm.Move != nil && old.Move == nil {
			if err := w.checkBegin(after, old, vm); err != nil {
				return err
			}
		}
		if vm.Hand != nil && (old.Hand == nil || old.Hand.Seq != vm.Hand.Seq) {
			if err := checkHand(after, vm); err != nil {
				return err
			}
		}
		if err := w.checkVCPUs(after, old, vm); err != nil {
			return err
		}
		if err := checkSpan(after, old, vm); err != nil {
			return err
		}
		if vm.Moved.Epoch != old.Moved.Epoch {
			if err := w.checkMoved(after, old, vm); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkBegin looks at where a move goes.
func (w *world) checkBegin(st *cells.State, old, vm *cells.VM) error {
	var image cells.VMPart
	vcpus := 0
	for _, p := range vm.Parts {
		if p.Part == vm.Move.Image {
			image = p
		}
		if slices.Contains(vm.Move.Parts, p.Part) {
			vcpus += len(p.VCPUs)
		}
	}
	target := st.Server(image.Server)
	used := ident.Bytes(0)
	for i := range st.VMs {
		o := &st.VMs[i]
		if !o.State.Active() {
			continue
		}
		for _, p := range o.Parts {
			switch {
			case p.Server != target.ID || p.Gone || o.ID == vm.ID && p.Part == image.Part:
			case p.Standby:
				used += o.Spec.MemoryBytes
			default:
				used += o.Spec.MemoryBytes / ident.Bytes(len(o.Members()))
			}
		}
	}
	if vm.Move.VCPU != nil {
		vcpus = 1
	}
	switch {
	case target.State != cells.ServerLive || target.Cordoned:
		return fmt.Errorf("vm %s goes to %s, which is %s, cordoned: %v", vm.Spec.Name, target.Name, target.State, target.Cordoned)
	case vcpus > target.Slots:
		return fmt.Errorf("vm %s goes to %s with %d vCPUs for %d slots", vm.Spec.Name, target.Name, vcpus, target.Slots)
	case slices.ContainsFunc(old.Members(), func(p cells.VMPart) bool { return p.Server == target.ID }):
		return fmt.Errorf("vm %s goes to %s, where a sibling runs", vm.Spec.Name, target.Name)
	case used+vm.Spec.MemoryBytes > target.MemoryBytes:
		return fmt.Errorf("vm %s goes to %s, which has %d of %d bytes in use", vm.Spec.Name, target.Name, used, target.MemoryBytes)
	}
	return nil
}

// checkMoved looks at where a VM lies once it was moved, and when it was moved before. An operator's wish is his own.
func (w *world) checkMoved(st *cells.State, old, vm *cells.VM) error {
	if op := st.Operation(vm.Moved.Op); op != nil && op.Kind == cells.OpMigrate {
		delete(w.moved, vm.ID)
		return nil
	}
	now := vm.Cells()
	if len(now) > len(old.Cells()) {
		return fmt.Errorf("vm %s depends on %v, before on %v", vm.Spec.Name, now, old.Cells())
	}
	before := old.Cells() // an operator may have brought it to others
	for _, c := range now {
		if len(vm.Spec.Span) > 0 && !slices.Contains(vm.Spec.Span, c) && !slices.Contains(before, c) {
			return fmt.Errorf("vm %s lies in %v, its span is %v", vm.Spec.Name, now, vm.Spec.Span)
		}
	}
	return w.checkSettled(vm, 0)
}

// checkSettled looks at when a VM was moved before. The vCPUs of one operation, unlike VMs, may be several.
func (w *world) checkSettled(vm *cells.VM, op cells.OpID) error {
	if last, ok := w.moved[vm.ID]; ok && w.Now()-last.at < settle && (op == 0 || op != last.op) {
		return fmt.Errorf("vm %s was moved %d us after it had been moved", vm.Spec.Name, w.Now()-last.at)
	}
	w.moved[vm.ID] = lastMove{w.Now(), op}
	return nil
}

// checkHand looks at where a vCPU goes.
func checkHand(st *cells.State, vm *cells.VM) error {
	for _, p := range vm.Members() {
		if p.Part != vm.Hand.To {
			continue
		}
		switch target := st.Server(p.Server); {
		case target.State != cells.ServerLive || target.Cordoned:
			return fmt.Errorf("vCPU %d of vm %s goes to %s, which is %s, cordoned: %v", vm.Hand.VCPU, vm.Spec.Name, target.Name, target.State, target.Cordoned)
		case len(p.VCPUs) >= target.Slots:
			return fmt.Errorf("vCPU %d of vm %s goes to %s, which has %d slots and %d of its vCPUs", vm.Hand.VCPU, vm.Spec.Name, target.Name, target.Slots, len(p.VCPUs))
		}
		return nil
	}
	return fmt.Errorf("vCPU %d of vm %s goes to part %d, which is none of its", vm.Hand.VCPU, vm.Spec.Name, vm.Hand.To)
}

// checkSpan looks whether a balance took the last vCPU out of a cell that the VM was asked to lie in.
func checkSpan(st *cells.State, old, vm *cells.VM) error {
	id := vm.Moved.Op
	if old.Hand != nil && vm.Hand == nil {
		id = old.Hand.Op
	} else if vm.Moved.Epoch == old.Moved.Epoch {
		return nil
	}
	if op := st.Operation(id); op == nil || op.Kind != cells.OpBalance {
		return nil
	}
	runs := func(v *cells.VM, c ident.CellName) bool {
		return slices.ContainsFunc(v.Parts, func(p cells.VMPart) bool { return p.Cell == c && len(p.VCPUs) > 0 })
	}
	for _, c := range vm.Spec.Span {
		if runs(old, c) && !runs(vm, c) {
			return fmt.Errorf("vm %s has no vCPU left in cell %s of its span %v", vm.Spec.Name, c, vm.Spec.Span)
		}
	}
	return nil
}

// checkVCPUs looks at where a VM's vCPUs are, and what became of one that was on its way.
func (w *world) checkVCPUs(st *cells.State, old, vm *cells.VM) error {
	if !vm.State.Active() {
		return nil
	}
	seen := map[ident.VCPU]bool{}
	for _, p := range vm.Parts {
		for _, id := range p.VCPUs {
			if seen[id] {
				return fmt.Errorf("vCPU %d of vm %s is on two parts", id, vm.Spec.Name)
			}
			seen[id] = true
		}
	}
	if len(seen) != vm.Spec.VCPUs {
		return fmt.Errorf("vm %s has %d vCPUs on its parts, its spec says %d", vm.Spec.Name, len(seen), vm.Spec.VCPUs)
	}
	h := old.Hand
	if h == nil || vm.Hand != nil && vm.Hand.Seq == h.Seq {
		return nil
	}
	moved := false
	for _, p := range vm.Parts {
		moved = moved || p.Part == h.To && slices.Contains(p.VCPUs, h.VCPU)
	}
	if !moved {
		return nil
	}
	if op := st.Operation(h.Op); op != nil && op.Kind == cells.OpMigrate {
		delete(w.moved, vm.ID)
		return nil
	}
	w.handed++
	return w.checkSettled(vm, h.Op)
}

// checkStolen looks at what the idle balancer begins, by the loads that were known then.
func (w *world) checkStolen(before, after *cells.State) error {
	op := &after.Operations[len(after.Operations)-1]
	work := map[ident.ServerID]int{}                 // vCPUs that have some
	parts := map[ident.VMID]map[ident.ServerID]int{} // the same by VM
	for i := range before.VMs {
		vm := &before.VMs[i]
		if !vm.State.Active() {
			continue
		}
		parts[vm.ID] = map[ident.ServerID]int{}
		for _, p := range vm.Members() {
			parts[vm.ID][p.Server] = len(p.VCPUs) - p.Idle
			work[p.Server] += len(p.VCPUs) - p.Idle
		}
	}
	for i := range op.Steps {
		s := &op.Steps[i]
		if from, to := before.Server(s.From), before.Server(s.To); from.Cell != to.Cell {
			return fmt.Errorf("vm %s is taken from %s to %s, in another cell", s.Name, from.Name, to.Name)
		}
		n := parts[s.VM][s.From]
		if s.Kind == cells.StepVCPU {
			n = 1
		}
		parts[s.VM][s.From] -= n
		parts[s.VM][s.To] += n
		work[s.From] -= n
		work[s.To] += n
	}
	for i := range op.Steps {
		s := &op.Steps[i]
		for id, n := range parts[s.VM] {
			if sv := before.Server(id); n > 0 && work[id] > sv.Slots {
				return fmt.Errorf("what vm %s is given has it wait on: %d vCPUs have work on the %d slots of %s", s.Name, work[id], sv.Slots, sv.Name)
			}
		}
	}
	return nil
}

// checkEnd looks at what must be so when nothing has changed for long.
func (w *world) checkEnd() error {
	st := w.fsm.State()
	for _, s := range w.servers {
		parent, _ := s.reporter.Place()
		if s.dead || parent != 0 {
			continue
		}
		loads := s.reporter.Loads()
		if len(loads) != len(st.View.Live) {
			return fmt.Errorf("the root, server %d, knows of %d servers, %d are live", s.id, len(loads), len(st.View.Live))
		}
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if vm.State != cells.VMRunning {
			continue
		}
		for _, p := range vm.Members() {
			if idle := w.idles(vm.ID, &p); p.Idle != idle {
				return fmt.Errorf("the registry has %d of the vCPUs of vm %s on %s idle, %d are", p.Idle, vm.Spec.Name, p.ServerName, idle)
			}
		}
	}
	for i := range st.Operations {
		if st.Operations[i].State == cells.OpRunning {
			return fmt.Errorf("operation %d has not ended: %s", st.Operations[i].ID, st.Operations[i].Note)
		}
	}
	op, fault := monitor.PlanOperation(st, &cells.StartOperation{Kind: cells.OpBalance})
	if fault != nil {
		return fault
	}
	if len(op.Steps) > 0 {
		return fmt.Errorf("%d moves are left that would make the load more even, the first: %s", len(op.Steps), op.Steps[0].Reason)
	}
	return nil
}
