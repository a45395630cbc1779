package monitor

import (
	"errors"
	"slices"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/recovery"
)

// placer answers the replicated state's question where a VM goes with the balancer's placement.
type placer struct{}

func (placer) Place(st *cells.State, spec *cells.VMSpec) ([]cells.PlacedPart, *cells.Fault) {
	homes, fault := st.DiskHomes(spec)
	if fault != nil {
		return nil, fault
	}
	req := balancer.Request{VCPUs: spec.VCPUs, MemoryBytes: spec.MemoryBytes, Span: spec.Span}
	var parts []balancer.Part
	var err error
	if homes == nil {
		parts, err = balancer.Place(serversForPlacement(st), req)
	} else {
		parts, err = placeAt(serversForPlacement(st), req, homes)
	}
	if err != nil {
		code := cells.CodeNoCapacity
		if errors.Is(err, balancer.ErrTooLarge) || errors.Is(err, balancer.ErrInvalid) {
			code = cells.CodeInvalid
		}
		return nil, &cells.Fault{Code: code, Text: "vm " + spec.Name + ": " + err.Error()}
	}
	out := make([]cells.PlacedPart, len(parts))
	for i, p := range parts {
		out[i] = cells.PlacedPart{Server: p.Server, VCPUs: p.VCPUs}
	}
	return out, nil
}

// Standbys places the replicas or mirrors that a VM lacks.
func (placer) Standbys(st *cells.State, vm *cells.VM) []ident.ServerID {
	if vm.Spec.Protect != cells.ProtectReplica {
		return placeMirrors(st, vm)
	}
	req := balancer.StandbyRequest{Replicas: vm.Spec.Replicas, MemoryBytes: vm.Spec.MemoryBytes}
	for _, p := range vm.Parts {
		if p.Gone {
			continue
		}
		if p.Standby {
			req.Standbys = append(req.Standbys, p.Server)
		} else {
			req.Members = append(req.Members, p.Server)
			req.VCPUs = max(req.VCPUs, len(p.VCPUs))
		}
	}
	return balancer.PlaceStandbys(serversForPlacement(st), req)
}

// serversForPlacement counts what the active VMs use on each server.
func serversForPlacement(st *cells.State) []balancer.Server {
	out := make([]balancer.Server, len(st.Servers))
	at := make(map[ident.ServerID]*balancer.Server, len(st.Servers))
	for i := range st.Servers {
		s := &st.Servers[i]
		out[i] = balancer.Server{
			ID: s.ID, Name: s.Name, Cell: s.Cell, Slots: s.Slots, MemoryBytes: s.MemoryBytes,
			Open: s.State == cells.ServerLive && !s.Cordoned && s.Role == cells.RoleServer,
		}
		switch {
		case s.Role == cells.RoleWitness:
			out[i].Closed = "a witness"
		case s.State != cells.ServerLive:
			out[i].Closed = string(s.State)
		case s.Cordoned:
			out[i].Closed = "cordoned"
		}
		at[s.ID] = &out[i]
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if !vm.State.Active() {
			continue
		}
		share := vm.Spec.MemoryBytes / ident.Bytes(max(1, len(vm.Members())))
		for _, p := range vm.Parts {
			if s := at[p.Server]; s != nil && !p.Gone {
				s.UsedVCPUs += len(p.VCPUs)
				switch {
				case p.Mirror: // it holds disks only
				case p.Standby:
					s.UsedBytes += vm.Spec.MemoryBytes // a replica is whole
				default:
					s.UsedBytes += share
				}
			}
		}
	}
	return out
}

// PromisedBytes is how much of a server's memory active VMs may use.
func PromisedBytes(st *cells.State, server ident.ServerID) ident.Bytes {
	for _, s := range serversForPlacement(st) {
		if s.ID == server {
			return s.UsedBytes
		}
	}
	return 0
}

// container answers what a loss means to a VM with recovery's decision.
type container struct{}

func (container) Contain(loss cells.Loss, vm *cells.VM) cells.Outcome {
	l := recovery.Loss{Epoch: loss.Epoch}
	for _, s := range loss.Servers {
		l.Servers = append(l.Servers, recovery.LostServer{Server: s.Server, Name: s.Name, Cell: s.Cell, Incarnation: s.Incarnation, WholeCell: s.WholeCell})
	}
	v := recovery.VM{Running: vm.State == cells.VMRunning, OnLossTouch: vm.Spec.OnLoss == cells.OnLossTouch && !vm.Restored, Home: vm.Home}
	for i := range vm.Parts {
		p := &vm.Parts[i]
		v.Parts = append(v.Parts, recovery.Part{Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, Gone: p.Gone, Cell: p.Cell, Standby: p.Standby, Holds: vm.CanGoBackTo(p)})
	}
	for _, b := range vm.Loans() {
		i := slices.IndexFunc(v.Parts, func(p recovery.Part) bool { return p.Part == b.Part })
		v.Parts[i].Lenders = append(v.Parts[i].Lenders, recovery.Lender{Server: b.Server, Incarnation: b.Incarnation})
	}
	d := recovery.Contain(l, v)
	kind := map[recovery.Fate]cells.OutcomeKind{
		recovery.Untouched: cells.OutcomeUntouched, recovery.Lost: cells.OutcomeLost, recovery.Continues: cells.OutcomeContinue,
		recovery.Restored: cells.OutcomeRestore, recovery.Unprotected: cells.OutcomeUnprotected,
	}[d.Fate]
	return cells.Outcome{Kind: kind, Reason: d.Reason, Gone: d.Gone, Image: d.Image}
}

// mover answers the replicated state's question where parts of a running VM can go.
type mover struct{}

func (mover) Target(st *cells.State, vm *cells.VM, parts []ident.Part, to cells.Destination) (ident.ServerID, *cells.Fault) {
	req := balancer.MoveRequest{MemoryBytes: vm.Spec.MemoryBytes, Server: to.Server, Cell: to.Cell}
	for _, p := range vm.Parts {
		switch {
		case p.Gone:
		case p.Mirror:
			req.Mirrors = append(req.Mirrors, p.Server)
		case p.Standby:
			req.Standbys = append(req.Standbys, p.Server)
		default:
			req.Members = append(req.Members, p.Server)
			if slices.Contains(parts, p.Part) {
				req.VCPUs += len(p.VCPUs)
			}
		}
	}
	req.VCPUs = max(1, req.VCPUs) // no part leaves: one vCPU goes
	id, err := balancer.PlaceMove(serversForPlacement(st), req)
	if err != nil {
		return 0, &cells.Fault{Code: cells.CodeNoCapacity, Text: "vm " + vm.Spec.Name + ": " + err.Error()}
	}
	return id, nil
}

// PlanOperation returns the operation that a command would start, with the steps that it would take now. It changes nothing.
func PlanOperation(st *cells.State, c *cells.StartOperation) (*cells.Operation, *cells.Fault) {
	return cells.PlanOperation(st, hooksWith(""), c)
}

// hooksWith connects the decisions that the replicated state asks for.
func hooksWith(canary string) cells.Hooks {
	return cells.Hooks{Placer: placer{}, Mover: mover{}, Balancer: evener{canary}, Container: container{}, Canary: canary}
}

// NewFSM returns the replicated state of a cluster before its first command, with the decisions that a server connects to it. For simulations of
// what follows from the log alone.
func NewFSM(clusterID, canary string) *cells.FSM {
	return cells.NewFSM(clusterID, nil, hooksWith(canary))
}
