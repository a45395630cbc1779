package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// drained is an operation that took servers out of use, as the journal keeps it.
type drained struct {
	Names []string `json:"names"`
	Op    uint64   `json:"op"`
}

// operationPatience is how long drain and restore wait unless told otherwise.
const operationPatience = time.Minute

// split sorts names into those of cells and those of servers, as an operation wants them.
func (r *run) split(names []string) (cells, servers []string) {
	for _, n := range names {
		if slices.Contains(r.cells(), n) {
			cells = append(cells, n)
		} else {
			servers = append(servers, n)
		}
	}
	return cells, servers
}

func doDrain(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	wait, within := true, starlark.Value(starlark.None)
	names, _, err := r.targets(c, "wait?", &wait, "within?", &within)
	if err != nil {
		return nil, err
	}
	// In the journal before it begins: what is cordoned is opened again whoever dies.
	if err := r.journal.addDrain(names); err != nil {
		return nil, err
	}
	op, err := r.operate(api.OperationKind_OPERATION_KIND_DRAIN, names, "")
	if err != nil {
		return nil, err
	}
	if err := r.journal.setDrain(names, op.GetId()); err != nil {
		return nil, err
	}
	return r.follow(t, op, "drain of "+strings.Join(names, ", "), wait, within)
}

func doRestore(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	wait, within, back := true, starlark.Value(starlark.None), "none"
	names, _, err := r.targets(c, "back?", &back, "wait?", &wait, "within?", &within)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]string{"none", "original", "balance"}, back) {
		return nil, fmt.Errorf("restore(back=%q): none, original or balance", back)
	}
	op, err := r.operate(api.OperationKind_OPERATION_KIND_RESTORE, names, back)
	if err != nil {
		return nil, err
	}
	v, err := r.follow(t, op, "restore of "+strings.Join(names, ", "), wait, within)
	if err == nil && wait {
		err = r.journal.dropDrain(names)
	}
	return v, err
}

// operate starts an operation on servers and cells.
func (r *run) operate(kind api.OperationKind, names []string, back string) (*api.Operation, error) {
	req := &api.StartOperationRequest{Kind: kind, Return: back, Reason: "drill " + r.prog.Name, By: "drill"}
	req.Cells, req.Servers = r.split(names)
	r.step("start", "%s of %s", kind.Word(), strings.Join(names, ", "))
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	op, err := r.cluster.Operate(ctx, req)
	r.acted = r.clock.Now()
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %s", kind.Word(), strings.Join(names, ", "), api.Message(err))
	}
	return op, nil
}

// follow waits until an operation is done.
func (r *run) follow(t *starlark.Thread, op *api.Operation, what string, wait bool, within starlark.Value) (starlark.Value, error) {
	if !wait {
		return nil, nil
	}
	limit, err := r.within(within, operationPatience)
	if err != nil {
		return nil, err
	}
	r.obs.watchOperation(op.GetId())
	r.acted = r.clock.Now()
	done := &condition{name: what + " is done", eval: func(r *run) (bool, string, error) {
		now := r.view.operations[op.GetId()]
		if now == nil {
			return false, "the operation could not be looked at", nil
		}
		switch now.GetState() {
		case api.OperationState_OPERATION_STATE_FAILED, api.OperationState_OPERATION_STATE_CANCELLED:
			return false, "", failedError{fmt.Sprintf("%s %s: %s", what, now.GetState().Word(), now.GetNote())}
		}
		text := fmt.Sprintf("it is %s", now.GetState().Word())
		if note := now.GetNote(); note != "" {
			text += ": " + note
		}
		return now.GetState() == api.OperationState_OPERATION_STATE_DONE, text, nil
	}}
	return nil, r.demand(t, done, "", limit)
}

// safeToStop holds when nothing depends on a server or cell.
func (r *run) safeToStop(name string) *condition {
	r.obs.watchDependents(name)
	r.acted = r.clock.Now() // looks before this one did not ask
	return &condition{name: name + " is safe to stop", eval: func(r *run) (bool, string, error) {
		list, looked := r.view.dependents[name]
		if !looked {
			return false, "it could not be asked", nil
		}
		return len(list) == 0, strings.Join(list, "; "), nil
	}}
}

// undrain opens again what a drill has drained and not restored.
func undrain(ctx context.Context, clock Clock, c Cluster, j *journal, cells []string, h *Healing) error {
	for _, d := range j.Drained {
		if d.Op != 0 {
			_ = c.Cancel(ctx, d.Op) // it has ended, most of the time
		}
		req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_RESTORE, Return: "none", Reason: "a drill is healed", By: "drill"}
		for _, n := range d.Names {
			if slices.Contains(cells, n) {
				req.Cells = append(req.Cells, n)
			} else {
				req.Servers = append(req.Servers, n)
			}
		}
		op, err := c.Operate(ctx, req)
		for deadline := clock.Now().Add(30 * time.Second); err == nil && op.GetState() != api.OperationState_OPERATION_STATE_DONE; {
			if clock.Now().After(deadline) {
				err = errors.New("it is " + op.GetState().Word() + ": " + op.GetNote())
				break
			}
			if err = clock.Pause(ctx, 50*time.Millisecond, nil); err == nil {
				op, err = c.Operation(ctx, op.GetId())
			}
		}
		if err != nil {
			return fmt.Errorf("opening %s again: %w", strings.Join(d.Names, ", "), err)
		}
		h.Actions = append(h.Actions, "opened "+strings.Join(d.Names, ", ")+" again")
	}
	return nil
}

func doSafeToStop(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var name string
	if err := c.unpack("name", &name); err != nil {
		return nil, err
	}
	if _, err := r.serversOf(name); err != nil {
		return nil, err
	}
	return r.safeToStop(name), nil
}
