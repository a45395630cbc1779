package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/wire"
)

// Status implements api.CellvisorServer. It answers without a quorum.
func (v *service) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	snap := v.s.board.now()
	st := snap.state
	out := &api.StatusResponse{
		ClusterId: v.s.store.Identity().ClusterID, ClusterName: v.s.cfg.ClusterName, Epoch: uint64(snap.status.Epoch),
		Quorum: snap.leased(bootMicros()), Server: string(v.s.cfg.Name), Version: Version,
		ServersTotal: uint32(len(st.Servers)), VmsTotal: uint32(len(st.VMs)), LastEventSeq: snap.events.lastSeq(),
		ServerState: api.ServerState_SERVER_STATE_JOINING,
	}
	if leader := st.Server(snap.status.Leader); leader != nil {
		out.Leader = string(leader.Name)
	}
	if self := snap.self(); self != nil && (self.State != cells.ServerLive || snap.acting()) {
		out.ServerState = serverStates[self.State]
	}
	for i := range st.Servers {
		if st.Servers[i].State == cells.ServerLive {
			out.ServersLive++
		}
	}
	for _, c := range cellMessages(st) {
		out.CellsTotal++
		if c.State != api.CellState_CELL_STATE_DEAD {
			out.CellsLive++
		}
	}
	for i := range st.VMs {
		if st.VMs[i].State == cells.VMRunning {
			out.VmsRunning++
		}
	}
	return out, nil
}

// ListServers implements api.CellvisorServer.
func (v *service) ListServers(context.Context, *api.ListServersRequest) (*api.ListServersResponse, error) {
	return &api.ListServersResponse{Servers: serverMessages(v.s.board.now())}, nil
}

// ListCells implements api.CellvisorServer.
func (v *service) ListCells(context.Context, *api.ListCellsRequest) (*api.ListCellsResponse, error) {
	return &api.ListCellsResponse{Cells: cellMessages(v.s.board.now().state)}, nil
}

// ListVMs implements api.CellvisorServer.
func (v *service) ListVMs(context.Context, *api.ListVMsRequest) (*api.ListVMsResponse, error) {
	return &api.ListVMsResponse{Vms: vmMessages(v.s.board.now().state)}, nil
}

// GetVM implements api.CellvisorServer. It asks the other servers for the counters of their workers; those that do not answer at once are
// left out.
func (v *service) GetVM(ctx context.Context, req *api.GetVMRequest) (*api.GetVMResponse, error) {
	snap, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	out := vmMessage(snap.state, vm)
	v.addLocal(out, vm)
	if !forwarded(ctx) {
		v.addRemote(ctx, snap, vm, out)
	}
	return &api.GetVMResponse{Vm: out}, nil
}

// addLocal fills in what only this server knows: its worker's counters, and the length of the logs if it is home.
func (v *service) addLocal(out *api.VM, vm *cells.VM) {
	self := v.s.store.Identity().Server
	for i := range vm.Parts {
		if p := &vm.Parts[i]; p.Server == self {
			if w := v.s.workers.worker(vm.ID); w != nil {
				if c := w.counters(); c != nil {
					out.Workers[i].Counters = workerCounters(c)
					out.Workers[i].Counters.Locality = localityMessage(vm, c.Locality)
				}
			}
			if p.Part == vm.Home {
				l := v.logSizes(vm)
				out.ConsoleBytes, out.ConsoleDroppedBytes, out.OutputRecords, out.OutputDroppedRecords = l.console, l.consoleDropped, l.records, l.recordsDropped
			}
		}
	}
}

// checkpointMessage is what protection does, nil if there is none.
func checkpointMessage(c *wire.WorkerStats) *api.CheckpointCounters {
	if c.DirtyPagesSum == 0 && c.Checkpoints == 0 {
		return nil
	}
	return &api.CheckpointCounters{
		PauseMedianMicros: uint64(c.CutMedian), PauseP99Micros: uint64(c.CutP99), SafeAfterMicros: uint64(c.SafeAfter), Pages: c.DirtyPagesSum,
		PagesWhole: c.PagesWhole, PagesChanged: c.PagesChanged, PagesZero: c.PagesZero, PagesSame: c.PagesSame, Bytes: c.ShareBytesSum,
	}
}

// addRemote asks the servers of the other parts, all at once.
func (v *service) addRemote(ctx context.Context, snap *snapshot, vm *cells.VM, out *api.VM) {
	const patience = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(v.forward(ctx), patience)
	defer cancel()
	type reply struct {
		part int
		vm   *api.VM
	}
	replies := make(chan reply, len(vm.Parts))
	asked := 0
	for i := range vm.Parts {
		sv := snap.state.Server(vm.Parts[i].Server)
		if sv == nil || sv.ID == v.s.store.Identity().Server || sv.State != cells.ServerLive {
			continue
		}
		client, err := v.peer(sv)
		if err != nil {
			continue
		}
		asked++
		go func() {
			r, _ := client.GetVM(ctx, &api.GetVMRequest{Name: vm.Spec.Name})
			replies <- reply{i, r.GetVm()}
		}()
	}
	for range asked {
		r := <-replies
		if r.vm.GetId() != out.Id || len(r.vm.GetWorkers()) <= r.part {
			continue
		}
		out.Workers[r.part].Counters = r.vm.Workers[r.part].Counters
		if vm.Parts[r.part].Part == vm.Home {
			out.ConsoleBytes, out.ConsoleDroppedBytes = r.vm.ConsoleBytes, r.vm.ConsoleDroppedBytes
			out.OutputRecords, out.OutputDroppedRecords = r.vm.OutputRecords, r.vm.OutputDroppedRecords
		}
	}
}

// WaitVM implements api.CellvisorServer.
func (v *service) WaitVM(req *api.WaitVMRequest, stream api.Cellvisor_WaitVMServer) error {
	life := time.NewTicker(signOfLife)
	defer life.Stop()
	if _, _, err := v.vm(stream.Context(), req.GetName()); err != nil && req.GetId() == 0 {
		return err
	}
	var last *api.VM
	for {
		snap := v.s.board.now()
		vm := snap.state.VMNamed(req.GetName())
		switch {
		case vm != nil && (req.GetId() == 0 || uint64(vm.ID) == req.GetId()):
			now := vmMessage(snap.state, vm)
			if last == nil || !proto.Equal(last, now) {
				if err := stream.Send(&api.WaitVMResponse{Vm: now}); err != nil {
					return err
				}
				last = now
			}
			if now.State.Ended() || req.GetUntil() == api.WaitVMRequest_UNTIL_STARTED && vm.State == cells.VMRunning {
				return nil
			}
		case req.GetId() > snap.state.Applied:
			// It was created through another server, and this one has not heard of it yet.
		case vm == nil:
			return noVM(req.GetName())
		default:
			return status.Errorf(codes.NotFound, "VM %d is gone: %q is another one by now", req.GetId(), req.GetName())
		}
		select {
		case <-snap.next:
		case <-life.C:
			if err := stream.Send(&api.WaitVMResponse{}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-v.quit:
			return errStopping()
		}
	}
}

// Events implements api.CellvisorServer.
func (v *service) Events(req *api.EventsRequest, stream api.Cellvisor_EventsServer) error {
	const batch = 512
	life := time.NewTicker(signOfLife)
	defer life.Stop()
	from := req.GetFromSeq()
	for {
		snap := v.s.board.now()
		events := snap.events.since(from, batch)
		if len(events) > 0 {
			m := &api.EventsResponse{}
			for i := range events {
				m.Events = append(m.Events, eventMessage(&events[i], v.s.cfg.Name))
			}
			if err := stream.Send(m); err != nil {
				return err
			}
			from = events[len(events)-1].Seq + 1
			continue
		}
		if !req.GetFollow() {
			return nil
		}
		select {
		case <-snap.next:
		case <-life.C:
			if err := stream.Send(&api.EventsResponse{}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-v.quit:
			return errStopping()
		}
	}
}
