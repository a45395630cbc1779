package fake

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
)

// signOfLife is the longest silence of Watch.
const signOfLife = 500 * time.Millisecond

// Watch implements the API. A state that refuses tells its status only, as a server without a quorum that knows no better.
func (s *Server) Watch(_ *api.WatchRequest, stream api.Cellvisor_WatchServer) error {
	var alive atomic.Bool // a sign of life is due
	ticker := time.NewTicker(signOfLife)
	defer ticker.Stop()
	go func() {
		for {
			select {
			case <-ticker.C:
				alive.Store(true)
				s.Change(func(*State) {})
			case <-stream.Context().Done():
				return
			}
		}
	}()
	last, first := &api.WatchResponse{}, true
	from := uint64(1)
	return s.follow(stream.Context(), func(st *State) (func() error, bool, error) {
		m := &api.WatchResponse{Whole: first}
		first = false
		if !proto.Equal(last.Status, st.Status) {
			m.Status = proto.CloneOf(st.Status)
			last.Status = m.Status
		}
		if st.Refuse == nil {
			m.Servers, m.GoneServers = news(&last.Servers, st.Servers)
			m.Cells, m.GoneCells = news(&last.Cells, st.Cells)
			m.Vms, m.GoneVms = news(&last.Vms, st.VMs)
			if !slices.EqualFunc(last.Operations, st.Operations, func(a, b *api.Operation) bool { return proto.Equal(a, b) }) {
				m.Operations = clone(st.Operations)
				for _, op := range last.Operations {
					if !slices.ContainsFunc(m.Operations, func(n *api.Operation) bool { return n.GetId() == op.GetId() }) {
						m.GoneOperations = append(m.GoneOperations, op.GetId())
					}
				}
				last.Operations = m.Operations
			}
			if m.Whole {
				m.Workers, m.WorkersTold = clone(st.Workers), true
			}
		}
		for _, e := range st.Events {
			if e.GetSeq() >= from {
				m.Events = append(m.Events, proto.CloneOf(e))
				from = e.GetSeq() + 1
			}
		}
		if !m.Whole && proto.Size(m) == 0 && !alive.Swap(false) {
			return nil, false, nil
		}
		return func() error { return stream.Send(m) }, false, nil
	})
}

// named is a message with a name.
type named interface {
	comparable
	proto.Message
	GetName() string
}

// news compares two lists; last becomes a copy of now.
func news[M named](last *[]M, now []M) (changed []M, gone []string) {
	next := make([]M, len(now))
	for i, m := range now {
		j := i
		if j >= len(*last) || (*last)[j].GetName() != m.GetName() {
			j = slices.IndexFunc(*last, func(x M) bool { return x.GetName() == m.GetName() })
		}
		if j >= 0 && proto.Equal((*last)[j], m) {
			next[i] = (*last)[j]
			continue
		}
		next[i] = proto.CloneOf(m)
		changed = append(changed, next[i])
	}
	for i, m := range *last {
		if (i >= len(now) || now[i].GetName() != m.GetName()) && !slices.ContainsFunc(now, func(x M) bool { return x.GetName() == m.GetName() }) {
			gone = append(gone, m.GetName())
		}
	}
	*last = next
	return changed, gone
}

// Slices implements the API.
func (s *Server) Slices(_ context.Context, q *api.SlicesRequest) (*api.SlicesResponse, error) {
	r := &api.SlicesResponse{}
	return r, s.read(false, func(st *State) { proto.Merge(r, st.Slices[q.GetServer()]) })
}

// PageMap implements the API.
func (s *Server) PageMap(_ context.Context, q *api.PageMapRequest) (*api.PageMapResponse, error) {
	r := &api.PageMapResponse{}
	return r, s.read(false, func(st *State) { proto.Merge(r, st.Maps[q.GetName()]) })
}

// Cordon implements the API.
func (s *Server) Cordon(_ context.Context, q *api.CordonRequest) (*api.CordonResponse, error) {
	return &api.CordonResponse{}, s.act("cordon "+joined(q.GetCells(), q.GetServers())+onOff(q.GetOn()), func(st *State) error {
		for _, c := range st.Cells {
			if slices.Contains(q.GetCells(), c.GetName()) {
				c.Cordoned = q.GetOn()
			}
		}
		return nil
	})
}

func onOff(on bool) string {
	if on {
		return " on"
	}
	return " off"
}

func joined(lists ...[]string) string {
	text := ""
	for _, l := range lists {
		for _, w := range l {
			text += w + ","
		}
	}
	return text
}

// StartOperation implements the API: the last operation of the state is the plan of every one.
func (s *Server) StartOperation(_ context.Context, q *api.StartOperationRequest) (*api.StartOperationResponse, error) {
	r := &api.StartOperationResponse{}
	call := "plan "
	if !q.GetDryRun() {
		call = "start "
	}
	return r, s.act(call+q.GetKind().Word()+" "+q.GetVm()+joined(q.GetCells(), q.GetServers()), func(st *State) error {
		if len(st.Operations) == 0 {
			return status.Error(codes.ResourceExhausted, "4 slots are needed, 1 is free")
		}
		r.Operation = proto.CloneOf(st.Operations[len(st.Operations)-1])
		return nil
	})
}

// SafeToStop implements the API.
func (s *Server) SafeToStop(context.Context, *api.SafeToStopRequest) (*api.SafeToStopResponse, error) {
	return &api.SafeToStopResponse{Dependents: []string{"vm lock: 2 vCPUs and memory on server b-1"}}, nil
}

// CancelOperation implements the API.
func (s *Server) CancelOperation(_ context.Context, q *api.CancelOperationRequest) (*api.CancelOperationResponse, error) {
	r := &api.CancelOperationResponse{}
	return r, s.act("cancel", func(st *State) error {
		for _, op := range st.Operations {
			if op.GetId() == q.GetId() {
				op.State = api.OperationState_OPERATION_STATE_CANCELLED
				r.Operation = proto.CloneOf(op)
			}
		}
		return nil
	})
}

// ProtectVM implements the API.
func (s *Server) ProtectVM(_ context.Context, q *api.ProtectVMRequest) (*api.ProtectVMResponse, error) {
	r := &api.ProtectVMResponse{}
	return r, s.act("protect "+q.GetName()+" "+q.GetProtect(), func(st *State) error {
		vm, err := st.vm(q.GetName())
		if err != nil {
			return err
		}
		vm.Protect, vm.Protection = q.GetProtect(), "syncing"
		r.Vm = proto.CloneOf(vm)
		return nil
	})
}
