package rehearsal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/server"
	"github.com/cellvisor/cellvisor/sim/guests"
)

// client answers a drill as the control API would.
type client struct{ w *world }

// registry is what the server knows that a client would have found: the first that runs and has a lease, else any.
func (c client) registry() (server.Registry, error) {
	s := c.w.Best()
	if s == nil {
		return server.Registry{}, status.Error(codes.Unavailable, "no server answers")
	}
	st := s.Core.Status(s.Clock())
	return server.Registry{State: s.Core.Peek(), Status: st, Leased: st.Quorum && s.Clock() < s.Lease.Until}, nil
}

// Status implements drill.Cluster.
func (c client) Status(context.Context) (*api.StatusResponse, error) {
	r, err := c.registry()
	if err != nil {
		return nil, err
	}
	return r.Overview(), nil
}

// Servers implements drill.Cluster.
func (c client) Servers(context.Context) ([]*api.Server, error) {
	r, err := c.registry()
	if err != nil {
		return nil, err
	}
	return r.Servers(), nil
}

// VMs implements drill.Cluster.
func (c client) VMs(context.Context) ([]*api.VM, error) {
	r, err := c.registry()
	if err != nil {
		return nil, err
	}
	return r.VMs(), nil
}

// Run implements drill.Cluster.
func (c client) Run(_ context.Context, in *api.VMSpec) (*api.VM, error) {
	spec, err := server.SpecFrom(in)
	if err == nil {
		_, err = guests.Modelled(spec.Builtin, spec.Args)
	}
	if err != nil {
		return nil, err
	}
	var vm cells.VM
	if err := c.command(cells.Command{CreateVM: &cells.CreateVM{Spec: *spec, Secret: strings.Repeat("0", 64)}}, &vm); err != nil {
		return nil, err
	}
	return &api.VM{Id: uint64(vm.ID), Name: vm.Spec.Name}, nil
}

// commandPatience is how long a client waits for a command to be agreed on.
const commandPatience = 10 * ident.Second

// command has the cluster agree on a command, and lets time pass until the answer is there. A server that dies meanwhile leaves it open, as it does
// outside: then another one is asked.
func (c client) command(cmd cells.Command, out any) error {
	deadline := c.w.Now() + commandPatience
	var answer *monitor.Response
	for answer == nil && c.w.Now() < deadline {
		s := c.w.Best()
		if s == nil {
			if err := c.w.pass(50 * ident.Millisecond); err != nil {
				return err
			}
			continue
		}
		boot := s.Boot()
		c.w.Command(s, cmd, deadline-c.w.Now(), func(r monitor.Response) { answer = &r })
		for answer == nil && s.Running() && s.Boot() == boot && c.w.Now() < deadline {
			if err := c.w.pass(ident.Millisecond); err != nil {
				return err
			}
		}
	}
	switch {
	case answer == nil:
		return status.Error(codes.DeadlineExceeded, "no server answered in time")
	case answer.Fault != nil:
		return server.FaultError(answer.Fault)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer.Result, out); err != nil {
		return fmt.Errorf("the result of an agreed command cannot be read: %w", err)
	}
	return nil
}

// Remove implements drill.Cluster.
func (c client) Remove(_ context.Context, name string) error {
	stop := cells.Command{StopVM: &cells.StopVM{Name: name, Reason: "removed"}}
	if err := c.command(stop, nil); err != nil && status.Code(err) != codes.FailedPrecondition {
		return err
	}
	return c.command(cells.Command{RemoveVM: &cells.RemoveVM{Name: name}}, nil)
}

// Output implements drill.Cluster: what there is.
func (c client) Output(_ context.Context, name string, index uint64, each func(uint64, uint32) error) error {
	r, err := c.registry()
	if err != nil {
		return err
	}
	vm := r.State.VMNamed(name)
	if vm == nil {
		return status.Errorf(codes.NotFound, "no VM is called %s", name)
	}
	for _, record := range c.w.Output(vm.ID, index) {
		if err := each(index, record); err != nil {
			return err
		}
		index++
	}
	return nil
}

// Events implements drill.Cluster.
func (c client) Events(context.Context) (out []*api.Event, err error) {
	s := c.w.Best()
	if s == nil {
		return nil, status.Error(codes.Unavailable, "no server answers")
	}
	events, _ := s.Core.EventsSince(0, cells.MaxEvents)
	for i := range events {
		out = append(out, server.EventMessage(&events[i]))
	}
	return out, nil
}

// Operate implements drill.Cluster.
func (c client) Operate(_ context.Context, req *api.StartOperationRequest) (*api.Operation, error) {
	var op cells.Operation
	now := time.UnixMicro(int64(c.w.Now()))
	if err := c.command(cells.Command{StartOperation: server.StartFrom(req, now)}, &op); err != nil {
		return nil, err
	}
	return server.OperationMessage(&op), nil
}

// Operation implements drill.Cluster.
func (c client) Operation(_ context.Context, id uint64) (*api.Operation, error) {
	r, err := c.registry()
	if err != nil {
		return nil, err
	}
	if op := r.State.Operation(cells.OpID(id)); op != nil {
		return server.OperationMessage(op), nil
	}
	return nil, status.Errorf(codes.NotFound, "no operation has the number %d", id)
}

// Cancel implements drill.Cluster.
func (c client) Cancel(_ context.Context, id uint64) error {
	return c.command(cells.Command{EndOperation: &cells.EndOperation{ID: cells.OpID(id), By: "drill"}}, nil)
}

// Dependents implements drill.Cluster.
func (c client) Dependents(_ context.Context, name string) ([]string, error) {
	r, err := c.registry()
	if err != nil {
		return nil, err
	}
	return r.SafeToStop(name), nil
}

// CrashGuest implements drill.Cluster.
func (c client) CrashGuest(_ context.Context, name string) error {
	r, err := c.registry()
	if err != nil {
		return err
	}
	vm := r.State.VMNamed(name)
	if vm == nil {
		return status.Errorf(codes.NotFound, "no VM is called %s", name)
	}
	return c.w.Panic(vm.ID)
}

// SetFaults implements drill.Cluster. A fault of the simulator needs no lease: it ends with the world.
func (c client) SetFaults(_ context.Context, name string, faults []*api.Fault, _ time.Duration, _ uint64) error {
	s := c.w.Named(ident.ServerName(name))
	if s == nil {
		return fmt.Errorf("no server is called %s", name)
	}
	c.w.mend(s, c.w.faults[name])
	c.w.faults[name] = slices.Clone(faults)
	if !s.Running() && len(faults) > 0 {
		return status.Errorf(codes.Unavailable, "server %s does not answer", name)
	}
	c.w.apply(s, faults)
	return nil
}

// Faults implements drill.Cluster.
func (c client) Faults(_ context.Context, name string) (bool, []*api.Fault, error) {
	return true, c.w.faults[name], nil
}
