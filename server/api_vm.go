package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// standPatience bounds how long StopVM waits for vCPUs to stand still everywhere: Stop, the grace, the kill.
const (
	standPatience = stopGrace + 2*time.Second
	standPause    = 50 * time.Millisecond
)

// RunVM implements api.CellvisorServer.
func (v *service) RunVM(stream api.Cellvisor_RunVMServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	asked := first.GetSpec()
	if asked == nil {
		return status.Error(codes.InvalidArgument, "the first message of RunVM must carry the spec")
	}
	spec, err := specFrom(asked)
	if err == nil {
		err = checkLocality(spec.Options)
	}
	if err != nil {
		return err
	}
	// What can be refused at once is refused before a payload is sent.
	if err := v.s.needQuorum(); err != nil {
		return err
	}
	if old := v.s.board.now().state.VMNamed(spec.Name); old != nil {
		return status.Errorf(codes.AlreadyExists, "a VM called %s exists (state %s): choose another name, or remove it first", spec.Name, old.State)
	}
	unpin, err := v.takeGuest(stream, asked, spec)
	if err != nil {
		return err
	}
	defer unpin()
	var vm cells.VM
	cmd := cells.Command{CreateVM: &cells.CreateVM{Spec: *spec, Secret: randomHex(32)}}
	if err := v.s.propose(stream.Context(), cmd, &vm); err != nil {
		return err
	}
	return stream.SendAndClose(&api.RunVMResponse{Vm: vmMessage(v.s.board.now().state, &vm)})
}

// specFrom translates what the operator asked for. What the registry checks itself is left to it.
func specFrom(in *api.VMSpec) (*cells.VMSpec, error) {
	spec := &cells.VMSpec{
		Name: in.GetName(), Builtin: in.GetBuiltin(), Args: in.GetArgs(), VCPUs: int(in.GetVcpus()), MemoryBytes: ident.Bytes(in.GetMemoryBytes()),
		CheckpointMillis: int(in.GetCheckpointMs()), Options: in.GetOptions(),
		RebootOnCrash: in.RebootOnCrash == nil || in.GetRebootOnCrash(), CrashLimit: cells.DefaultCrashLimit, Restart: in.GetRestart(),
	}
	if in.CrashLimit != nil {
		spec.CrashLimit = int(min(in.GetCrashLimit(), cells.MaxCrashLimit+1))
	}
	if in.Weight != nil {
		if spec.Weight = int(in.GetWeight()); spec.Weight == 0 { // the registry takes 0 for none given
			return nil, status.Errorf(codes.InvalidArgument, "vm %s: weight 0; 1 to %d are allowed, and %d is usual", spec.Name, cells.MaxWeight, cells.DefaultWeight)
		}
	}
	if err := checkOptions(spec); err != nil {
		return nil, err
	}
	var err error
	if spec.Protect, spec.Replicas, err = protectFrom(in.GetProtect()); err != nil {
		return nil, err
	}
	if f := cells.CheckName("vm", spec.Name); f != nil {
		return nil, status.Error(codes.InvalidArgument, f.Text)
	}
	switch in.GetOnLoss() {
	case api.OnLoss_ON_LOSS_UNSPECIFIED, api.OnLoss_ON_LOSS_STOP:
		spec.OnLoss = cells.OnLossStop
	case api.OnLoss_ON_LOSS_TOUCH:
		spec.OnLoss = cells.OnLossTouch
	default:
		return nil, status.Errorf(codes.InvalidArgument, "on-loss %d is not known: this server knows stop and touch", in.GetOnLoss())
	}
	for _, c := range in.GetSpan() {
		spec.Span = append(spec.Span, ident.CellName(c))
	}
	if n := len(spec.Span); n > spec.VCPUs {
		return nil, status.Errorf(codes.InvalidArgument, "vm %s: %d vCPUs cannot lie in %d cells: each of its span gets at least one", spec.Name, spec.VCPUs, n)
	}
	spec.Disks = disksFrom(in.GetDisks())
	if in.GetPayload() == nil {
		return nil, status.Error(codes.InvalidArgument, "the VM needs a payload: the name of a built-in one, or an ELF64 file")
	}
	if file := in.GetFile(); file != nil {
		spec.PayloadSHA256 = hex.EncodeToString(file.GetSha256())
		spec.PayloadBytes = ident.Bytes(file.GetSizeBytes())
	}
	if l := in.GetLinux(); l != nil {
		linuxFrom(l, spec)
	}
	return spec, netsFrom(in.GetNets(), spec)
}

// protectFrom reads "none", "replica" or "replica:K".
func protectFrom(text string) (cells.Protect, int, error) {
	kind, count, counted := strings.Cut(text, ":")
	n := 0
	if counted {
		var err error
		if n, err = strconv.Atoi(count); err != nil || n < 1 || kind != string(cells.ProtectReplica) {
			return "", 0, status.Errorf(codes.InvalidArgument, "protect %q: say none, replica or replica:K with K at least 1", text)
		}
	}
	return cells.Protect(kind), n, nil
}

// ProtectVM implements api.CellvisorServer.
func (v *service) ProtectVM(ctx context.Context, req *api.ProtectVMRequest) (*api.ProtectVMResponse, error) {
	_, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	c := &cells.ProtectVM{VM: vm.ID, CheckpointMillis: int(req.GetCheckpointMs())}
	if c.Protect, c.Replicas, err = protectFrom(req.GetProtect()); err != nil {
		return nil, err
	}
	if err := v.s.propose(ctx, cells.Command{ProtectVM: c}, nil); err != nil {
		return nil, err
	}
	now := v.s.board.now()
	if after := now.state.VM(vm.ID); after != nil {
		vm = after
	}
	return &api.ProtectVMResponse{Vm: vmMessage(now.state, vm)}, nil
}

// StopVM implements api.CellvisorServer.
func (v *service) StopVM(ctx context.Context, req *api.StopVMRequest) (*api.StopVMResponse, error) {
	if forwarded(ctx) { // another server has stopped it and asks whether it stands still here
		return v.standStill(ctx, req.GetName())
	}
	snap, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if vm.State.Active() {
		reason := "stopped by an operator"
		if r := req.GetReason(); r != "" {
			reason += ": " + r
		}
		err := v.s.propose(ctx, cells.Command{StopVM: &cells.StopVM{VM: vm.ID, Reason: reason}}, nil)
		if err != nil && !v.ended(vm.ID) { // it may have ended by itself meanwhile
			return nil, err
		}
	}
	if err := v.awaitStandstill(ctx, snap, vm); err != nil {
		return nil, err
	}
	now := v.s.board.now()
	if after := now.state.VM(vm.ID); after != nil {
		vm = after
	}
	return &api.StopVMResponse{Vm: vmMessage(now.state, vm)}, nil
}

func (v *service) ended(id ident.VMID) bool {
	vm := v.s.board.now().state.VM(id)
	return vm != nil && !vm.State.Active()
}

// awaitStandstill returns when no worker of the VM runs anywhere any more. A server that left the view does not count: without a lease its
// vCPUs stand still.
func (v *service) awaitStandstill(ctx context.Context, snap *snapshot, vm *cells.VM) error {
	ctx, cancel := context.WithTimeout(ctx, standPatience)
	defer cancel()
	results := make(chan error, len(vm.Parts))
	for i := range vm.Parts {
		p := &vm.Parts[i]
		go func() { results <- v.partStands(ctx, snap, vm, p) }()
	}
	var errs []error
	for range vm.Parts {
		errs = append(errs, <-results)
	}
	if err := errors.Join(errs...); err != nil {
		return status.Errorf(codes.DeadlineExceeded, "VM %s is stopped, but it is not known yet that all of its vCPUs stand still: %v", vm.Spec.Name, err)
	}
	return nil
}

func (v *service) partStands(ctx context.Context, snap *snapshot, vm *cells.VM, p *cells.VMPart) error {
	if p.Server == v.s.store.Identity().Server {
		return v.s.workers.waitGone(ctx, vm.ID)
	}
	sv := snap.state.Server(p.Server)
	if sv == nil || sv.State != cells.ServerLive || p.Gone {
		return nil
	}
	for {
		err := v.askStandstill(ctx, sv, vm.Spec.Name)
		if err == nil || status.Code(err) == codes.NotFound || !v.s.board.now().state.View.Has(p.Server, p.Incarnation) {
			return nil
		}
		select { // its serve process may be on its way back
		case <-time.After(standPause):
		case <-ctx.Done():
			return fmt.Errorf("server %s: %s", p.ServerName, api.Message(err))
		case <-v.quit:
			return errStopping()
		}
	}
}

// askStandstill asks one server once. The patience is short: it may have been stopped, or leave the view.
func (v *service) askStandstill(ctx context.Context, sv *cells.Server, name string) error {
	ctx, cancel := context.WithTimeout(v.forward(ctx), time.Second)
	defer cancel()
	client, err := v.peer(sv)
	if err == nil {
		_, err = client.StopVM(ctx, &api.StopVMRequest{Name: name})
	}
	return err
}

// standStill answers another server's question once this one has heard that the VM ended and its worker here is gone.
func (v *service) standStill(ctx context.Context, name string) (*api.StopVMResponse, error) {
	for {
		snap, vm, err := v.vm(ctx, name)
		if err != nil {
			return nil, err
		}
		if !vm.State.Active() {
			if err := v.s.workers.waitGone(ctx, vm.ID); err != nil {
				return nil, status.FromContextError(err).Err()
			}
			return &api.StopVMResponse{Vm: vmMessage(snap.state, vm)}, nil
		}
		select {
		case <-snap.next:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-v.quit:
			return nil, errStopping()
		}
	}
}

// RemoveVM implements api.CellvisorServer.
func (v *service) RemoveVM(ctx context.Context, req *api.RemoveVMRequest) (*api.RemoveVMResponse, error) {
	_, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if vm.State.Active() && req.GetForce() { // without waiting for its vCPUs: their servers stop them, registered or not
		err := v.s.propose(ctx, cells.Command{StopVM: &cells.StopVM{VM: vm.ID, Reason: "stopped to be removed"}}, nil)
		if err != nil && !v.ended(vm.ID) {
			return nil, err
		}
	}
	// A command that was sent again, since its answer was lost or late, finds the VM gone: it is what was asked for.
	err = v.s.propose(ctx, cells.Command{RemoveVM: &cells.RemoveVM{VM: vm.ID}}, nil)
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, err
	}
	return &api.RemoveVMResponse{}, nil
}
