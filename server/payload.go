package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// fetchPatience is how long a server that sends a payload may say nothing.
const fetchPatience = 30 * time.Second

// connectPatience is how long a connection to another server's API may take to be made: a machine whose guests use all of it needs seconds.
const connectPatience = 10 * time.Second

// guestFiles are the paths of the files that a guest is started from, "" for none.
type guestFiles struct{ payload, initrd, saved string }

// prepareFiles brings the guest's files here if this part needs them and does not have them. A Linux guest may be started again wherever it
// moves to; otherwise home loads what the guest is started from.
func (s *Server) prepareFiles(ctx context.Context, a monitor.StartWorker) (files guestFiles, err error) {
	if a.Payload.Saved != "" {
		if files.saved, err = s.haveFile(ctx, monitor.Payload{SHA256: a.Payload.Saved, Bytes: a.Payload.SavedBytes, Server: a.Payload.Server}); err != nil {
			return files, err
		}
	}
	if a.Payload.SHA256 == "" || !(a.Spec.Linux != nil && a.Spec.Standby) && !s.isHome(a) {
		return files, nil
	}
	if files.payload, err = s.haveFile(ctx, a.Payload); err != nil || a.Payload.Initrd == "" {
		return files, err
	}
	files.initrd, err = s.haveFile(ctx, monitor.Payload{SHA256: a.Payload.Initrd, Bytes: a.Payload.InitrdBytes, Server: a.Payload.Server})
	return files, err
}

// haveFile brings a file here if it is not, and returns its path.
func (s *Server) haveFile(ctx context.Context, p monitor.Payload) (string, error) {
	blobs := s.store.Blobs()
	if !blobs.Has(p.SHA256) {
		if err := s.fetchPayload(ctx, p); err != nil {
			return "", fmt.Errorf("fetch the payload: %w", err)
		}
	}
	return blobs.Path(p.SHA256)
}

// isHome tells whether the worker's part is the VM's home.
func (s *Server) isHome(a monitor.StartWorker) bool {
	vm := s.board.now().state.VM(a.Spec.VM)
	return vm == nil || vm.Home == a.Spec.Part // unknown: the loop is ahead of the board; one payload too many does no harm
}

// fetchPayload gets a payload from the server that took it in, or from any other that has it.
func (s *Server) fetchPayload(ctx context.Context, p monitor.Payload) error {
	state := s.board.now().state
	var order []*cells.Server
	if holder := state.Server(p.Server); holder != nil {
		order = append(order, holder)
	}
	for i := range state.Servers {
		if sv := &state.Servers[i]; sv.ID != p.Server && sv.State == cells.ServerLive {
			order = append(order, sv)
		}
	}
	var errs []error
	for _, sv := range order {
		if sv.ID == s.store.Identity().Server {
			continue
		}
		err := s.fetchFrom(ctx, sv, p)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("from server %s: %s", sv.Name, api.Message(err)))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return errors.New("no other live server is known")
	}
	return errors.Join(errs...)
}

func (s *Server) fetchFrom(ctx context.Context, sv *cells.Server, p monitor.Payload) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silent := time.AfterFunc(fetchPatience, cancel) // a large file over a slow line takes its time, as long as it comes
	defer silent.Stop()
	sha, err := hex.DecodeString(p.SHA256)
	if err != nil {
		return err
	}
	client, err := s.service.peer(sv)
	if err != nil {
		return err
	}
	stream, err := client.GetBlob(ctx, &api.GetBlobRequest{Sha256: sha})
	if err != nil {
		return err
	}
	w, err := s.store.Blobs().CreateLarge(p.Bytes)
	if err != nil {
		return err
	}
	defer w.Abort()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		silent.Reset(fetchPatience)
		if _, err := w.Write(m.GetChunk()); err != nil {
			return err
		}
	}
	_, err = w.Commit(p.SHA256)
	if err == nil {
		s.count.blobFetches.Add(1)
		s.log.Debug().Str("sha256", p.SHA256).Stringer("size", w.Size()).Str("from", string(sv.Name)).Msg("fetched a payload")
	}
	return err
}

// peer returns a client of another server's API.
func (v *service) peer(sv *cells.Server) (api.CellvisorClient, error) {
	if sv.Addrs.API == "" {
		return nil, status.Errorf(codes.Unavailable, "server %s has not told where its API is", sv.Name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, errStopping()
	}
	conn := v.peers[sv.Addrs.API]
	if conn == nil {
		target, creds := sv.Addrs.API, insecure.NewCredentials()
		if len(target) < 5 || target[:5] != "unix:" {
			if v.s.keys == nil {
				return nil, status.Errorf(codes.Unavailable, "API of server %s at %s: this server has no certificate to show there: see `cellvisor ca`", sv.Name, target)
			}
			target, creds = "passthrough:///"+target, credentials.NewTLS(v.s.clientTLS())
		}
		var err error
		conn, err = grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
			grpc.WithConnectParams(grpc.ConnectParams{ // a serve process that was restarted is back within a moment
				Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
				MinConnectTimeout: connectPatience,
			}))
		if err != nil {
			return nil, status.Errorf(codes.Unavailable, "API of server %s at %s: %v", sv.Name, sv.Addrs.API, err)
		}
		v.peers[sv.Addrs.API] = conn
	}
	return api.NewCellvisorClient(conn), nil
}

// maxPayload bounds what an operator may send.
const maxPayload = uint64(256 * ident.MiB)
