package server

import (
	"context"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
)

// ResetVM implements api.CellvisorServer.
func (v *service) ResetVM(ctx context.Context, req *api.ResetVMRequest) (*api.ResetVMResponse, error) {
	_, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := v.s.propose(ctx, cells.Command{ResetVM: &cells.ResetVM{VM: vm.ID, Reason: req.GetReason()}}, nil); err != nil {
		return nil, err
	}
	now := v.s.board.now()
	if after := now.state.VM(vm.ID); after != nil {
		vm = after
	}
	return &api.ResetVMResponse{Vm: vmMessage(now.state, vm)}, nil
}
