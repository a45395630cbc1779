package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/wire"
)

// typePatience bounds the wait for a worker's answer to input.
const typePatience = 2 * time.Second

// typing is input on its way to one worker: one piece at a time.
type typing struct {
	turn sync.Mutex        // held by the call whose piece is under way
	next *wire.WorkerTyped // protected by worker.mu, as is took
	took chan int          // gets the answer to next
}

// typeTo hands bytes to a worker's guest and returns for how many there was room.
func (s *supervisor) typeTo(ctx context.Context, w *worker, data []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, typePatience)
	defer cancel()
	w.typed.turn.Lock()
	defer w.typed.turn.Unlock()
	took := make(chan int, 1)
	w.post(func() {
		seq := uint64(1)
		if w.typed.next != nil {
			seq = w.typed.next.Seq + 1
		}
		w.typed.next, w.typed.took = &wire.WorkerTyped{Seq: seq, Data: data}, took
	})
	select {
	case n := <-took:
		return n, nil
	case <-w.done:
		return 0, errGone
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// hearTook takes a worker's answer.
func (w *worker) hearTook(m *wire.WorkerTook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.typed.next == nil || w.typed.next.Seq != m.Seq {
		return
	}
	select {
	case w.typed.took <- m.Bytes:
	default: // repeated, on a new connection
	}
}

// TypeVM implements api.CellvisorServer.
func (v *service) TypeVM(ctx context.Context, req *api.TypeVMRequest) (*api.TypeVMResponse, error) {
	if len(req.GetData()) > wire.MaxTypedBytes {
		return nil, status.Errorf(codes.InvalidArgument, "%d bytes of input in one call: at most %d", len(req.GetData()), wire.MaxTypedBytes)
	}
	snap, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	switch {
	case vm.Spec.Linux == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "VM %s runs a payload, which reads no console", vm.Spec.Name)
	case !vm.State.Active():
		return nil, status.Errorf(codes.FailedPrecondition, "VM %s has ended (%s)", vm.Spec.Name, vm.State)
	}
	home, err := v.homeOf(ctx, snap, vm)
	if err != nil {
		return nil, err
	}
	if home != nil {
		return home.TypeVM(v.forward(ctx), req)
	}
	w := v.s.workers.worker(vm.ID)
	if w == nil {
		return nil, status.Errorf(codes.Unavailable, "VM %s has no worker here yet: ask again", vm.Spec.Name)
	}
	n, err := v.s.workers.typeTo(ctx, w, req.GetData())
	switch {
	case errors.Is(err, errGone):
		return nil, status.Errorf(codes.FailedPrecondition, "VM %s has ended", vm.Spec.Name)
	case err != nil:
		return nil, status.Errorf(codes.DeadlineExceeded, "the worker of VM %s does not answer; it may have taken the input", vm.Spec.Name)
	}
	return &api.TypeVMResponse{Taken: uint32(n)}, nil
}
