package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes of the program. Scripts depend on them.
const (
	ExitOK       = 0
	ExitError    = 1 // it did not work; the message says why
	ExitUsage    = 2 // the command line is wrong
	ExitBlocked  = 3 // refused as things stand: not enough slots or memory, the wrong state; the message has the numbers
	ExitDeadline = 4 // the deadline passed before it was done
	ExitDetached = 5 // watching ended, the operation goes on
	ExitNoQuorum = 6 // servers answer, but too few to agree
)

const (
	errorDomain    = "cellvisor"
	reasonNoQuorum = "NO_QUORUM"
)

// NoQuorum makes the error that a server returns when it lacks the contact with a quorum that the call needs.
func NoQuorum(format string, args ...any) error {
	st := status.Newf(codes.Unavailable, format, args...)
	with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reasonNoQuorum, Domain: errorDomain})
	if err != nil {
		return st.Err()
	}
	return with.Err()
}

// IsNoQuorum tells whether err, or one that it wraps, was made by NoQuorum.
func IsNoQuorum(err error) bool {
	st, ok := status.FromError(err)
	if !ok {
		return false
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == reasonNoQuorum && info.GetDomain() == errorDomain {
			return true
		}
	}
	return false
}

// WithPlan adds to the error of a dry run the steps that could be taken.
func WithPlan(err error, op *Operation) error {
	with, derr := status.Convert(err).WithDetails(op)
	if derr != nil {
		return err
	}
	return with.Err()
}

// PlanOf returns what WithPlan added, or nil.
func PlanOf(err error) *Operation {
	st, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, d := range st.Details() {
		if op, ok := d.(*Operation); ok {
			return op
		}
	}
	return nil
}

// Detached is returned when watching was interrupted and the operation goes on without the watcher.
type Detached struct{ Operation string }

// Error implements error.
func (d Detached) Error() string { return d.Operation + " goes on; only the watching ended" }

// ExitCode maps an error to the exit code of the program.
func ExitCode(err error) int {
	var det Detached
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &det):
		return ExitDetached
	case IsNoQuorum(err):
		return ExitNoQuorum
	case errors.Is(err, context.DeadlineExceeded):
		return ExitDeadline
	}
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.ResourceExhausted:
		return ExitBlocked
	case codes.DeadlineExceeded:
		return ExitDeadline
	}
	return ExitError
}

// Message returns the text of err for people, without the trimmings of gRPC.
func Message(err error) string {
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		var wrapped interface{ GRPCStatus() *status.Status }
		if errors.As(err, &wrapped) {
			if text := wrapped.GRPCStatus().Message(); text != "" {
				return text
			}
		}
		return st.Message()
	}
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	return fmt.Sprint(err)
}
