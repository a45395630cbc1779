package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// PauseVM implements api.CellvisorServer.
func (v *service) PauseVM(ctx context.Context, req *api.PauseVMRequest) (*api.PauseVMResponse, error) {
	_, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := v.s.propose(ctx, cells.Command{PauseVM: &cells.PauseVM{VM: vm.ID, On: req.GetOn(), Reason: req.GetReason()}}, nil); err != nil {
		return nil, err
	}
	snap, vm, err := v.awaitPause(ctx, vm.ID)
	if err != nil {
		return nil, err
	}
	return &api.PauseVMResponse{Vm: vmMessage(snap.state, vm)}, nil
}

// awaitPause waits until every member of a VM has done what its pauses ask for.
func (v *service) awaitPause(ctx context.Context, id ident.VMID) (*snapshot, *cells.VM, error) {
	for {
		snap := v.s.board.now()
		vm := snap.state.VM(id)
		switch {
		case vm == nil:
			return nil, nil, status.Errorf(codes.Aborted, "VM %d was removed meanwhile", id)
		case vm.State != cells.VMRunning:
			return nil, nil, status.Errorf(codes.Aborted, "VM %s is %s meanwhile: %s", vm.Spec.Name, vm.State, vm.Reason)
		case vm.PauseSettled():
			return snap, vm, nil
		}
		select {
		case <-snap.next:
		case <-ctx.Done():
			return nil, nil, status.Errorf(codes.DeadlineExceeded, "VM %s: its parts have not all said yet that they stand still, or go on: `cellvisor vm show %s` tells when they do", vm.Spec.Name, vm.Spec.Name)
		case <-v.quit:
			return nil, nil, errStopping()
		}
	}
}
