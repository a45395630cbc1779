package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/probe"
	"github.com/cellvisor/cellvisor/wire"
)

// maxSavedBytes bounds a saved VM that is sent here.
const maxSavedBytes = 1 << 40

// RestoreVM implements api.CellvisorServer.
func (v *service) RestoreVM(stream api.Cellvisor_RestoreVMServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := v.s.needQuorum(); err != nil {
		return err
	}
	if name := first.GetName(); name != "" {
		if old := v.s.board.now().state.VMNamed(name); old != nil {
			return status.Errorf(codes.AlreadyExists, "a VM called %s exists (state %s): choose another name, or remove it first", name, old.State)
		}
	}
	whole, err := v.s.store.Blobs().CreateLarge(maxSavedBytes)
	if err != nil {
		return status.Errorf(codes.Internal, "server %s: %v", v.s.cfg.Name, err)
	}
	defer whole.Abort()
	t := &takenVM{v: v}
	defer t.abort()
	if err := t.read(io.TeeReader(&restoreStream{stream: stream, rest: first.GetChunk()}, whole)); err != nil {
		return t.refuse(err)
	}
	spec, unpin, err := t.spec(first, whole)
	if err != nil {
		return err
	}
	defer unpin()
	var vm cells.VM
	if err := v.s.propose(stream.Context(), cells.Command{CreateVM: &cells.CreateVM{Spec: *spec, Secret: randomHex(32)}}, &vm); err != nil {
		return err
	}
	return stream.SendAndClose(&api.RestoreVMResponse{Vm: vmMessage(v.s.board.now().state, &vm)})
}

// restoreStream makes messages bytes.
type restoreStream struct {
	stream api.Cellvisor_RestoreVMServer
	rest   []byte
}

// Read implements io.Reader.
func (r *restoreStream) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = m.GetChunk()
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// takenVM is a saved VM that is coming in.
type takenVM struct {
	v     *service
	about *wire.SaveAboutVM
	saved savedSpec
	files []*disk.BlobWriter
	vcpus map[uint64]bool
	rest  map[wire.SaveType]bool // what else has come
}

func (t *takenVM) abort() {
	for _, w := range t.files {
		w.Abort()
	}
}

// refuse puts what is wrong with a file into the words of the API.
func (t *takenVM) refuse(err error) error {
	if _, known := status.FromError(err); known {
		return err
	}
	for _, is := range []error{wire.ErrNotSaved, wire.ErrSavedVersion, wire.ErrSavedShort, wire.ErrSavedDamaged, errBadSaved} {
		if errors.Is(err, is) {
			return status.Errorf(codes.InvalidArgument, "%v; nothing was made of it", err)
		}
	}
	return status.Errorf(codes.Internal, "server %s: %v", t.v.s.cfg.Name, err)
}

var errBadSaved = errors.New("the saved VM makes no sense")

// read checks all of a saved VM and stores the files that came along.
func (t *takenVM) read(from io.Reader) error {
	in := bufio.NewReaderSize(from, 1<<18)
	r, err := wire.NewSaveReader(in)
	if err != nil {
		return err
	}
	t.vcpus, t.rest = map[uint64]bool{}, map[wire.SaveType]bool{}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = t.take(rec)
		}
		if err != nil {
			return err
		}
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its end", wire.ErrSavedDamaged)
	}
	if t.about == nil || !t.rest[wire.SaveMachine] || !t.rest[wire.SaveDevice] || len(t.vcpus) != t.saved.Spec.VCPUs {
		return fmt.Errorf("%w: parts of it are missing", errBadSaved)
	}
	return nil
}

func (t *takenVM) take(rec wire.SaveRecord) error {
	if (t.about == nil) != (rec.Type == wire.SaveAbout) {
		return fmt.Errorf("%w: it does not begin with what it is", errBadSaved)
	}
	switch rec.Type {
	case wire.SaveAbout:
		return t.takeAbout(rec.Data)
	case wire.SaveFile:
		if rec.Key >= uint64(len(t.files)) {
			return fmt.Errorf("%w: piece of file %d of %d", errBadSaved, rec.Key, len(t.files))
		}
		if _, err := t.files[rec.Key].Write(rec.Data); errors.Is(err, disk.ErrBlobTooLarge) {
			return fmt.Errorf("%w: %w", errBadSaved, err)
		} else if err != nil {
			return err
		}
	case wire.SaveMachine:
		var host wire.SaveHost
		if err := json.Unmarshal(rec.Data, &host); err != nil {
			return fmt.Errorf("%w: %w", errBadSaved, err)
		}
		if here := probe.CPUModel(); host.CPU != here {
			return status.Errorf(codes.FailedPrecondition, "the VM was saved on a processor %q, server %s has %q: restore it on a cluster with the same", host.CPU, t.v.s.cfg.Name, here)
		}
	case wire.SaveVCPU:
		t.vcpus[rec.Key] = true
	}
	t.rest[rec.Type] = true
	return nil
}

func (t *takenVM) takeAbout(text []byte) error {
	about := &wire.SaveAboutVM{}
	if err := errors.Join(json.Unmarshal(text, about), json.Unmarshal(about.Spec, &t.saved)); err != nil {
		return fmt.Errorf("%w: %w", errBadSaved, err)
	}
	t.about = about
	want := t.saved.Spec.Files()
	if len(want) != len(about.Files) || t.saved.Spec.Saved != nil {
		return fmt.Errorf("%w: %d files, %d are needed", errBadSaved, len(about.Files), len(want))
	}
	for i, f := range about.Files {
		if f.SHA256 != want[i] {
			return fmt.Errorf("%w: file %d is another", errBadSaved, i)
		}
		w, err := t.v.s.store.Blobs().Create(ident.Bytes(min(f.Bytes, maxPayload)))
		if err != nil {
			return err
		}
		t.files = append(t.files, w)
	}
	return nil
}

// spec makes the files durable and returns what the new VM is to be. unpin keeps the files until the registry does.
func (t *takenVM) spec(req *api.RestoreVMRequest, whole *disk.BlobWriter) (_ *cells.VMSpec, unpin func(), err error) {
	var pins []func()
	unpin = func() {
		for _, f := range pins {
			f()
		}
	}
	defer func() {
		if err != nil {
			unpin()
		}
	}()
	for i, w := range t.files {
		sha := t.about.Files[i].SHA256
		pins = append(pins, t.v.s.blobPins.pin(sha))
		if _, err := w.Commit(sha); err != nil {
			return nil, nil, t.refuse(fmt.Errorf("%w: %w", errBadSaved, err))
		}
	}
	sha := whole.Sum()
	pins = append(pins, t.v.s.blobPins.pin(sha))
	if _, err := whole.Commit(sha); err != nil {
		return nil, nil, status.Errorf(codes.Internal, "server %s: %v", t.v.s.cfg.Name, err)
	}
	spec := t.saved.Spec
	if name := req.GetName(); name != "" {
		spec.Name = name
	}
	known := t.v.s.board.now().state.Cells()
	switch {
	case len(req.GetSpan()) > 0:
		spec.Span = nil
		for _, c := range req.GetSpan() {
			spec.Span = append(spec.Span, ident.CellName(c))
		}
	case slices.ContainsFunc(spec.Span, func(c ident.CellName) bool { return !slices.Contains(known, c) }):
		spec.Span = nil
	}
	spec.PayloadServer = t.v.s.store.Identity().Server
	spec.Saved = &cells.SavedSpec{SHA256: sha, Bytes: whole.Size(), Disks: t.saved.Disks}
	return &spec, unpin, nil
}
