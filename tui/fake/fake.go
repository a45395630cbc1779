// Package fake is a cluster that exists in memory only: it implements the control API's service for the console's tests and its benchmark. It has no
// behaviour of its own beyond the states that are set and the simplest effect of each act.
package fake

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
)

// State is all that the cluster would tell.
type State struct {
	Status   *api.StatusResponse
	Servers  []*api.Server
	Cells    []*api.Cell
	VMs      []*api.VM
	Events   []*api.Event
	Counters map[string]uint64
	// Operations by number.
	Operations []*api.Operation
	Workers    []*api.WorkerInfo
	// Slices by server, Maps by VM.
	Slices map[string]*api.SlicesResponse
	Maps   map[string]*api.PageMapResponse
	// Consoles and Outputs hold the logs by VM name.
	Consoles map[string][]byte
	Outputs  map[string][]uint32
	// Refuse, if set, is what all calls but Status fail with; RefuseAll what all fail with.
	Refuse, RefuseAll error
}

// Server serves a state, to tests over an in-memory connection.
type Server struct {
	api.UnimplementedCellvisorServer

	grpc     *grpc.Server
	listener *bufconn.Listener // nil: others connect

	mu      sync.Mutex
	changed *sync.Cond
	state   State    // protected by mu
	calls   []string // protected by mu
}

// Start serves state in memory until Stop.
func Start(state State) *Server {
	l := bufconn.Listen(1 << 20)
	s := Serve(state, l)
	s.listener = l
	return s
}

// Serve serves state to those who connect to a listener, until Stop.
func Serve(state State, l net.Listener) *Server {
	s := &Server{state: state, grpc: grpc.NewServer()}
	s.changed = sync.NewCond(&s.mu)
	api.RegisterCellvisorServer(s.grpc, s)
	go func() {
		// It ends with Stop; a test that talks to a server that failed to serve fails by itself.
		_ = s.grpc.Serve(l)
	}()
	return s
}

// Stop breaks all connections.
func (s *Server) Stop() {
	s.grpc.Stop()
	s.Change(func(*State) {})
}

// Dial connects to it, whatever the address.
func (s *Server) Dial(string) (api.CellvisorClient, io.Closer, error) {
	conn, err := grpc.NewClient("passthrough:///fake",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }))
	if err != nil {
		return nil, nil, err
	}
	return api.NewCellvisorClient(conn), conn, nil
}

// Change changes the state and wakes the streams that follow it.
func (s *Server) Change(change func(*State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.state)
	s.changed.Broadcast()
}

// Calls returns the acts asked for so far, as text.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// clone copies messages, so that what was sent does not change with the state.
func clone[M proto.Message](list []M) []M {
	out := make([]M, len(list))
	for i, m := range list {
		out[i] = proto.CloneOf(m)
	}
	return out
}

func (s *Server) read(status bool, f func(*State)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.RefuseAll != nil {
		return s.state.RefuseAll
	}
	if !status && s.state.Refuse != nil {
		return s.state.Refuse
	}
	f(&s.state)
	return nil
}

// Status implements the API.
func (s *Server) Status(context.Context, *api.StatusRequest) (r *api.StatusResponse, err error) {
	err = s.read(true, func(st *State) { r = proto.CloneOf(st.Status) })
	return r, err
}

// ListServers implements the API.
func (s *Server) ListServers(context.Context, *api.ListServersRequest) (*api.ListServersResponse, error) {
	r := &api.ListServersResponse{}
	return r, s.read(false, func(st *State) { r.Servers = clone(st.Servers) })
}

// ListCells implements the API.
func (s *Server) ListCells(context.Context, *api.ListCellsRequest) (*api.ListCellsResponse, error) {
	r := &api.ListCellsResponse{}
	return r, s.read(false, func(st *State) { r.Cells = clone(st.Cells) })
}

// ListVMs implements the API.
func (s *Server) ListVMs(context.Context, *api.ListVMsRequest) (*api.ListVMsResponse, error) {
	r := &api.ListVMsResponse{}
	return r, s.read(false, func(st *State) { r.Vms = clone(st.VMs) })
}

func (st *State) vm(name string) (*api.VM, error) {
	for _, vm := range st.VMs {
		if vm.GetName() == name {
			return vm, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no VM %q", name)
}

// GetVM implements the API.
func (s *Server) GetVM(_ context.Context, q *api.GetVMRequest) (*api.GetVMResponse, error) {
	r := &api.GetVMResponse{}
	var missing error
	err := s.read(false, func(st *State) {
		var vm *api.VM
		vm, missing = st.vm(q.GetName())
		r.Vm = proto.CloneOf(vm)
	})
	if err == nil {
		err = missing
	}
	return r, err
}

// DebugCounters implements the API.
func (s *Server) DebugCounters(_ context.Context, q *api.DebugCountersRequest) (*api.DebugCountersResponse, error) {
	r := &api.DebugCountersResponse{Counters: map[string]uint64{}}
	return r, s.read(false, func(st *State) {
		r.Server = q.GetServer()
		for k, v := range st.Counters {
			r.Counters[k] = v
		}
	})
}

// act notes a call and runs it on the state.
func (s *Server) act(call string, f func(*State) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
	if err := s.state.Refuse; err != nil {
		return err
	}
	err := f(&s.state)
	s.changed.Broadcast()
	return err
}

// StopVM implements the API.
func (s *Server) StopVM(_ context.Context, q *api.StopVMRequest) (*api.StopVMResponse, error) {
	r := &api.StopVMResponse{}
	return r, s.act("stop "+q.GetName(), func(st *State) error {
		vm, err := st.vm(q.GetName())
		if err != nil {
			return err
		}
		if !vm.GetState().Ended() {
			vm.State = api.VMState_VM_STATE_STOPPED
			vm.Reason = "stopped by an operator"
			st.Event("vm.stopped", "", "", vm.GetName(), "VM "+vm.GetName()+" stopped")
		}
		r.Vm = proto.CloneOf(vm)
		return nil
	})
}

// RemoveVM implements the API.
func (s *Server) RemoveVM(_ context.Context, q *api.RemoveVMRequest) (*api.RemoveVMResponse, error) {
	return &api.RemoveVMResponse{}, s.act(fmt.Sprintf("rm %s force=%v", q.GetName(), q.GetForce()), func(st *State) error {
		vm, err := st.vm(q.GetName())
		if err != nil {
			return err
		}
		if !vm.GetState().Ended() && !q.GetForce() {
			return status.Errorf(codes.FailedPrecondition, "VM %q is %s; stop it first or use --force", q.GetName(), vm.GetState().Word())
		}
		st.VMs = slices.DeleteFunc(st.VMs, func(x *api.VM) bool { return x == vm })
		return nil
	})
}

// RunVM implements the API.
func (s *Server) RunVM(stream api.Cellvisor_RunVMServer) error {
	q, err := stream.Recv()
	if err != nil {
		return err
	}
	spec := q.GetSpec()
	vm := &api.VM{Name: spec.GetName(), State: api.VMState_VM_STATE_STARTING, Vcpus: spec.GetVcpus(), MemoryBytes: spec.GetMemoryBytes(),
		Cells: []string{"a"}, Payload: spec.GetBuiltin(), Args: spec.GetArgs()}
	err = s.act(fmt.Sprintf("run %s %s vcpus=%d memory=%d span=%v", spec.GetName(), spec.GetBuiltin(), spec.GetVcpus(),
		spec.GetMemoryBytes(), spec.GetSpan()), func(st *State) error {
		st.VMs = append(st.VMs, vm)
		return nil
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&api.RunVMResponse{Vm: proto.CloneOf(vm)})
}

// Event appends an event to the state.
func (st *State) Event(eventType, cell, server, vm, message string) {
	st.Events = append(st.Events, &api.Event{
		Seq: uint64(len(st.Events) + 1), Time: timestamppb.New(time.Now()), Type: eventType, Epoch: st.Status.GetEpoch(),
		Cell: cell, Server: server, Vm: vm, Message: message, RecordedBy: st.Status.GetServer(),
	})
}

// follow calls next whenever the state changed until it says that all was sent, it fails, or the caller goes away. next runs under mu
// and returns what to send then.
func (s *Server) follow(ctx context.Context, next func(*State) (send func() error, done bool, err error)) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.state.RefuseAll != nil {
			return s.state.RefuseAll
		}
		send, done, err := next(&s.state)
		if err != nil {
			return err
		}
		if send != nil {
			s.mu.Unlock()
			err := send()
			s.mu.Lock()
			if err != nil {
				return err
			}
		}
		if done {
			return nil
		}
		if send == nil {
			s.changed.Wait()
		}
	}
}

// Events implements the API.
func (s *Server) Events(q *api.EventsRequest, stream api.Cellvisor_EventsServer) error {
	from := max(q.GetFromSeq(), 1)
	return s.follow(stream.Context(), func(st *State) (func() error, bool, error) {
		var news []*api.Event
		for _, e := range st.Events {
			if e.GetSeq() >= from {
				news = append(news, proto.CloneOf(e))
			}
		}
		if len(news) == 0 {
			return nil, !q.GetFollow(), nil
		}
		from = news[len(news)-1].GetSeq() + 1
		return func() error { return stream.Send(&api.EventsResponse{Events: news}) }, false, nil
	})
}

// ConsoleVM implements the API.
func (s *Server) ConsoleVM(q *api.ConsoleVMRequest, stream api.Cellvisor_ConsoleVMServer) error {
	at := q.GetOffset()
	return s.follow(stream.Context(), func(st *State) (func() error, bool, error) {
		vm, err := st.vm(q.GetName())
		if err != nil {
			return nil, false, err
		}
		data := st.Consoles[q.GetName()]
		if at >= uint64(len(data)) {
			return nil, !q.GetFollow() || vm.GetState().Ended(), nil
		}
		m := &api.ConsoleVMResponse{Offset: at, Data: slices.Clone(data[at:])}
		at = uint64(len(data))
		return func() error { return stream.Send(m) }, false, nil
	})
}

// OutputVM implements the API.
func (s *Server) OutputVM(q *api.OutputVMRequest, stream api.Cellvisor_OutputVMServer) error {
	at := q.GetIndex()
	return s.follow(stream.Context(), func(st *State) (func() error, bool, error) {
		vm, err := st.vm(q.GetName())
		if err != nil {
			return nil, false, err
		}
		records := st.Outputs[q.GetName()]
		if at >= uint64(len(records)) {
			return nil, !q.GetFollow() || vm.GetState().Ended(), nil
		}
		m := &api.OutputVMResponse{Index: at, Records: slices.Clone(records[at:])}
		at = uint64(len(records))
		return func() error { return stream.Send(m) }, false, nil
	})
}
