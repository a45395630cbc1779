package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// proposePatience bounds a proposal whose caller has more time. It is long enough for an election, and shorter than clients wait.
const proposePatience = 5 * time.Second

// propose has a command agreed on and decodes its result into out (nil: not wanted). Its errors are gRPC statuses for operators.
func (s *Server) propose(ctx context.Context, cmd cells.Command, out any) error {
	patience := proposePatience
	if at, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(at)*9/10) // so that the text of the refusal arrives, not merely the caller's own deadline
	}
	id := s.proposals.Add(1)
	done := make(chan monitor.Response, 1)
	s.waiting.Store(id, done)
	defer s.waiting.Delete(id)
	ev := monitor.Propose{ID: id, Command: cmd, Deadline: bootMicros() + ident.Micros(patience.Microseconds())}
	select {
	case s.inbox <- ev:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-s.loopDone:
		return errStopping()
	}
	select {
	case r := <-done:
		return s.result(r, out)
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-s.loopDone:
		return errStopping()
	}
}

func errStopping() error { return status.Error(codes.Unavailable, "this server is stopping") }

// respond wakes the proposer. The loop calls it.
func (s *Server) respond(r monitor.Response) {
	if done, ok := s.waiting.LoadAndDelete(r.ID); ok {
		done.(chan monitor.Response) <- r // has room for the one response there is
	}
}

func (s *Server) result(r monitor.Response, out any) error {
	if r.Fault != nil {
		return faultStatus(r.Fault)
	}
	if out == nil || len(r.Result) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.Result, out); err != nil {
		return status.Errorf(codes.Internal, "the result of an agreed command cannot be read: %v", err)
	}
	return nil
}

// faultStatus turns why a command was refused into a status. The text is the FSM's own.
func faultStatus(f *cells.Fault) error {
	code := codes.Internal
	switch f.Code {
	case cells.CodeInvalid:
		code = codes.InvalidArgument
	case cells.CodeNotFound:
		code = codes.NotFound
	case cells.CodeExists:
		code = codes.AlreadyExists
	case cells.CodeNoCapacity:
		code = codes.ResourceExhausted
	case cells.CodeConflict:
		code = codes.FailedPrecondition
	case cells.CodeUnknown:
		code = codes.Unimplemented
	case cells.CodeNoQuorum:
		return api.NoQuorum("%s", f.Text)
	case cells.CodeDeadline:
		code = codes.DeadlineExceeded
	}
	return status.Error(code, f.Text)
}

// needQuorum refuses a call early that cannot succeed: without a lease this server neither decides nor knows the newest state.
func (s *Server) needQuorum() error {
	snap := s.board.now()
	if snap.leased(bootMicros()) {
		return nil
	}
	return api.NoQuorum("server %s has no contact with a quorum of the cluster (%s); `cellvisor server ls` shows which servers are live",
		s.cfg.Name, s.voterCount(snap))
}

func (s *Server) voterCount(snap *snapshot) string {
	n := len(snap.status.Voters)
	return fmt.Sprintf("%d voters, %d are needed", n, n/2+1)
}
