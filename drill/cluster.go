package drill

import (
	"context"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// Cluster is what a drill asks of a cluster. [Connect] gives the one behind the control API.
type Cluster interface {
	Status(context.Context) (*api.StatusResponse, error)
	Servers(context.Context) ([]*api.Server, error)
	VMs(context.Context) ([]*api.VM, error)
	// Run creates a VM from a built-in payload and returns when it is registered.
	Run(context.Context, *api.VMSpec) (*api.VM, error)
	Remove(ctx context.Context, vm string) error
	// Output hands the VM's output records from index on to each until the VM has ended; it may return early with an error.
	Output(ctx context.Context, vm string, index uint64, each func(index uint64, record uint32) error) error
	// Operate starts an operation on cells and servers, Operation looks at one, Cancel ends one.
	Operate(context.Context, *api.StartOperationRequest) (*api.Operation, error)
	Operation(ctx context.Context, id uint64) (*api.Operation, error)
	Cancel(ctx context.Context, id uint64) error
	// Dependents names what depends on a cell or server; nothing if it can be stopped.
	Dependents(ctx context.Context, name string) ([]string, error)
	// SetFaults has one server do these things to itself, in place of what it did before, until the lease runs out. The error has code UNAVAILABLE if
	// it does not answer.
	SetFaults(ctx context.Context, server string, faults []*api.Fault, lease time.Duration, seed uint64) error
	// Faults tells what one server does to itself, and whether its configuration allows drills.
	Faults(ctx context.Context, server string) (allowed bool, faults []*api.Fault, err error)
	// CrashGuest lets a VM's guest crash.
	CrashGuest(ctx context.Context, vm string) error
	// Events returns the events of the replicated log, oldest first.
	Events(context.Context) ([]*api.Event, error)
}

// Host is how a drill reaches the processes of the cluster. A process that is gone is never an error of Signal.
type Host interface {
	// Dir is the cluster's directory, where the journal lies.
	Dir() string
	// Servers lists all servers that belong here, whether their processes run or not.
	Servers() []HostServer
	// Processes returns the running processes of the cluster.
	Processes() ([]Process, error)
	// Signal sends a signal to exactly these processes, all of them opened and identified before the first is signalled.
	Signal(sig syscall.Signal, to ...Process) error
	// Start starts the serve process of a server that does not run.
	Start(server string) error
	// Self identifies the calling process, Alive tells whether a process still exists.
	Self() Process
	Alive(Process) bool
}

// HostServer is a server of the cluster. A witness belongs to no cell.
type HostServer struct{ Name, Cell string }

// Process names one process for ever.
type Process struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"`
	Server     string `json:"server,omitempty"`
	Worker     bool   `json:"worker,omitempty"` // as against serve
}

// remote is the Cluster behind the control API.
type remote struct {
	c    *api.Client
	addr func(server string) string
}

// Connect makes a client of the control API a Cluster. addr gives the address at which the API of one server is reached; nil if no server is to be broken.
func Connect(c *api.Client, addr func(server string) string) Cluster { return remote{c, addr} }

// at returns the service of one server.
func (r remote) at(server string) (api.CellvisorClient, error) {
	if r.addr == nil || r.addr(server) == "" {
		return nil, status.Errorf(codes.NotFound, "the address of server %s is not known", server)
	}
	return r.c.At(r.addr(server)), nil
}

// Operate implements Cluster.
func (r remote) Operate(ctx context.Context, req *api.StartOperationRequest) (out *api.Operation, err error) {
	// Not repeated elsewhere: it would begin twice.
	resp, err := r.c.API().StartOperation(ctx, req)
	return resp.GetOperation(), err
}

// Operation implements Cluster.
func (r remote) Operation(ctx context.Context, id uint64) (out *api.Operation, err error) {
	err = r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.GetOperation(ctx, &api.GetOperationRequest{Id: id})
		out = resp.GetOperation()
		return err
	})
	return out, err
}

// Cancel implements Cluster.
func (r remote) Cancel(ctx context.Context, id uint64) error {
	return r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		_, err := svc.CancelOperation(ctx, &api.CancelOperationRequest{Id: id, By: "drill"})
		return err
	})
}

// Dependents implements Cluster.
func (r remote) Dependents(ctx context.Context, name string) (out []string, err error) {
	err = r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		req := &api.SafeToStopRequest{}
		if cells, err := svc.ListCells(ctx, &api.ListCellsRequest{}); err != nil {
			return err
		} else if slices.ContainsFunc(cells.GetCells(), func(c *api.Cell) bool { return c.GetName() == name }) {
			req.Cells = []string{name}
		} else {
			req.Servers = []string{name}
		}
		resp, err := svc.SafeToStop(ctx, req)
		out = resp.GetDependents()
		return err
	})
	return out, err
}

// SetFaults implements Cluster.
func (r remote) SetFaults(ctx context.Context, server string, faults []*api.Fault, lease time.Duration, seed uint64) error {
	svc, err := r.at(server)
	if err == nil {
		_, err = svc.SetFaults(ctx, &api.SetFaultsRequest{Set: true, Faults: faults, LeaseMs: uint32(lease.Milliseconds()), Seed: seed})
	}
	return err
}

// Faults implements Cluster.
func (r remote) Faults(ctx context.Context, server string) (bool, []*api.Fault, error) {
	svc, err := r.at(server)
	if err != nil {
		return false, nil, err
	}
	resp, err := svc.SetFaults(ctx, &api.SetFaultsRequest{})
	return resp.GetAllowed(), resp.GetFaults(), err
}

// CrashGuest implements Cluster: the VM's home does it.
func (r remote) CrashGuest(ctx context.Context, vm string) error {
	var home string
	err := r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.GetVM(ctx, &api.GetVMRequest{Name: vm})
		home = resp.GetVm().GetHome()
		return err
	})
	if err != nil {
		return err
	}
	svc, err := r.at(home)
	if err == nil {
		_, err = svc.CrashGuest(ctx, &api.CrashGuestRequest{Name: vm})
	}
	return err
}

func (r remote) Status(ctx context.Context) (out *api.StatusResponse, err error) {
	err = r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		out, err = svc.Status(ctx, &api.StatusRequest{})
		return err
	})
	return out, err
}

func (r remote) Servers(ctx context.Context) (out []*api.Server, err error) {
	err = r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListServers(ctx, &api.ListServersRequest{})
		out = resp.GetServers()
		return err
	})
	return out, err
}

func (r remote) VMs(ctx context.Context) (out []*api.VM, err error) {
	err = r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListVMs(ctx, &api.ListVMsRequest{})
		out = resp.GetVms()
		return err
	})
	return out, err
}

func (r remote) Run(ctx context.Context, spec *api.VMSpec) (*api.VM, error) {
	return r.c.Run(ctx, spec)
}

func (r remote) Remove(ctx context.Context, vm string) error {
	return r.c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		_, err := svc.RemoveVM(ctx, &api.RemoveVMRequest{Name: vm, Force: true})
		return err
	})
}

func (r remote) Output(ctx context.Context, vm string, index uint64, each func(uint64, uint32) error) error {
	return r.c.Output(ctx, vm, index, true, each)
}

func (r remote) Events(ctx context.Context) (out []*api.Event, err error) {
	err = r.c.FollowEvents(ctx, 0, false, func(e *api.Event) error {
		if e.GetLogIndex() != 0 {
			out = append(out, e)
		}
		return nil
	})
	return out, err
}
