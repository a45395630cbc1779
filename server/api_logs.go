package server

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/wire"
)

// A VM's console and output log are files in the directory of its home's worker. They grow while it runs and stay until it is removed.

const (
	consoleChunkBytes = 256 << 10
	outputChunk       = 8192 // records
)

// logPath is where the home server, this one, keeps a log of a VM.
func (v *service) logPath(vm *cells.VM, file string) string {
	return filepath.Join(v.s.workers.workerDir(vm.ID, vm.Created), file)
}

// homeOf returns nil if this server is the VM's home, and the home's API otherwise.
func (v *service) homeOf(ctx context.Context, snap *snapshot, vm *cells.VM) (api.CellvisorClient, error) {
	home := homePart(vm)
	if home == nil {
		return nil, status.Errorf(codes.Internal, "VM %s has no home part", vm.Spec.Name)
	}
	if home.Server == v.s.store.Identity().Server {
		return nil, nil
	}
	sv := snap.state.Server(home.Server)
	switch {
	case sv == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "server %s, which kept the console and the output of VM %s, was removed from the cluster",
			home.ServerName, vm.Spec.Name)
	case sv.State != cells.ServerLive:
		return nil, status.Errorf(codes.FailedPrecondition,
			"server %s, which keeps the console and the output of VM %s, is dead since epoch %d; they can be read again once it is back",
			home.ServerName, vm.Spec.Name, sv.Left)
	case forwarded(ctx):
		return nil, status.Errorf(codes.Aborted, "server %s is not the home of VM %s; ask again", v.s.cfg.Name, vm.Spec.Name)
	}
	return v.peer(sv)
}

func homePart(vm *cells.VM) *cells.VMPart {
	for i := range vm.Parts {
		if vm.Parts[i].Part == vm.Home {
			return &vm.Parts[i]
		}
	}
	return nil
}

// relay copies a stream from the home server.
func relay[M any](from interface{ Recv() (*M, error) }, send func(*M) error) error {
	for {
		m, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

// whileHome returns a context for a request to the home of a VM. It ends when the registry says that the home is elsewhere now, or that its server is
// dead: an answer from there would be waited for until somebody's patience ends. gone gives such an end its words.
func (v *service) whileHome(ctx context.Context, vm *cells.VM) (within context.Context, gone func(error) error, end func()) {
	within, cancel := context.WithCancelCause(ctx)
	home := homePart(vm) // homeOf has found it
	go func() {
		for {
			snap := v.s.board.now()
			now, sv := snap.state.VM(vm.ID), snap.state.Server(home.Server)
			if now != nil && now.Home != vm.Home || sv == nil || sv.State != cells.ServerLive {
				cancel(status.Errorf(codes.Unavailable, "the home of VM %s has moved away from server %s: ask again", vm.Spec.Name, home.ServerName))
			}
			select {
			case <-snap.next:
			case <-within.Done():
				return
			}
		}
	}()
	gone = func(err error) error {
		if cause := context.Cause(within); err != nil && ctx.Err() == nil && cause != nil {
			return cause
		}
		return err
	}
	return within, gone, func() { cancel(nil) }
}

// follower paces the reading of a log that may still grow.
type follower struct {
	v       *service
	stream  grpc.ServerStream
	vm      *cells.VM
	follow  bool
	poll    *time.Ticker
	lastSay time.Time
}

// more decides what to do at the present end of a log: true means read on, false that the log is complete or only its present
// contents were asked for. say tells the client that the server is there.
func (f *follower) more(say func() error) (bool, error) {
	if !f.follow {
		return false, nil
	}
	// In this order: what is seen as ended now has written all it will ever write, so one more read finds the rest.
	if f.complete() {
		f.follow = false
		return true, nil
	}
	if f.moved() {
		return false, status.Errorf(codes.Unavailable, "the home of VM %s has moved away from server %s: ask again", f.vm.Spec.Name, f.v.s.cfg.Name)
	}
	if time.Since(f.lastSay) >= signOfLife {
		f.lastSay = time.Now()
		if err := say(); err != nil {
			return false, err
		}
	}
	select {
	case <-f.poll.C:
		return true, nil
	case <-f.stream.Context().Done():
		return false, status.FromContextError(f.stream.Context().Err()).Err()
	case <-f.v.quit:
		return false, errStopping()
	}
}

// complete tells whether the VM has ended, or was removed, and its worker here is gone.
func (f *follower) complete() bool {
	vm := f.v.s.board.now().state.VM(f.vm.ID)
	return (vm == nil || !vm.State.Active()) && f.v.s.workers.worker(f.vm.ID) == nil
}

// moved tells whether the VM went on from a replica elsewhere: the log here grows no more, and the new home's begins with all that is in it.
func (f *follower) moved() bool {
	vm := f.v.s.board.now().state.VM(f.vm.ID)
	return vm != nil && vm.Home != f.vm.Home
}

func (v *service) follower(stream grpc.ServerStream, vm *cells.VM, follow bool) *follower {
	return &follower{v: v, stream: stream, vm: vm, follow: follow, poll: time.NewTicker(followPoll), lastSay: time.Now()}
}

// ConsoleVM implements api.CellvisorServer.
func (v *service) ConsoleVM(req *api.ConsoleVMRequest, stream api.Cellvisor_ConsoleVMServer) error {
	snap, vm, err := v.vmToFollow(stream.Context(), req.GetName())
	if err != nil {
		return err
	}
	home, err := v.homeOf(stream.Context(), snap, vm)
	if err != nil {
		return err
	}
	if home != nil {
		ctx, gone, end := v.whileHome(stream.Context(), vm)
		defer end()
		from, err := home.ConsoleVM(v.forward(ctx), req)
		if err != nil {
			return gone(err)
		}
		return gone(relay(from, stream.Send))
	}
	fl := v.follower(stream, vm, req.GetFollow())
	defer fl.poll.Stop()
	log := logReader{at: req.GetOffset(), path: v.logPath(vm, wire.WorkerConsoleFile), start: v.logPath(vm, wire.WorkerConsoleStartFile)}
	defer log.close()
	buf := make([]byte, consoleChunkBytes)
	for {
		n, _, err := log.read(buf)
		if err != nil {
			return status.Errorf(codes.Internal, "read the console: %v", err)
		}
		if n > 0 {
			if err := stream.Send(&api.ConsoleVMResponse{Offset: log.at, Data: buf[:n]}); err != nil {
				return err
			}
			log.at += uint64(n)
			fl.lastSay = time.Now()
			continue
		}
		on, err := fl.more(func() error { return stream.Send(&api.ConsoleVMResponse{Offset: log.at}) })
		if err != nil || !on {
			return err
		}
	}
}

// OutputVM implements api.CellvisorServer.
func (v *service) OutputVM(req *api.OutputVMRequest, stream api.Cellvisor_OutputVMServer) error {
	snap, vm, err := v.vmToFollow(stream.Context(), req.GetName())
	if err != nil {
		return err
	}
	home, err := v.homeOf(stream.Context(), snap, vm)
	if err != nil {
		return err
	}
	if home != nil {
		ctx, gone, end := v.whileHome(stream.Context(), vm)
		defer end()
		from, err := home.OutputVM(v.forward(ctx), req)
		if err != nil {
			return gone(err)
		}
		return gone(relay(from, stream.Send))
	}
	fl := v.follower(stream, vm, req.GetFollow())
	defer fl.poll.Stop()
	out := &records{want: req.GetIndex(), log: logReader{path: v.logPath(vm, wire.WorkerOutputFile), start: v.logPath(vm, wire.WorkerOutputStartFile)}}
	defer out.log.close()
	for {
		first, batch, err := out.read(outputChunk)
		if err != nil {
			return status.Errorf(codes.DataLoss, "output of VM %s: %v", vm.Spec.Name, err)
		}
		if len(batch) > 0 {
			if err := stream.Send(&api.OutputVMResponse{Index: first, Records: batch}); err != nil {
				return err
			}
			fl.lastSay = time.Now()
			continue
		}
		on, err := fl.more(func() error { return stream.Send(&api.OutputVMResponse{Index: out.at}) })
		if err != nil || !on {
			return err
		}
	}
}

// GetBlob implements api.CellvisorServer.
func (v *service) GetBlob(req *api.GetBlobRequest, stream api.Cellvisor_GetBlobServer) error {
	name := hex.EncodeToString(req.GetSha256())
	f, err := v.s.store.Blobs().Open(name)
	switch {
	case errors.Is(err, disk.ErrBlobName):
		return status.Errorf(codes.InvalidArgument, "a SHA-256 has 32 bytes, not %d", len(req.GetSha256()))
	case errors.Is(err, disk.ErrBlobMissing):
		return status.Errorf(codes.NotFound, "server %s does not hold payload %s", v.s.cfg.Name, name)
	case err != nil:
		return status.Errorf(codes.Internal, "payload %s: %v", name, err)
	}
	defer f.Close()
	buf := make([]byte, api.ChunkBytes)
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			if err := stream.Send(&api.GetBlobResponse{Chunk: buf[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return status.Errorf(codes.Internal, "payload %s: %v", name, err)
		}
	}
}
