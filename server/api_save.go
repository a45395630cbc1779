package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Saving a VM. Its home's serve leads: the registry holds the VM for it, for as long as this call, this process and the VM's members last.
//
//	SaveVM agreed --all parts stand still--> state sent --caller has it--> EndSave with stop: the VM has ended
//	                    \------------- anything else --------------------> EndSave without: the VM goes on

// SaveVM implements api.CellvisorServer.
func (v *service) SaveVM(stream api.Cellvisor_SaveVMServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx := stream.Context()
	snap, vm, err := v.vm(ctx, first.GetName())
	if err != nil {
		return err
	}
	if vm.State != cells.VMRunning {
		return status.Errorf(codes.FailedPrecondition, "VM %s does not run: it is %s", vm.Spec.Name, vm.State)
	}
	home, err := v.homeOf(ctx, snap, vm)
	if err != nil {
		return err
	}
	if home != nil {
		return v.relaySave(ctx, home, first, stream)
	}
	if v.s.workers.worker(vm.ID) == nil {
		return status.Errorf(codes.Unavailable, "VM %s has no worker here yet: ask again", vm.Spec.Name)
	}
	token := randomHex(16)
	pctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), proposePatience) // a caller who leaves now does not take it back: its outcome must be known
	err = v.s.propose(pctx, cells.Command{SaveVM: &cells.SaveVM{VM: vm.ID, Token: token, Boot: v.s.boot}}, nil)
	cancel()
	stopped := false
	defer func() {
		if !stopped {
			v.letGoOn(vm.ID, token)
		}
	}()
	if err != nil {
		return err
	}
	size, saved, err := v.sendState(ctx, vm.ID, stream)
	if err != nil {
		return err
	}
	if err := stream.Send(&api.SaveVMResponse{Whole: true, SizeBytes: size, Vm: saved}); err != nil {
		return err
	}
	if m, err := stream.Recv(); err != nil || !m.GetKept() {
		return status.Errorf(codes.Canceled, "VM %s was not saved: the caller has not kept its state", vm.Spec.Name)
	}
	pctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), proposePatience)
	defer cancel()
	if err := v.s.propose(pctx, cells.Command{EndSave: &cells.EndSave{VM: vm.ID, Token: token, Stop: true}}, nil); err != nil {
		return err
	}
	stopped = true
	now := v.s.board.now()
	if err := v.awaitStandstill(ctx, snap, vm); err != nil {
		v.s.log.Warn().Err(err).Str("vm", vm.Spec.Name).Msg("saved")
	}
	if after := now.state.VM(vm.ID); after != nil {
		vm = after
	}
	return stream.Send(&api.SaveVMResponse{Vm: vmMessage(now.state, vm)})
}

// letGoOn ends a save that came to nothing, however long that takes: nobody else does as long as this process lives.
func (v *service) letGoOn(id ident.VMID, token string) {
	go func() {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), proposePatience)
			err := v.s.propose(ctx, cells.Command{EndSave: &cells.EndSave{VM: id, Token: token}}, nil)
			cancel()
			vm := v.s.board.now().state.VM(id)
			if err == nil || vm == nil || vm.Saving.Token != token && status.Code(err) == codes.FailedPrecondition {
				return
			}
			select {
			case <-v.quit:
				return
			case <-time.After(time.Second):
			}
		}
	}()
}

// relaySave passes a save on to the VM's home: the two sides take turns.
func (v *service) relaySave(ctx context.Context, home api.CellvisorClient, first *api.SaveVMRequest, stream api.Cellvisor_SaveVMServer) error {
	ctx, cancel := context.WithCancel(v.forward(ctx))
	defer cancel()
	up, err := home.SaveVM(ctx)
	if err != nil {
		return err
	}
	if err := up.Send(first); err != nil {
		return err
	}
	for {
		m, err := up.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		if !m.GetWhole() {
			continue
		}
		next, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := up.Send(next); err != nil {
			return err
		}
	}
}

// saveStream makes a file's bytes messages.
type saveStream struct{ stream api.Cellvisor_SaveVMServer }

// Write implements io.Writer.
func (s saveStream) Write(b []byte) (int, error) {
	for at := 0; at < len(b); at += api.ChunkBytes {
		if err := s.stream.Send(&api.SaveVMResponse{Chunk: b[at:min(at+api.ChunkBytes, len(b))]}); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

// sendState waits until the VM stands still and sends all there is of it.
func (v *service) sendState(ctx context.Context, id ident.VMID, stream api.Cellvisor_SaveVMServer) (size uint64, saved *api.VM, err error) {
	snap, vm, err := v.awaitPause(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	if !vm.Still() {
		return 0, nil, status.Errorf(codes.Aborted, "VM %s was not saved: it has gone on meanwhile", vm.Spec.Name)
	}
	out := bufio.NewWriterSize(saveStream{stream}, api.ChunkBytes)
	to, err := wire.NewSaveWriter(out)
	if err != nil {
		return 0, nil, err
	}
	if err := v.sendAbout(snap.state, vm, to); err != nil {
		return 0, nil, err
	}
	for _, p := range vm.Members() {
		if p.Part != vm.Home {
			if err := v.sendOther(ctx, snap, vm, &p, to); err != nil {
				return 0, nil, status.Errorf(codes.Aborted, "VM %s was not saved: its part on %s: %s", vm.Spec.Name, p.ServerName, api.Message(err))
			}
		}
	}
	if err := v.sendPart(ctx, vm, true, to); err != nil {
		return 0, nil, status.Errorf(codes.Aborted, "VM %s was not saved: %s", vm.Spec.Name, api.Message(err))
	}
	if err := errors.Join(to.Close(), out.Flush()); err != nil {
		return 0, nil, err
	}
	return to.Size(), vmMessage(snap.state, vm), nil
}

// savedSpec is what a VM is restored with.
type savedSpec struct {
	Spec  cells.VMSpec      `json:"spec"`
	Disks []cells.SavedDisk `json:"disks,omitempty"`
}

// sendAbout sends what the VM is, and the files that its guest is started from.
func (v *service) sendAbout(state *cells.State, vm *cells.VM, to *wire.SaveWriter) error {
	spec := vm.Spec
	spec.Saved, spec.PayloadServer = nil, 0
	if spec.Linux != nil { // the guest knows its cards' addresses
		l := *spec.Linux
		l.Nets = slices.Clone(l.Nets)
		for i := range l.Nets {
			l.Nets[i].MAC = vm.MAC(i)
		}
		spec.Linux = &l
	}
	text, err := json.Marshal(savedSpec{Spec: spec, Disks: state.SavedDisks(vm)})
	if err != nil {
		return err
	}
	about := wire.SaveAboutVM{Name: vm.Spec.Name, Cluster: state.ClusterID, Program: Version, UnixMs: time.Now().UnixMilli(), Spec: text}
	var paths []string
	for _, sha := range spec.Files() {
		path, err := v.s.store.Blobs().Path(sha)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return status.Errorf(codes.Internal, "VM %s was not saved: a file that it is started from: %v", vm.Spec.Name, err)
		}
		about.Files = append(about.Files, wire.SaveFileOf{SHA256: sha, Bytes: uint64(info.Size())})
		paths = append(paths, path)
	}
	if err := to.WriteJSON(wire.SaveAbout, about); err != nil {
		return err
	}
	for i, path := range paths {
		if err := sendFile(path, uint64(i), to); err != nil {
			return err
		}
	}
	return nil
}

func sendFile(path string, key uint64, to *wire.SaveWriter) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, wire.SaveRecordLimit)
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			if err := to.Write(wire.SaveRecord{Type: wire.SaveFile, Key: key, Data: buf[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// sendPart copies what the worker here has of the VM.
func (v *service) sendPart(ctx context.Context, vm *cells.VM, whole bool, to *wire.SaveWriter) error {
	conn, err := v.askWorker(ctx, vm, whole)
	if err != nil {
		return err
	}
	defer conn.Close()
	return copyRecords(conn, to)
}

// askWorker has the worker here write its state to the connection that is returned, which ends with the context.
func (v *service) askWorker(ctx context.Context, vm *cells.VM, whole bool) (net.Conn, error) {
	w := v.s.workers.worker(vm.ID)
	if w == nil || w.process() == nil {
		return nil, status.Errorf(codes.Unavailable, "VM %s has no worker here", vm.Spec.Name)
	}
	conn, err := dialSocket(ctx, w.process(), w.dir, wire.WorkerSaveSocket)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	if err := wire.WriteJSON(conn, &wire.WorkerSaveAsk{Seq: vm.PauseSeq, Whole: whole}); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// copyRecords copies the records of one stream.
func copyRecords(from io.Reader, to *wire.SaveWriter) error {
	r, err := wire.NewSaveReader(bufio.NewReaderSize(from, 1<<18))
	if err != nil {
		return err
	}
	for {
		rec, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case rec.Type == wire.SaveFailed:
			return errors.New(string(rec.Data))
		}
		if err := to.Write(rec); err != nil {
			return err
		}
	}
}

// sendOther copies what another server's worker has of the VM.
func (v *service) sendOther(ctx context.Context, snap *snapshot, vm *cells.VM, p *cells.VMPart, to *wire.SaveWriter) error {
	sv := snap.state.Server(p.Server)
	if sv == nil {
		return errors.New("its server is not known any more")
	}
	client, err := v.peer(sv)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(v.forward(ctx))
	defer cancel()
	stream, err := client.PartState(ctx, &api.PartStateRequest{Name: vm.Spec.Name, Seq: vm.PauseSeq})
	if err != nil {
		return err
	}
	return copyRecords(&partStream{stream: stream}, to)
}

// partStream makes messages bytes.
type partStream struct {
	stream api.Cellvisor_PartStateClient
	rest   []byte
}

// Read implements io.Reader.
func (p *partStream) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		m, err := p.stream.Recv()
		if err != nil {
			return 0, err
		}
		p.rest = m.GetChunk()
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// PartState implements api.CellvisorServer.
func (v *service) PartState(req *api.PartStateRequest, stream api.Cellvisor_PartStateServer) error {
	ctx := stream.Context()
	_, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return err
	}
	if vm.PauseSeq != req.GetSeq() {
		return status.Errorf(codes.Aborted, "VM %s does not stand still any more", vm.Spec.Name)
	}
	conn, err := v.askWorker(ctx, vm, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, api.ChunkBytes)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := stream.Send(&api.PartStateResponse{Chunk: buf[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
