package cells

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// PlanOperation checks what is asked for against the state and returns the operation with the steps that it would take now, or why it is
// refused, with the numbers.
func PlanOperation(st *State, hooks Hooks, c *StartOperation) (*Operation, *Fault) {
	op := &Operation{Kind: c.Kind, State: OpRunning, Reason: clip(c.Reason, 256), By: clip(c.By, 64), DeadlineMs: c.DeadlineMs, OnDeadline: c.OnDeadline,
		MaxParallel: c.MaxParallel}
	if op.MaxParallel == 0 {
		op.MaxParallel = defaultParallel
	}
	if op.OnDeadline == "" {
		op.OnDeadline = DeadlineFail
	}
	switch {
	case op.MaxParallel < 1 || op.MaxParallel > MaxParallel:
		return nil, faultf(CodeInvalid, "%d moves at a time; 1 to %d are allowed", op.MaxParallel, MaxParallel)
	case op.OnDeadline != DeadlineFail && op.OnDeadline != DeadlineStop:
		return nil, faultf(CodeInvalid, "on-deadline %q is neither %q nor %q", clip(string(op.OnDeadline), 32), DeadlineFail, DeadlineStop)
	}
	named, fault := st.named(c.Cells, c.Servers)
	if fault != nil {
		return nil, fault
	}
	switch c.Kind {
	case OpMigrate:
		return planMigrate(st, hooks, c, op, named)
	case OpDrain:
		return planDrain(st, hooks, c, op, named)
	case OpBalance:
		return planBalance(st, hooks, c, op)
	case OpRestore:
		return planRestore(st, hooks, c, op, named)
	}
	return nil, faultf(CodeInvalid, "operation %q is not known", clip(string(c.Kind), 32))
}

// named returns the servers in the cells and of the names, by ID.
func (s *State) named(cells []ident.CellName, servers []ident.ServerName) ([]ident.ServerID, *Fault) {
	for _, c := range cells {
		if c == "" || !slices.Contains(s.Cells(), c) {
			return nil, faultf(CodeNotFound, "no cell is called %q; known are: %s", clip(string(c), 64), join(s.Cells()))
		}
	}
	for _, name := range servers {
		if sv := s.ServerNamed(name); sv == nil || sv.Role != RoleServer {
			return nil, faultf(CodeNotFound, "no server that runs vms is called %q", clip(string(name), 64))
		}
	}
	var out []ident.ServerID
	for i := range s.Servers {
		if sv := &s.Servers[i]; sv.Role == RoleServer && (slices.Contains(cells, sv.Cell) || slices.Contains(servers, sv.Name)) {
			out = append(out, sv.ID)
		}
	}
	return out, nil
}

// subject names cells and servers for people.
func subject(cells []ident.CellName, servers []ident.ServerName) string {
	switch {
	case len(servers) == 0:
		return "cell " + strings.ReplaceAll(join(cells), ", ", ",")
	case len(cells) == 0:
		return "server " + strings.ReplaceAll(join(servers), ", ", ",")
	}
	return subject(cells, nil) + " and " + subject(nil, servers)
}

func planMigrate(st *State, hooks Hooks, c *StartOperation, op *Operation, from []ident.ServerID) (*Operation, *Fault) {
	vm := st.VMNamed(c.VM)
	switch {
	case vm == nil:
		return nil, faultf(CodeNotFound, "no vm is called %q", clip(c.VM, 64))
	case vm.State != VMRunning:
		return nil, faultf(CodeConflict, "vm %s cannot be moved: it is %s", c.VM, vm.State)
	case vm.Move != nil:
		return nil, faultf(CodeConflict, "vm %s is being moved already, by operation %d", c.VM, vm.Move.Op)
	case vm.Hand != nil:
		return nil, faultf(CodeConflict, "vCPU %d of vm %s is on its way already, by operation %d", vm.Hand.VCPU, c.VM, vm.Hand.Op)
	}
	op.Subject = "vm " + c.VM
	if c.ToServer != "" {
		ids, fault := st.named(nil, []ident.ServerName{c.ToServer})
		if fault != nil {
			return nil, fault
		}
		op.To.Server = ids[0]
	} else if c.ToCell != "" {
		if _, fault := st.named([]ident.CellName{c.ToCell}, nil); fault != nil {
			return nil, fault
		}
		op.To.Cell = c.ToCell
	}
	if c.VCPU != nil {
		return planVCPU(st, hooks, c, op)
	}
	if len(from) == 0 {
		for _, p := range vm.Members() {
			if s := st.Server(p.Server); s.ID != op.To.Server && s.Cell != op.To.Cell {
				from = append(from, p.Server)
			}
		}
		if len(from) == 0 {
			return nil, faultf(CodeConflict, "vm %s runs there already", c.VM)
		}
		if op.To.Server != 0 && len(from) > 1 {
			return nil, faultf(CodeConflict, "vm %s runs on %s: say with --from which of them goes to %s", c.VM, partNames(vm), c.ToServer)
		}
	}
	if !vm.runsOn(from) {
		return nil, faultf(CodeConflict, "vm %s runs on %s, on none of what is named", c.VM, partNames(vm))
	}
	p := planner{st: st.Clone(), hooks: hooks}
	p.members(p.st.VM(vm.ID), from, op.To)
	if len(p.blocked) > 0 {
		return nil, faultf(CodeNoCapacity, "%s", p.blocked[0])
	}
	op.Steps = p.steps
	return op, nil
}

func planDrain(st *State, hooks Hooks, c *StartOperation, op *Operation, servers []ident.ServerID) (*Operation, *Fault) {
	op.Subject, op.Servers = subject(c.Cells, c.Servers), servers
	if len(servers) == 0 {
		return nil, faultf(CodeInvalid, "a drain needs at least one cell or server")
	}
	for i := range st.Operations {
		o := &st.Operations[i]
		if o.State == OpRunning && slices.ContainsFunc(o.Servers, func(id ident.ServerID) bool { return slices.Contains(servers, id) }) {
			return nil, faultf(CodeConflict, "operation %d, %s %s, is still running: `op watch %d` shows it, `op cancel %d` ends it", o.ID, o.Kind, o.Subject, o.ID, o.ID)
		}
	}
	open := 0
	for i := range st.Servers {
		if s := &st.Servers[i]; s.State == ServerLive && s.Role == RoleServer && !s.Cordoned && !slices.Contains(servers, s.ID) {
			open++
		}
	}
	if open == 0 {
		return nil, faultf(CodeNoCapacity, "%s cannot be drained: of %d servers, none that is live and not cordoned would be left", op.Subject, len(st.Servers))
	}
	steps, blocked := planSteps(st.Clone(), hooks, servers, Destination{})
	op.Steps = steps
	if len(blocked) > 0 {
		return op, faultf(CodeNoCapacity, "%s cannot be drained, %d of %d steps are blocked: %s", op.Subject, len(blocked), len(blocked)+len(steps), strings.Join(blocked, "; "))
	}
	return op, nil
}

// planSteps returns the steps that take all VMs off the servers, and what blocks the others. st is scratch.
func planSteps(st State, hooks Hooks, servers []ident.ServerID, to Destination) (steps []OpStep, blocked []string) {
	p := planner{st: st, hooks: hooks}
	for _, id := range servers {
		p.st.Server(id).Cordoned = true
	}
	for i := range p.st.VMs {
		if vm := &p.st.VMs[i]; vm.State.Active() {
			p.members(vm, servers, to)
			p.standbys(vm, servers)
		}
	}
	return p.steps, p.blocked
}

// planner takes steps on a copy of the state.
type planner struct {
	st      State
	hooks   Hooks
	steps   []OpStep
	blocked []string
}

func (p *planner) add(kind StepKind, vm *VM, from *VMPart, to ident.ServerID) {
	s := OpStep{Kind: kind, State: StepWaiting, VM: vm.ID, Name: vm.Spec.Name, From: from.Server, FromName: from.ServerName, To: to, Bytes: vm.Spec.MemoryBytes}
	if target := p.st.Server(to); target != nil {
		s.ToName = target.Name
	}
	p.steps = append(p.steps, s)
}

// members plans a move of each part that runs on one of the servers.
func (p *planner) members(vm *VM, servers []ident.ServerID, to Destination) {
	for i := 0; i < len(vm.Parts); i++ {
		part := vm.Parts[i]
		if part.Standby || part.Gone || !slices.Contains(servers, part.Server) {
			continue
		}
		if vm.Spec.Linux != nil && len(vm.Members()) > 1 {
			p.blocked = append(p.blocked, fmt.Sprintf("vm %s: a Linux guest over several servers does not move yet: stop it, or let it end", vm.Spec.Name))
			continue
		}
		if p.hooks.Mover == nil {
			p.blocked = append(p.blocked, "vm "+vm.Spec.Name+": nothing can be moved here")
			continue
		}
		target, fault := p.hooks.Mover.Target(&p.st, vm, []ident.Part{part.Part}, to)
		if fault != nil {
			p.blocked = append(p.blocked, fault.Text)
			continue
		}
		p.add(StepMove, vm, &part, target)
		s := p.st.Server(target)
		part.Server, part.ServerName, part.Cell = s.ID, s.Name, s.Cell
		vm.Parts[i] = part
		vm.Parts = slices.DeleteFunc(vm.Parts, func(o VMPart) bool { return o.Standby && o.Server == target }) // it has become the part
		p.replenish(vm)
	}
}

// standbys plans another place for each replica that is kept on one of the servers.
func (p *planner) standbys(vm *VM, servers []ident.ServerID) {
	for _, part := range slices.Clone(vm.Parts) {
		if !part.Standby || !slices.Contains(servers, part.Server) || vm.Spec.Protect != ProtectReplica && !part.Mirror {
			continue
		}
		if to := standbyTargets(&p.st, p.hooks, vm, part.Server, 0); len(to) > 0 {
			p.moveStandby(vm, &part, to[0])
		} else if part.Mirror || vm.spare(part.Server) {
			p.add(StepStandby, vm, &part, 0)
			vm.Parts = slices.DeleteFunc(vm.Parts, func(o VMPart) bool { return o.Standby && o.Server == part.Server })
		} else {
			p.blocked = append(p.blocked, fmt.Sprintf("vm %s: no other server can keep its replica of %s: make room, or end its protection", vm.Spec.Name, vm.Spec.MemoryBytes))
		}
	}
}

// moveStandby plans the move of a replica.
func (p *planner) moveStandby(vm *VM, part *VMPart, to ident.ServerID) {
	p.add(StepStandby, vm, part, to)
	s, old := p.st.Server(to), vm.standbyOn(part.Server)
	old.Server, old.ServerName, old.Cell = s.ID, s.Name, s.Cell
}

// replenish places the standbys that a VM lacks.
func (p *planner) replenish(vm *VM) {
	if !vm.wantsStandbys() {
		return
	}
	for _, id := range p.hooks.Placer.Standbys(&p.st, vm) {
		s := p.st.Server(id)
		vm.Parts = append(vm.Parts, VMPart{Server: s.ID, ServerName: s.Name, Cell: s.Cell, Standby: true, Mirror: vm.Spec.Protect != ProtectReplica})
	}
}

// planRestore opens servers again. What the last drains took away from them goes back if that is wanted, and can.
func planRestore(st *State, hooks Hooks, c *StartOperation, op *Operation, servers []ident.ServerID) (*Operation, *Fault) {
	op.Subject, op.Servers = subject(c.Cells, c.Servers), servers
	if len(servers) == 0 {
		return nil, faultf(CodeInvalid, "a restore needs at least one cell or server")
	}
	for i := range st.Operations {
		if o := &st.Operations[i]; o.State == OpRunning && o.Kind == OpDrain && slices.ContainsFunc(o.Servers, func(id ident.ServerID) bool { return slices.Contains(servers, id) }) {
			return nil, faultf(CodeConflict, "operation %d still drains %s: `op cancel %d` first", o.ID, o.Subject, o.ID)
		}
	}
	p := planner{st: st.Clone(), hooks: hooks}
	for _, id := range servers {
		p.st.Server(id).Cordoned = false
	}
	switch c.Return {
	case "", ReturnNone:
	case ReturnOriginal:
		p.original(servers)
	case ReturnBalance:
		if hooks.Balancer == nil {
			return nil, faultf(CodeUnknown, "nothing can be balanced here")
		}
		op.ScoreBefore = hooks.Balancer.Score(&p.st)
		p.balance(servers)
		op.ScoreAfter = hooks.Balancer.Score(&p.st)
	default:
		return nil, faultf(CodeInvalid, "return %q is none of %q, %q, %q", clip(string(c.Return), 32), ReturnNone, ReturnOriginal, ReturnBalance)
	}
	op.Steps = p.steps
	return op, nil
}

// original plans the way back of all parts and replicas that a drain took away from the servers. What cannot go back stays, as a step that says why.
func (p *planner) original(servers []ident.ServerID) {
	for i := range p.st.VMs {
		vm := &p.st.VMs[i]
		for _, part := range slices.Clone(vm.Parts) {
			if vm.State == VMRunning && !part.Gone && slices.Contains(servers, part.Origin) {
				p.back(vm, &part)
			}
		}
	}
}

// back plans the move of a VM's part to where it came from.
func (p *planner) back(vm *VM, part *VMPart) {
	if !part.Standby {
		p.members(vm, []ident.ServerID{part.Server}, Destination{Server: part.Origin})
	} else if to := standbyTargets(&p.st, p.hooks, vm, part.Server, part.Origin); len(to) > 0 {
		p.moveStandby(vm, part, to[0])
	} else {
		p.blocked = append(p.blocked, fmt.Sprintf("vm %s: %s cannot keep its replica now", vm.Spec.Name, p.st.Server(part.Origin).Name))
	}
	for _, why := range p.blocked {
		kind := StepMove
		if part.Standby {
			kind = StepStandby
		}
		p.add(kind, vm, part, part.Origin)
		last := &p.steps[len(p.steps)-1]
		last.State, last.Note = StepSkipped, why
	}
	p.blocked = nil
}

// balance plans what the balancer would bring to the servers.
func (p *planner) balance(servers []ident.ServerID) {
	var leave []ident.VMID
	for range len(p.st.VMs) {
		t, ok := p.hooks.Balancer.Next(&p.st, leave)
		if !ok {
			return
		}
		if slices.Contains(servers, t.To) {
			p.transfer(t)
		}
		for _, id := range []ident.VMID{t.VM, t.With} {
			if i, known := slices.BinarySearch(leave, id); id != 0 && !known {
				leave = slices.Insert(leave, i, id)
			}
		}
	}
}
