package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
)

const (
	signOfLife      = 250 * time.Millisecond // the longest silence of a stream that follows: whoever reads it goes to another server soon if this one stands still
	followPoll      = 15 * time.Millisecond
	closeGrace      = 500 * time.Millisecond // for calls in progress when the server stops
	catchUpPatience = 500 * time.Millisecond
	catchUpPoll     = 5 * time.Millisecond
	forwardedKey    = "cellvisor-forwarded-by"
	behalfKey       = "cellvisor-on-behalf-of"

	handshakePatience = 5 * time.Second // for a client to say who it is
)

// service is the control API. Its methods read the board, propose commands, or forward to the server that has what is asked for; they are
// spread over the files api_*.go.
type service struct {
	api.UnimplementedCellvisorServer
	s         *Server
	grpc      *grpc.Server
	listeners []net.Listener
	tasks     sync.WaitGroup
	calls     atomic.Uint64
	forwards  atomic.Uint64
	panics    atomic.Uint64
	access    accessCounts
	counts    logCounts
	quit      chan struct{} // closed when the server stops: ends the streams that follow

	mu     sync.Mutex
	peers  map[string]*grpc.ClientConn // protected by mu; by address
	closed bool                        // protected by mu
}

// listenAPI opens the sockets; serve begins to answer.
func listenAPI(s *Server) (*service, error) {
	v := &service{s: s, peers: map[string]*grpc.ClientConn{}, quit: make(chan struct{})}
	l, err := listenUnix(s.cfg.Listen.APIUnix)
	if err != nil {
		return nil, err
	}
	v.listeners = append(v.listeners, l)
	if addr := s.cfg.Listen.APITCP; addr != "" {
		if s.keys == nil {
			v.Close()
			return nil, fmt.Errorf("api_tcp %s: without a certificate of its own this server's API is on the Unix socket only: see `cellvisor ca`", addr)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			v.Close()
			return nil, fmt.Errorf("API on %s: %w; is another server running there?", addr, err)
		}
		v.listeners = append(v.listeners, l)
	}
	refused := func(from net.Addr, err error) {
		s.log.Info().Err(err).Stringer("from", from).Msg("a stranger at the API is refused")
	}
	v.grpc = grpc.NewServer(grpc.UnaryInterceptor(v.unary), grpc.StreamInterceptor(v.stream),
		grpc.Creds(newAPICredentials(s.keys, &v.access, refused)), grpc.ConnectionTimeout(handshakePatience),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	api.RegisterCellvisorServer(v.grpc, v)
	reflection.Register(v.grpc)
	return v, nil
}

// listenUnix listens on a socket that only its owner may use. A socket that a dead server left behind is replaced, a live one is not.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("API socket %s is in use by another server", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("API socket: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	// The socket is made with its final permissions: between listen and chmod anyone could connect.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("API socket %s: %w", path, err)
	}
	return l, nil
}

func (v *service) serve() {
	for _, l := range v.listeners {
		v.tasks.Add(1)
		go func() {
			defer v.tasks.Done()
			if err := v.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				v.s.log.Error().Err(err).Str("addr", l.Addr().String()).Msg("the API stopped listening")
			}
		}()
	}
}

// Close lets calls in progress end for a moment, then breaks them off. It may be called twice.
func (v *service) Close() {
	v.mu.Lock()
	closed := v.closed
	v.closed = true
	for _, c := range v.peers {
		c.Close()
	}
	v.mu.Unlock()
	if closed {
		return
	}
	close(v.quit)
	if v.grpc != nil {
		timer := time.AfterFunc(closeGrace, v.grpc.Stop)
		v.grpc.GracefulStop()
		timer.Stop()
	}
	for _, l := range v.listeners {
		l.Close()
	}
	v.tasks.Wait()
}

// unary admits a call, counts it and turns a panic into an error: whatever a client sends must not end the server.
func (v *service) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	v.calls.Add(1)
	defer v.recover(info.FullMethod, &err)
	ctx, who, err := v.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if access[path.Base(info.FullMethod)] != mayAct || v.s.faults.says(req) {
		return handle(ctx, req)
	}
	seq, err := v.s.audit.begin(who, info.FullMethod, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = v.s.audit.end(seq, err) }() // what was done is done, recorded or not
	err = errUnfinished                            // in case it panics
	resp, err = handle(ctx, req)
	return resp, err
}

var errUnfinished = status.Error(codes.Internal, "it did not end in good order")

func (v *service) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	v.calls.Add(1)
	defer v.recover(info.FullMethod, &err)
	ctx, who, err := v.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if access[path.Base(info.FullMethod)] != mayAct {
		return handle(srv, admittedStream{ss, ctx})
	}
	recorded := &recordedStream{ServerStream: admittedStream{ss, ctx}, a: v.s.audit, who: who, method: info.FullMethod}
	defer func() { recorded.done(err) }()
	err = errUnfinished // in case it panics
	err = handle(srv, recorded)
	return err
}

// admittedStream is a stream whose context says who makes the call.
type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s admittedStream) Context() context.Context { return s.ctx }

func (v *service) recover(method string, err *error) {
	if r := recover(); r != nil {
		v.panics.Add(1)
		v.s.log.Error().Str("method", method).Interface("panic", r).Bytes("stack", debug.Stack()).Msg("a call of the API panicked")
		*err = status.Errorf(codes.Internal, "%s failed in the server: see its log", method)
	}
}

// forwarded tells whether a call comes from another server, which must not be sent on again.
func forwarded(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(forwardedKey)) > 0
}

// forward marks a call to another server as coming from this one, in the name of whoever made it here.
func (v *service) forward(ctx context.Context) context.Context {
	v.forwards.Add(1)
	return metadata.AppendToOutgoingContext(ctx, forwardedKey, string(v.s.cfg.Name), behalfKey, callerOf(ctx).name)
}

// vm finds a VM by name in the newest snapshot. Before it says that there is none it makes sure that the snapshot is not merely late: the
// VM may have been created through another server a moment ago.
func (v *service) vm(ctx context.Context, name string) (*snapshot, *cells.VM, error) {
	snap := v.s.board.now()
	vm := snap.state.VMNamed(name)
	// A server that just started, or fell behind, may know an older VM of that name, which has ended.
	if vm == nil || !vm.State.Active() || snap.status.LeaseUntil == 0 {
		v.catchUp(ctx)
		snap = v.s.board.now()
		vm = snap.state.VMNamed(name)
	}
	if vm == nil {
		return snap, nil, noVM(name)
	}
	return snap, vm, nil
}

// vmToFollow is vm for those who are told of its end: a server that just started and has not heard what was agreed on meanwhile sends them elsewhere.
func (v *service) vmToFollow(ctx context.Context, name string) (*snapshot, *cells.VM, error) {
	snap, vm, err := v.vm(ctx, name)
	if v.s.board.now().status.LeaseUntil == 0 {
		return nil, nil, status.Errorf(codes.Unavailable, "server %s has just started and does not know yet what became of VM %s: ask again", v.s.cfg.Name, name)
	}
	return snap, vm, err
}

// catchUp returns when this server has applied all that was agreed on before the call, or when it cannot within a moment. A lease is granted
// only after what was agreed on when it was asked for has been applied, so a lease that was asked for since tells.
func (v *service) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUpPatience)
	defer cancel()
	fresh := bootMicros() + v.s.timing().LeaseLength
	poll := time.NewTicker(catchUpPoll)
	defer poll.Stop()
	for v.s.board.now().status.LeaseUntil < fresh {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		case <-v.quit:
			return
		}
	}
}

func noVM(name string) error {
	if f := cells.CheckName("vm", name); f != nil {
		return status.Error(codes.InvalidArgument, f.Text)
	}
	return status.Errorf(codes.NotFound, "no VM is called %q: `cellvisor vm ls` lists those there are", name)
}
