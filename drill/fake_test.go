package drill

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
)

// fake is a cluster and its host in memory: three cells of one server. A VM counts a hundred records a second while its server runs; a protected
// one goes on elsewhere when its server dies, any other is lost.
type fake struct {
	dir string

	mu      sync.Mutex // protects what follows
	pid     int
	servers []*fakeServer
	vms     []*api.VM
	events  []*api.Event
	epoch   uint64
	signals []string
	skip    uint32 // a counting VM leaves this record out, if not 0
	refuse  error  // of Start
	others  map[int]bool
	refused bool // its configuration does not allow drills
	faults  map[string][]*api.Fault
	ops     []*api.Operation
}

type fakeServer struct {
	name, cell string
	pid        int // 0: does not run
	stopped    bool
}

func newFake(t *testing.T) *fake {
	f := &fake{dir: t.TempDir(), pid: 100, epoch: 1, others: map[int]bool{}, faults: map[string][]*api.Fault{}}
	for _, cell := range []string{"a", "b", "c"} {
		f.pid++
		f.servers = append(f.servers, &fakeServer{name: cell + "-1", cell: cell, pid: f.pid})
	}
	return f
}

func (f *fake) Dir() string { return f.dir }

func (f *fake) Self() Process { return Process{PID: 1, StartTicks: 1} }

func (f *fake) Servers() (out []HostServer) {
	for _, s := range f.servers {
		out = append(out, HostServer{s.name, s.cell})
	}
	return out
}

func (f *fake) Processes() (out []Process, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		if s.pid != 0 {
			out = append(out, Process{PID: s.pid, StartTicks: 7, Server: s.name})
		}
	}
	return out, nil
}

func (f *fake) Alive(p Process) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.others[p.PID] || slices.ContainsFunc(f.servers, func(s *fakeServer) bool { return s.pid == p.PID })
}

func (f *fake) Signal(sig syscall.Signal, to ...Process) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range to {
		for _, s := range f.servers {
			if s.pid != p.PID {
				continue
			}
			f.signals = append(f.signals, fmt.Sprintf("%d %s", int(sig), s.name))
			switch sig {
			case syscall.SIGKILL:
				s.pid = 0
				f.lose(s)
			case syscall.SIGSTOP:
				s.stopped = true
			case syscall.SIGCONT:
				s.stopped = false
			}
		}
	}
	return nil
}

// lose is what a new view without the server means to VMs. The caller holds mu.
func (f *fake) lose(s *fakeServer) {
	f.epoch++
	for _, v := range f.vms {
		if v.GetHome() != s.name || v.GetState().Ended() {
			continue
		}
		if v.GetProtect() == "none" {
			v.State, v.Reason, v.EndedAt = api.VMState_VM_STATE_LOST, fmt.Sprintf("cell %s lost in epoch %d", s.cell, f.epoch), timestamppb.Now()
			continue
		}
		v.Recoveries++
		v.Home = "c-1"
		f.events = append(f.events, &api.Event{LogIndex: uint64(len(f.events) + 1), Time: timestamppb.Now(), Type: "vm.recovered", Epoch: f.epoch, Vm: v.GetName(),
			Message: "vm runs again", Fields: map[string]string{"remap_us": "465", "resume_us": "12", "detect_us": "80000", "checkpoint": "7"}})
	}
}

func (f *fake) Start(server string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		if s.name == server {
			if f.refuse != nil {
				return f.refuse
			}
			f.pid++
			s.pid = f.pid
		}
	}
	return nil
}

func (f *fake) Status(context.Context) (*api.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	live := 0
	for _, s := range f.servers {
		if s.pid != 0 {
			live++
		}
	}
	return &api.StatusResponse{Epoch: f.epoch, Quorum: live >= 2, Leader: "a-1"}, nil
}

func (f *fake) live() (out []*api.Server) {
	for i, s := range f.servers {
		state := api.ServerState_SERVER_STATE_LIVE
		if s.pid == 0 {
			state = api.ServerState_SERVER_STATE_DEAD
		}
		out = append(out, &api.Server{Id: uint64(i + 1), Name: s.name, Cell: s.cell, State: state, Voter: true})
	}
	return out
}

func (f *fake) VMs(context.Context) (out []*api.VM, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.vms {
		c := &api.VM{Id: v.Id, Name: v.Name, State: v.State, Reason: v.Reason, Home: v.Home, Protect: v.Protect, Protection: v.Protection,
			Recoveries: v.Recoveries, CreatedAt: v.CreatedAt, EndedAt: v.EndedAt}
		c.Workers = []*api.Worker{{Server: v.Home, Pid: 5, Ready: true}, {Part: 1, Server: "c-1", Standby: true, Ready: true}}
		out = append(out, c)
	}
	return out, nil
}

func (f *fake) Run(_ context.Context, spec *api.VMSpec) (*api.VM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.ContainsFunc(f.vms, func(v *api.VM) bool { return v.GetName() == spec.GetName() }) {
		return nil, status.Errorf(codes.AlreadyExists, "VM %s exists", spec.GetName())
	}
	home := "a-1"
	if len(spec.GetSpan()) > 0 {
		home = spec.GetSpan()[0] + "-1"
	}
	v := &api.VM{Id: uint64(len(f.vms) + 50), Name: spec.GetName(), State: api.VMState_VM_STATE_RUNNING, Home: home, Protect: spec.GetProtect(),
		Protection: "none", CreatedAt: timestamppb.Now()}
	if v.Protect == "replica" {
		v.Protection = "safe"
	}
	f.vms = append(f.vms, v)
	return v, nil
}

func (f *fake) Remove(_ context.Context, vm string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vms = slices.DeleteFunc(f.vms, func(v *api.VM) bool { return v.GetName() == vm })
	return nil
}

func (f *fake) Output(ctx context.Context, vm string, index uint64, each func(uint64, uint32) error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		f.mu.Lock()
		i := slices.IndexFunc(f.vms, func(v *api.VM) bool { return v.GetName() == vm && v.GetState() == api.VMState_VM_STATE_RUNNING })
		record := uint32(index)
		if f.skip != 0 && record >= f.skip {
			record++
		}
		f.mu.Unlock()
		if i < 0 {
			return nil
		}
		if err := each(index, record); err != nil {
			return err
		}
		index++
	}
}

func (f *fake) Events(context.Context) ([]*api.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events), nil
}

// fakeCluster is the fake as a Cluster: as a Host it has a method Servers of another kind.
type fakeCluster struct{ *fake }

func (f fakeCluster) Servers(context.Context) ([]*api.Server, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live(), nil
}

func (f *fake) Operate(_ context.Context, req *api.StartOperationRequest) (*api.Operation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := &api.Operation{Id: uint64(len(f.ops) + 1), Kind: req.GetKind(), Subject: fmt.Sprint(req.GetCells(), req.GetServers()), State: api.OperationState_OPERATION_STATE_DONE}
	f.ops = append(f.ops, op)
	return op, nil
}

func (f *fake) Operation(_ context.Context, id uint64) (*api.Operation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops[id-1], nil
}

func (f *fake) Cancel(context.Context, uint64) error { return nil }

func (f *fake) Dependents(_ context.Context, name string) (out []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.vms {
		if strings.HasPrefix(v.Home, name) {
			out = append(out, "vm "+v.Name)
		}
	}
	return out, nil
}

func (f *fake) SetFaults(_ context.Context, server string, faults []*api.Fault, _ time.Duration, _ uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		if s.name == server && s.pid == 0 {
			return status.Error(codes.Unavailable, "it is down")
		}
		if s.name == server {
			f.faults[server] = slices.Clone(faults)
			if slices.ContainsFunc(faults, func(o *api.Fault) bool { return o.GetKind() == api.FaultKind_FAULT_KIND_DISK_FULL }) {
				s.pid = 0
				delete(f.faults, server)
				f.lose(s)
			}
		}
	}
	return nil
}

func (f *fake) Faults(_ context.Context, server string) (bool, []*api.Fault, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.refused, f.faults[server], nil
}

func (f *fake) CrashGuest(_ context.Context, vm string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.vms {
		if v.GetName() == vm {
			v.State, v.Reason = api.VMState_VM_STATE_FAILED, "guest failed"
		}
	}
	return nil
}
