package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// FirstJoinedID is above every ID that an initial server may have: a server that joins later has FirstJoinedID plus the log index at
// which it was added, which no other server ever has.
const FirstJoinedID = 1000

func (f *FSM) addServer(c *AddServer, index uint64) (any, *Fault) {
	if fault := checkInfo(&c.Info); fault != nil {
		return nil, fault
	}
	if old := f.state.ServerNamed(c.Info.Name); old != nil {
		switch {
		case old.Process.Boot == c.Info.Process.Boot && old.State == ServerJoining:
			return AddServerResult{ID: old.ID}, nil // the same process asks again
		case old.State == ServerLive:
			return nil, faultf(CodeExists, "server name %s is in use by a live server (pid %d at %s): choose another name, or stop that one first",
				old.Name, old.Process.PID, old.Addrs.Peer)
		}
		f.forget(old.ID)
	}
	if len(f.state.Servers) >= MaxServers {
		return nil, faultf(CodeNoCapacity, "the cluster has %d servers, which is the most it can have", MaxServers)
	}
	id := ident.ServerID(FirstJoinedID + index)
	s := Server{ID: id, State: ServerJoining}
	s.take(&c.Info)
	f.state.Servers = append(f.state.Servers, s) // the highest ID so far: order is kept
	f.emit(Event{Kind: EventServerAdded, Subject: "server " + string(s.Name), Text: fmt.Sprintf("server %s%s joins", s.Name, ofCell(s.Cell)),
		Fields: map[string]string{"cell": string(s.Cell), "addr": s.Addrs.Peer}})
	return AddServerResult{ID: id}, nil
}

func (s *Server) take(info *ServerInfo) {
	s.Name, s.Cell, s.Role, s.HostID = info.Name, info.Cell, info.Role, info.HostID
	s.Process, s.Addrs, s.Slots, s.MemoryBytes, s.HostSched = info.Process, info.Addrs, info.Slots, info.MemoryBytes, info.HostSched
	s.PhysicalBytes = info.PhysicalBytes
}

func (f *FSM) forget(id ident.ServerID) {
	f.state.Servers = slices.DeleteFunc(f.state.Servers, func(s Server) bool { return s.ID == id })
}

func (f *FSM) removeServer(c *RemoveServer) *Fault {
	s := f.state.ServerNamed(c.Name)
	switch {
	case s == nil:
		return f.noServer(c.Name)
	case s.State == ServerLive:
		return faultf(CodeConflict, "server %s is live: stop it first", s.Name)
	}
	f.forget(s.ID)
	f.emit(Event{Kind: EventServerRemoved, Subject: "server " + string(c.Name), Text: fmt.Sprintf("server %s was removed", c.Name)})
	return nil
}

func (f *FSM) noServer(name ident.ServerName) *Fault {
	var known []ident.ServerName
	for i := range f.state.Servers {
		known = append(known, f.state.Servers[i].Name)
	}
	slices.Sort(known)
	return faultf(CodeNotFound, "no server is called %q; known are: %s", name, join(known))
}

// base checks that a server's own proposal was made against what is on record: a late one must change nothing.
func (f *FSM) base(id ident.ServerID, inc ident.Incarnation, boot string) (*Server, *Fault) {
	s := f.state.Server(id)
	if s == nil {
		return nil, faultf(CodeNotFound, "server %d is not known: it was removed, or belongs to another cluster", id)
	}
	if s.Incarnation != inc || s.Process.Boot != boot {
		return nil, faultf(CodeConflict, "server %s is on record as incarnation %d, not %d, or as another process", s.Name, s.Incarnation, inc)
	}
	return s, nil
}

func (f *FSM) admit(c *Admit) *Fault {
	if fault := checkInfo(&c.Info); fault != nil {
		return fault
	}
	s, fault := f.base(c.Server, c.BaseIncarnation, c.BaseBoot)
	if fault != nil {
		return fault
	}
	if c.Info.Name != s.Name || c.Info.Cell != s.Cell {
		return faultf(CodeInvalid, "server %d is %s of cell %s, not %s of cell %s: name and cell cannot change", s.ID, s.Name, s.Cell, c.Info.Name, c.Info.Cell)
	}
	f.state.View.Epoch++
	if s.State == ServerLive {
		// It came back before anyone noticed that it was gone. It vouches that the workers of its former incarnation are gone.
		f.contain([]ident.ServerID{s.ID}, map[ident.ServerID]string{s.ID: "it restarted"})
	}
	cellWasLive := f.state.CellLive(s.Cell)
	s.take(&c.Info)
	s.State, s.Incarnation, s.Left = ServerLive, ident.Incarnation(f.state.View.Epoch), 0
	f.rebuildView()
	cause := f.emit(Event{Kind: EventServerLive, Subject: "server " + string(s.Name),
		Text:   fmt.Sprintf("server %s%s is live in epoch %d", s.Name, ofCell(s.Cell), f.state.View.Epoch),
		Fields: map[string]string{"cell": string(s.Cell), "pid": fmt.Sprint(s.Process.PID), "incarnation": fmt.Sprint(s.Incarnation)}})
	if !cellWasLive && s.Cell != "" {
		f.emit(Event{Kind: EventCellLive, Subject: "cell " + string(s.Cell), Text: fmt.Sprintf("cell %s is live", s.Cell), Cause: cause})
	}
	f.tendAllStandbys()
	return nil
}

func (f *FSM) resume(c *Resume) *Fault {
	if fault := checkInfo(&c.Info); fault != nil {
		return fault
	}
	s, fault := f.base(c.Server, c.BaseIncarnation, c.BaseBoot)
	if fault != nil {
		return fault
	}
	if s.State != ServerLive {
		return faultf(CodeConflict, "server %s is %s: it must be admitted anew", s.Name, s.State)
	}
	if c.Info.Name != s.Name || c.Info.Cell != s.Cell {
		return faultf(CodeInvalid, "server %d is %s of cell %s: name and cell cannot change", s.ID, s.Name, s.Cell)
	}
	s.take(&c.Info)
	f.endSaves(s.ID, s.Process.Boot)
	f.emit(Event{Kind: EventServerResumed, Subject: "server " + string(s.Name),
		Text:   fmt.Sprintf("server %s goes on with a new serve process, pid %d", s.Name, s.Process.PID),
		Fields: map[string]string{"pid": fmt.Sprint(s.Process.PID), "incarnation": fmt.Sprint(s.Incarnation)}})
	return nil
}

// exclude takes those targets out of the view that are still what the leader saw: others came back meanwhile and are left alone.
func (f *FSM) exclude(c *Exclude, term uint64) *Fault {
	if c.Term != term {
		return faultf(CodeConflict, "exclusion was decided in term %d and committed in term %d", c.Term, term)
	}
	var ids []ident.ServerID
	causes := make(map[ident.ServerID]string)
	for _, t := range c.Targets {
		s := f.state.Server(t.Server)
		if s == nil || s.State != ServerLive || causes[t.Server] != "" {
			continue
		}
		if (s.Incarnation != t.Incarnation || s.Process.Boot != t.Boot) && f.hooks.Canary != CanaryProofAnyProcess {
			continue
		}
		ids = append(ids, t.Server)
		causes[t.Server] = clip(t.Cause, 512) + " "
	}
	if len(ids) == 0 {
		return faultf(CodeConflict, "none of the servers to exclude is still in the view as it was seen")
	}
	f.state.View.Epoch++
	f.contain(ids, causes)
	return nil
}

// contain marks servers dead in the current epoch, and ends or degrades the VMs that depended on them; no others.
func (f *FSM) contain(ids []ident.ServerID, causes map[ident.ServerID]string) {
	loss := Loss{Epoch: f.state.View.Epoch}
	for _, id := range ids {
		s := f.state.Server(id)
		s.State, s.Left = ServerDead, f.state.View.Epoch
		loss.Servers = append(loss.Servers, LostServer{Server: s.ID, Name: s.Name, Cell: s.Cell, Incarnation: s.Incarnation})
	}
	f.rebuildView()
	var cause uint64
	var cellsLost []ident.CellName
	for i := range loss.Servers {
		l := &loss.Servers[i]
		l.WholeCell = l.Cell != "" && !f.state.CellLive(l.Cell)
		cause = f.emit(Event{Kind: EventServerDead, Subject: "server " + string(l.Name),
			Text:   fmt.Sprintf("server %s%s was excluded in epoch %d: %s", l.Name, ofCell(l.Cell), loss.Epoch, trimSpace(causes[l.Server])),
			Fields: map[string]string{"cell": string(l.Cell), "incarnation": fmt.Sprint(l.Incarnation)}})
		if l.WholeCell && l.Cell != "" && !slices.Contains(cellsLost, l.Cell) {
			cellsLost = append(cellsLost, l.Cell)
		}
	}
	slices.Sort(cellsLost)
	for _, c := range cellsLost {
		cause = f.emit(Event{Kind: EventCellLost, Subject: "cell " + string(c), Text: fmt.Sprintf("cell %s lost in epoch %d", c, loss.Epoch), Cause: cause})
	}
	for i := range f.state.VMs {
		if vm := &f.state.VMs[i]; vm.State.Active() {
			f.settle(vm, f.outcome(loss, vm), loss, cause)
		}
	}
}

func (f *FSM) outcome(loss Loss, vm *VM) Outcome {
	o := f.hooks.Container.Contain(loss, vm)
	if f.hooks.Canary == CanaryBystander && o.Kind == OutcomeUntouched {
		o = Outcome{Kind: OutcomeLost, Reason: "planted"}
	}
	return o
}

func (f *FSM) settle(vm *VM, o Outcome, loss Loss, cause uint64) {
	switch o.Kind {
	case OutcomeLost:
		f.lose(vm, VMLost, o.Reason, cause)
	case OutcomeRestore:
		f.restore(vm, o.Image, o.Gone, o.Reason, cause)
	case OutcomeUnprotected:
		f.dropStandbys(vm, func(p *VMPart) bool { return slices.Contains(o.Gone, p.Part) })
		f.tendStandbys(vm)
	case OutcomeContinue:
		for i := range vm.Parts {
			if slices.Contains(o.Gone, vm.Parts[i].Part) {
				vm.Parts[i].Gone = true
			}
		}
		vm.Epoch, vm.Restored = max(loss.Epoch, vm.Epoch+1), false
		f.emit(Event{Kind: EventVMDegraded, Subject: "vm " + vm.Spec.Name, Text: fmt.Sprintf("vm %s goes on without some parts: %s", vm.Spec.Name, o.Reason),
			Fields: map[string]string{"reason": o.Reason}, Cause: cause})
	}
}

func (f *FSM) rebuildView() {
	f.state.View.Live = nil
	for i := range f.state.Servers {
		if s := &f.state.Servers[i]; s.State == ServerLive {
			f.state.View.Live = append(f.state.View.Live, Member{s.ID, s.Incarnation})
		}
	}
}

func (f *FSM) cordon(c *Cordon) *Fault {
	verb := map[bool]string{true: "cordoned: no new VM parts are placed on it", false: "open for new VM parts again"}[c.On]
	f.roomier = f.roomier || !c.On
	switch {
	case (c.Server == "") == (c.Cell == ""):
		return faultf(CodeInvalid, "a cordon needs a server or a cell, not both")
	case c.Server != "":
		s := f.state.ServerNamed(c.Server)
		if s == nil {
			return f.noServer(c.Server)
		}
		s.Cordoned = c.On
		f.emit(Event{Kind: EventServerCordon, Subject: "server " + string(s.Name), Text: fmt.Sprintf("server %s is %s", s.Name, verb)})
		return nil
	}
	if !slices.Contains(f.state.Cells(), c.Cell) {
		return f.noCell(c.Cell)
	}
	for i := range f.state.Servers {
		if s := &f.state.Servers[i]; s.Cell == c.Cell {
			s.Cordoned = c.On
		}
	}
	f.emit(Event{Kind: EventServerCordon, Subject: "cell " + string(c.Cell), Text: fmt.Sprintf("cell %s is %s", c.Cell, verb)})
	return nil
}

// ofCell names a server's cell after its own name; a witness is in none.
func ofCell(c ident.CellName) string {
	if c == "" {
		return ""
	}
	return " of cell " + string(c)
}

func (f *FSM) noCell(name ident.CellName) *Fault {
	return faultf(CodeInvalid, "no cell is called %q; known are: %s", name, join(f.state.Cells()))
}

func (f *FSM) serverError(c *ServerError) *Fault {
	s := f.state.Server(c.Server)
	if s == nil {
		return faultf(CodeNotFound, "server %d is not known", c.Server)
	}
	s.LastError = clip(c.Text, 1024)
	if c.Text != "" {
		f.emit(Event{Kind: EventServerError, Subject: "server " + string(s.Name), Text: s.LastError})
	}
	return nil
}

// CellLive tells whether a cell has a live server.
func (s *State) CellLive(c ident.CellName) bool {
	for i := range s.Servers {
		if s.Servers[i].Cell == c && s.Servers[i].State == ServerLive {
			return true
		}
	}
	return false
}
