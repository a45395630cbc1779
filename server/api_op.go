package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

var opKinds = map[cells.OpKind]api.OperationKind{
	cells.OpMigrate: api.OperationKind_OPERATION_KIND_MIGRATE,
	cells.OpDrain:   api.OperationKind_OPERATION_KIND_DRAIN,
	cells.OpRestore: api.OperationKind_OPERATION_KIND_RESTORE,
	cells.OpBalance: api.OperationKind_OPERATION_KIND_BALANCE,
}

var opStates = map[cells.OpState]api.OperationState{
	cells.OpRunning:   api.OperationState_OPERATION_STATE_RUNNING,
	cells.OpDone:      api.OperationState_OPERATION_STATE_DONE,
	cells.OpFailed:    api.OperationState_OPERATION_STATE_FAILED,
	cells.OpCancelled: api.OperationState_OPERATION_STATE_CANCELLED,
}

func operationMessage(op *cells.Operation) *api.Operation {
	out := &api.Operation{
		Id: uint64(op.ID), Kind: opKinds[op.Kind], Subject: op.Subject, State: opStates[op.State], Note: op.Note, Reason: op.Reason, By: op.By,
		ScoreBefore: op.ScoreBefore, ScoreAfter: op.ScoreAfter,
		StartedAt: stamp(op.StartedMs), EndedAt: stamp(op.EndedMs), DeadlineAt: stamp(op.DeadlineMs), MaxParallel: uint32(op.MaxParallel),
	}
	for i := range op.Steps {
		s := &op.Steps[i]
		step := &api.OperationStep{
			Kind: string(s.Kind), State: string(s.State), Vm: s.Name, From: string(s.FromName), To: string(s.ToName),
			Bytes: uint64(s.Bytes), DownMicros: uint64(s.Down), Tries: uint32(s.Tries), Note: s.Note, Reason: s.Reason,
		}
		if s.Kind == cells.StepVCPU {
			id := uint32(s.VCPU)
			step.Vcpu = &id
		}
		out.Steps = append(out.Steps, step)
	}
	return out
}

func names[T ~string](in []string) []T {
	var out []T
	for _, s := range in {
		out = append(out, T(s))
	}
	return out
}

// StartOperation implements api.CellvisorServer.
func (v *service) StartOperation(ctx context.Context, req *api.StartOperationRequest) (*api.StartOperationResponse, error) {
	c := StartFrom(req, time.Now())
	if err := v.s.needQuorum(); err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		v.catchUp(ctx)
		op, fault := monitor.PlanOperation(v.s.board.now().state, c)
		if fault != nil && op != nil {
			return nil, api.WithPlan(faultStatus(fault), operationMessage(op))
		}
		if fault != nil {
			return nil, faultStatus(fault)
		}
		return &api.StartOperationResponse{Operation: operationMessage(op)}, nil
	}
	var op cells.Operation
	if err := v.s.propose(ctx, cells.Command{StartOperation: c}, &op); err != nil {
		return nil, err
	}
	return &api.StartOperationResponse{Operation: operationMessage(&op)}, nil
}

// ListOperations implements api.CellvisorServer.
func (v *service) ListOperations(context.Context, *api.ListOperationsRequest) (*api.ListOperationsResponse, error) {
	st := v.s.board.now().state
	out := &api.ListOperationsResponse{}
	for i := range st.Operations {
		out.Operations = append(out.Operations, operationMessage(&st.Operations[i]))
	}
	return out, nil
}

// operation finds an operation, which may have been started through another server a moment ago.
func (v *service) operation(ctx context.Context, id uint64) (*api.Operation, error) {
	op := v.s.board.now().state.Operation(cells.OpID(id))
	if op == nil {
		v.catchUp(ctx)
		op = v.s.board.now().state.Operation(cells.OpID(id))
	}
	if op == nil {
		return nil, status.Errorf(codes.NotFound, "no operation has the number %d: `cellvisor op ls` lists those there are", id)
	}
	return operationMessage(op), nil
}

// GetOperation implements api.CellvisorServer.
func (v *service) GetOperation(ctx context.Context, req *api.GetOperationRequest) (*api.GetOperationResponse, error) {
	op, err := v.operation(ctx, req.GetId())
	return &api.GetOperationResponse{Operation: op}, err
}

// CancelOperation implements api.CellvisorServer.
func (v *service) CancelOperation(ctx context.Context, req *api.CancelOperationRequest) (*api.CancelOperationResponse, error) {
	cmd := cells.Command{EndOperation: &cells.EndOperation{ID: cells.OpID(req.GetId()), By: req.GetBy()}}
	if err := v.s.propose(ctx, cmd, nil); err != nil {
		return nil, err
	}
	op, err := v.operation(ctx, req.GetId())
	return &api.CancelOperationResponse{Operation: op}, err
}

// Cordon implements api.CellvisorServer.
func (v *service) Cordon(ctx context.Context, req *api.CordonRequest) (*api.CordonResponse, error) {
	if len(req.GetCells())+len(req.GetServers()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "name at least one cell or server")
	}
	for _, c := range req.GetCells() {
		if err := v.s.propose(ctx, cells.Command{Cordon: &cells.Cordon{Cell: ident.CellName(c), On: req.GetOn()}}, nil); err != nil {
			return nil, err
		}
	}
	for _, s := range req.GetServers() {
		if err := v.s.propose(ctx, cells.Command{Cordon: &cells.Cordon{Server: ident.ServerName(s), On: req.GetOn()}}, nil); err != nil {
			return nil, err
		}
	}
	return &api.CordonResponse{}, nil
}

// SafeToStop implements api.CellvisorServer.
func (v *service) SafeToStop(ctx context.Context, req *api.SafeToStopRequest) (*api.SafeToStopResponse, error) {
	if err := v.s.needQuorum(); err != nil {
		return nil, err
	}
	v.catchUp(ctx)
	snap := v.s.board.now()
	st := snap.state
	stop := map[ident.ServerID]bool{}
	for _, c := range req.GetCells() {
		if !slices.Contains(st.Cells(), ident.CellName(c)) {
			return nil, status.Errorf(codes.NotFound, "no cell is called %q: `cellvisor cell ls` lists those there are", c)
		}
	}
	for _, s := range req.GetServers() {
		if st.ServerNamed(ident.ServerName(s)) == nil {
			return nil, status.Errorf(codes.NotFound, "no server is called %q: `cellvisor server ls` lists those there are", s)
		}
	}
	for i := range st.Servers {
		sv := &st.Servers[i]
		stop[sv.ID] = sv.Cell != "" && slices.Contains(req.GetCells(), string(sv.Cell)) || slices.Contains(req.GetServers(), string(sv.Name))
	}
	out := &api.SafeToStopResponse{Dependents: append(vmsOn(st, stop), quorumWithout(snap, stop)...)}
	out.Safe = len(out.Dependents) == 0
	return out, nil
}

// vmsOn names what the VMs keep on servers.
func vmsOn(st *cells.State, stop map[ident.ServerID]bool) []string {
	var out []string
	for i := range st.VMs {
		vm := &st.VMs[i]
		if !vm.State.Active() {
			continue
		}
		for _, p := range vm.Parts {
			what := fmt.Sprintf("%d vCPUs and memory", len(p.VCPUs))
			switch {
			case p.Gone || !stop[p.Server]:
				continue
			case p.Mirror:
				what = "a mirror of its disks"
			case p.Standby && vm.Spec.Protect != cells.ProtectReplica:
				what = "the copy that it moves with"
			case p.Standby:
				what = "a replica"
			case p.Part == vm.Home:
				what += ", devices"
			}
			out = append(out, fmt.Sprintf("vm %s: %s on server %s", vm.Spec.Name, what, p.ServerName))
		}
		for _, b := range vm.Loans() {
			if stop[b.Server] {
				out = append(out, fmt.Sprintf("vm %s: memory that it has borrowed on server %s", vm.Spec.Name, b.ServerName))
			}
		}
		if vm.Moved.Epoch == vm.Epoch && resuming(st, vm) {
			out = append(out, fmt.Sprintf("vm %s: it is just being taken over by another server", vm.Spec.Name))
		}
	}
	return out
}

// resuming tells whether the target of a VM's last move has not said yet that the VM runs there.
func resuming(st *cells.State, vm *cells.VM) bool {
	op := st.Operation(vm.Moved.Op)
	return op != nil && vm.Moved.Step < len(op.Steps) && op.Steps[vm.Moved.Step].State == cells.StepResuming
}

// quorumWithout says whether too few voters would be left.
func quorumWithout(snap *snapshot, stop map[ident.ServerID]bool) []string {
	left, n := 0, len(snap.status.Voters)
	for _, id := range snap.status.Voters {
		if sv := snap.state.Server(id); sv != nil && sv.State == cells.ServerLive && !stop[id] {
			left++
		}
	}
	if need := n/2 + 1; left < need {
		return []string{fmt.Sprintf("quorum: %d live voters of %d would be left, %d are needed", left, n, need)}
	}
	return nil
}
