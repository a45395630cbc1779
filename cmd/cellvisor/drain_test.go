package main

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
)

// How an operation ended is the exit code: 4 only if it was its deadline that ended it.
func TestOperationExitCodes(t *testing.T) {
	at := func(s int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(s, 0)) }
	for _, c := range []struct {
		name string
		op   *api.Operation
		want int
	}{
		{"done", &api.Operation{State: api.OperationState_OPERATION_STATE_DONE, EndedAt: at(5), DeadlineAt: at(9)}, api.ExitOK},
		{"failed without a deadline", &api.Operation{State: api.OperationState_OPERATION_STATE_FAILED, EndedAt: at(5)}, api.ExitError},
		{"failed before its deadline", &api.Operation{State: api.OperationState_OPERATION_STATE_FAILED, EndedAt: at(5), DeadlineAt: at(9)}, api.ExitError},
		{"failed at its deadline", &api.Operation{State: api.OperationState_OPERATION_STATE_FAILED, EndedAt: at(9), DeadlineAt: at(9)}, api.ExitDeadline},
		{"cancelled", &api.Operation{State: api.OperationState_OPERATION_STATE_CANCELLED, EndedAt: at(9), DeadlineAt: at(9)}, api.ExitError},
	} {
		if got := api.ExitCode(opError(c.op)); got != c.want {
			t.Errorf("%s: exit code %d, want %d", c.name, got, c.want)
		}
	}
}
