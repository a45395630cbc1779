package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/audit"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

const (
	auditFile   = "audit.log" // in the data directory
	tellEvery   = 2 * time.Second
	refusedGap  = time.Second // refused calls beyond one in so long are only counted: a viewer must not be able to fill the disk
	auditPiece  = 256 << 10
	headBacklog = 64
)

// auditor keeps this server's log of what operators did, and witnesses the logs of others.
type auditor struct {
	log     *audit.Log
	path    string
	acted   atomic.Uint64 // entries about acts, for whoever tells others
	refused atomic.Int64  // when a refused call was last recorded, Unix nanoseconds
	heads   chan audit.Head
}

// openAudit continues the log in the data directory. One that was tampered with is put aside, loudly.
func (s *Server) openAudit() error {
	p := filepath.Join(s.cfg.DataDir, auditFile)
	l, err := audit.Open(p, string(s.cfg.Name), time.Now(), cmp.Or(int64(s.cfg.AuditBytes), audit.DefaultMostBytes))
	if l == nil {
		return fmt.Errorf("audit log %s: %w", p, err)
	}
	if err != nil {
		s.log.Error().Err(err).Str("file", p).Msg("the log of what operators did is not as it was written: it is put aside and a new one begun")
	}
	s.audit = &auditor{log: l, path: p, heads: make(chan audit.Head, headBacklog)}
	return nil
}

// begin records that somebody asks for an act. What cannot be recorded is not done.
func (a *auditor) begin(who caller, fullMethod string, req any) (uint64, error) {
	seq, err := a.log.Append(audit.Entry{At: time.Now(), Kind: audit.Asked, Who: who.name, Via: who.via, From: who.from,
		What: path.Base(fullMethod), Args: argsOf(req)})
	if err != nil {
		return 0, status.Errorf(codes.Unavailable, "not done, since it cannot be recorded in this server's audit log: %v; make room in its data directory, or ask another server", err)
	}
	return seq, nil
}

// healed records that what was broken by request is whole again by itself.
func (a *auditor) healed(server ident.ServerName) {
	_, _ = a.log.Append(audit.Entry{At: time.Now(), Kind: audit.Asked, Who: "server " + string(server), What: "SetFaults",
		Result: "the lease of its faults ran out: they are healed"})
	a.acted.Add(1)
}

// end records how an act ended.
func (a *auditor) end(seq uint64, err error) error {
	result := "ok"
	if err != nil {
		result = status.Code(err).String() + ": " + api.Message(err)
	}
	_, aerr := a.log.Append(audit.Entry{At: time.Now(), Kind: audit.Done, Of: seq, Result: result})
	a.acted.Add(1)
	return aerr
}

// deny records a call that its caller may not make.
func (a *auditor) deny(who caller, fullMethod string, err error) {
	now, last := time.Now(), a.refused.Load()
	if now.UnixNano()-last < int64(refusedGap) || !a.refused.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	_, _ = a.log.Append(audit.Entry{At: now, Kind: audit.Refused, Who: who.name, Via: who.via, From: who.from, What: path.Base(fullMethod),
		Result: status.Code(err).String()})
	a.acted.Add(1)
}

// argsOf are a call's arguments for the log, without contents such as payload files or what was typed.
func argsOf(req any) json.RawMessage {
	m, ok := req.(proto.Message)
	if !ok || m == nil {
		return nil
	}
	m = proto.Clone(m)
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if f.Kind() == protoreflect.BytesKind {
			m.ProtoReflect().Clear(f)
		}
		return true
	})
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil
	}
	return text
}

// recordedStream records a stream's call when its first message, which holds what is asked for, comes in.
type recordedStream struct {
	grpc.ServerStream
	a      *auditor
	who    caller
	method string
	seq    uint64
}

// RecvMsg implements grpc.ServerStream.
func (r *recordedStream) RecvMsg(m any) error {
	if err := r.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if r.seq != 0 {
		return nil
	}
	var err error
	r.seq, err = r.a.begin(r.who, r.method, m)
	return err
}

// done records the end of the call.
func (r *recordedStream) done(err error) {
	if r.seq == 0 { // nothing was asked for
		r.seq, _ = r.a.begin(r.who, r.method, nil)
	}
	_ = r.a.end(r.seq, err)
}

// run tells the other servers the head of this log after acts, and witnesses theirs.
func (a *auditor) run(ctx context.Context, s *Server) {
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	told := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-a.heads:
			if err := a.log.Note(h, time.Now()); err != nil {
				s.log.Warn().Err(err).Msg("head of another server's audit log")
			}
		case <-ticker.C:
			if acted := a.acted.Load(); acted != told {
				told = acted
				a.tell(s)
			}
		}
	}
}

func (a *auditor) tell(s *Server) {
	body, err := json.Marshal(a.log.Head())
	if err != nil {
		return
	}
	state := s.board.now().state
	for i := range state.Servers {
		if id := state.Servers[i].ID; id != s.store.Identity().Server {
			s.peers.Send(id, wire.EnvelopeAudit, body)
		}
	}
}

// hearHead takes another server's word on its own log.
func (a *auditor) hearHead(name ident.ServerName, body []byte) error {
	var h audit.Head
	if err := json.Unmarshal(body, &h); err != nil || name == "" || h.Server != string(name) {
		return fmt.Errorf("server %q tells the head of the audit log of %q", name, h.Server)
	}
	select {
	case a.heads <- h:
	default: // it comes again after the next act
	}
	return nil
}

// AuditLog implements api.CellvisorServer.
func (v *service) AuditLog(req *api.AuditLogRequest, stream grpc.ServerStreamingServer[api.AuditLogResponse]) error {
	ctx := stream.Context()
	sv, err := v.server(v.s.board.now(), req.GetServer())
	if err != nil {
		return err
	}
	if sv.ID != v.s.store.Identity().Server {
		client, err := v.at(ctx, sv)
		if err != nil {
			return err
		}
		from, err := client.AuditLog(v.forward(ctx), req)
		if err != nil {
			return err
		}
		return relay(from, stream.Send)
	}
	f, head, err := v.s.audit.log.Read()
	if err != nil {
		return status.Errorf(codes.Internal, "audit log: %v", err)
	}
	defer f.Close()
	m := &api.AuditLogResponse{Server: string(v.s.cfg.Name), HeadSeq: head.Seq, HeadHash: head.Hash}
	buf := make([]byte, auditPiece)
	for {
		n, err := f.Read(buf)
		if n > 0 || m.HeadSeq != 0 {
			m.Piece = buf[:n]
			if err := stream.Send(m); err != nil {
				return err
			}
			m = &api.AuditLogResponse{Server: string(v.s.cfg.Name)}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return status.Errorf(codes.Internal, "audit log: %v", err)
		}
	}
}
