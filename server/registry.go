package server

import (
	"sort"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// Registry is what one server knows, to be told in the words of the API: for whoever has cores and no serve process around them, as the
// simulator's drills have.
type Registry struct {
	State  *cells.State
	Status monitor.Status
	Leased bool // contact with a quorum is recent
}

// Overview is the API's Status.
func (r Registry) Overview() *api.StatusResponse {
	out := &api.StatusResponse{Epoch: uint64(r.Status.Epoch), Quorum: r.Leased, ServersTotal: uint32(len(r.State.Servers)), VmsTotal: uint32(len(r.State.VMs))}
	if leader := r.State.Server(r.Status.Leader); leader != nil {
		out.Leader = string(leader.Name)
	}
	return out
}

// Servers is the API's list of servers.
func (r Registry) Servers() []*api.Server {
	byServer := loads(r.State)
	snap := &snapshot{state: r.State, status: r.Status}
	var out []*api.Server
	for i := range r.State.Servers {
		sv := &r.State.Servers[i]
		out = append(out, serverMessage(snap, sv, byServer[sv.ID]))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// VMs is the API's list of VMs.
func (r Registry) VMs() []*api.VM {
	var out []*api.VM
	for i := range r.State.VMs {
		out = append(out, vmMessage(r.State, &r.State.VMs[i]))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// SafeToStop is the API's answer to whether anything depends on a cell or server.
func (r Registry) SafeToStop(name string) []string {
	stop := map[ident.ServerID]bool{}
	for i := range r.State.Servers {
		sv := &r.State.Servers[i]
		stop[sv.ID] = string(sv.Cell) == name || string(sv.Name) == name
	}
	return append(vmsOn(r.State, stop), quorumWithout(&snapshot{state: r.State, status: r.Status}, stop)...)
}

// EventMessage tells one replicated event.
func EventMessage(e *cells.Event) *api.Event { return eventMessage(e, "") }

// OperationMessage tells one operation.
func OperationMessage(op *cells.Operation) *api.Operation { return operationMessage(op) }

// SpecFrom reads what an operator asks for; the errors are those of the API.
func SpecFrom(in *api.VMSpec) (*cells.VMSpec, error) {
	spec, err := specFrom(in)
	if err == nil {
		err = checkBuiltin(spec)
	}
	return spec, err
}

// StartFrom reads what operation is asked for, at a time.
func StartFrom(req *api.StartOperationRequest, now time.Time) *cells.StartOperation {
	c := &cells.StartOperation{
		Cells: names[ident.CellName](req.GetCells()), Servers: names[ident.ServerName](req.GetServers()), VM: req.GetVm(),
		ToCell: ident.CellName(req.GetToCell()), ToServer: ident.ServerName(req.GetToServer()), OnDeadline: cells.OnDeadline(req.GetOnDeadline()),
		MaxParallel: int(req.GetMaxParallel()), Return: cells.Return(req.GetReturn()), Reason: req.GetReason(), By: req.GetBy(),
	}
	if req.Vcpu != nil {
		id := ident.VCPU(min(req.GetVcpu(), 1<<16-1))
		c.VCPU = &id
	}
	for kind, word := range opKinds {
		if word == req.GetKind() {
			c.Kind = kind
		}
	}
	if s := req.GetDeadlineSeconds(); s != 0 {
		c.DeadlineMs = now.UnixMilli() + int64(s)*1000
	}
	return c
}

// FaultError turns why a command was refused into an error of the API.
func FaultError(f *cells.Fault) error { return faultStatus(f) }
