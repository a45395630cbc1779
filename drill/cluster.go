package drill

import (
	"context"
	"syscall"

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
type remote struct{ c *api.Client }

// Connect makes a client of the control API a Cluster.
func Connect(c *api.Client) Cluster { return remote{c} }

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
