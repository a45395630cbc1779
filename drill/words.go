package drill

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/payload"
)

var vmNamePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// vmArgs are the arguments of vm().
type vmArgs struct {
	name, payload, args, protect, onLoss string
	vcpus, memoryMiB                     int
	span                                 *starlark.List
	checkpoint, within                   starlark.Value
	crashLimit                           int
	wait                                 bool
}

func doVM(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	a := vmArgs{payload: "count", args: "0 100", protect: "none", onLoss: "stop", vcpus: 1, memoryMiB: 64, crashLimit: 3, wait: true}
	err := c.unpack("name", &a.name, "payload?", &a.payload, "args?", &a.args, "vcpus?", &a.vcpus, "memory?", &a.memoryMiB, "span?", &a.span,
		"protect?", &a.protect, "on_loss?", &a.onLoss, "checkpoint?", &a.checkpoint, "crash_limit?", &a.crashLimit, "wait?", &a.wait, "within?", &a.within)
	if err != nil {
		return nil, err
	}
	if a.payload != "count" && a.args == "0 100" {
		a.args = ""
	}
	spec, err := a.spec()
	if err != nil {
		return nil, err
	}
	limit, err := r.within(a.within, defaultWithin)
	if err != nil {
		return nil, err
	}
	if err := r.create(spec, limit); err != nil {
		return nil, err
	}
	r.followers[a.name] = follow(r.ctx, r.clock, r.cluster, a.name)
	r.order = append(r.order, a.name)
	r.acted = r.clock.Now()
	if a.wait {
		err = r.awaitStart(a.name, limit)
	}
	return &vmValue{run: r, name: a.name}, err
}

// spec checks what a drill can get wrong; what only the cluster knows is the cluster's to refuse.
func (a *vmArgs) spec() (*api.VMSpec, error) {
	switch {
	case !vmNamePattern.MatchString(a.name):
		return nil, fmt.Errorf("VM name %q must be 1 to 63 of a-z, 0-9 and '-', beginning with a letter", a.name)
	case a.vcpus < 1 || a.vcpus > 1024:
		return nil, fmt.Errorf("vcpus = %d must be from 1 to 1024", a.vcpus)
	case a.memoryMiB < 1 || a.memoryMiB > 1<<20:
		return nil, fmt.Errorf("memory = %d is in MiB, and must be from 1 to %d", a.memoryMiB, 1<<20)
	case a.onLoss != "stop" && a.onLoss != "touch":
		return nil, fmt.Errorf("on_loss = %q must be stop or touch", a.onLoss)
	}
	if a.crashLimit < 0 || a.crashLimit > 1000 {
		return nil, fmt.Errorf("crash_limit = %d must be from 0, no limit, to 1000", a.crashLimit)
	}
	limit := uint32(a.crashLimit)
	if _, err := payload.Open(a.payload); err != nil {
		return nil, err
	}
	spec := &api.VMSpec{
		Name: a.name, Payload: &api.VMSpec_Builtin{Builtin: a.payload}, Args: a.args, Vcpus: uint32(a.vcpus),
		MemoryBytes: uint64(a.memoryMiB) << 20, CrashLimit: &limit, OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: a.protect,
	}
	if a.onLoss == "touch" {
		spec.OnLoss = api.OnLoss_ON_LOSS_TOUCH
	}
	if a.span != nil {
		for i := range a.span.Len() {
			cell, ok := starlark.AsString(a.span.Index(i))
			if !ok {
				return nil, fmt.Errorf("span: %s is no cell's name", a.span.Index(i))
			}
			spec.Span = append(spec.Span, cell)
		}
	}
	if a.checkpoint != nil {
		d, err := duration(a.checkpoint)
		if err != nil {
			return nil, err
		}
		spec.CheckpointMs = uint32(d.Milliseconds())
	}
	return spec, nil
}

// create journals the VM and registers it.
func (r *run) create(spec *api.VMSpec, limit time.Duration) error {
	if err := r.journal.addVM(spec.GetName()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	v, err := r.cluster.Run(ctx, spec)
	if err != nil {
		switch status.Code(err) {
		case codes.AlreadyExists, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.ResourceExhausted:
			_ = r.journal.dropVM(spec.GetName())
		}
		return fmt.Errorf("starting VM %s: %s", spec.GetName(), api.Message(err))
	}
	r.step("start", "VM %s: %s, %d vCPUs, span %s, protect %s", spec.GetName(), spec.GetBuiltin(), spec.GetVcpus(), orDash(strings.Join(spec.GetSpan(), ",")), orDash(spec.GetProtect()))
	return r.journal.setID(spec.GetName(), v.GetId())
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (r *run) awaitStart(name string, limit time.Duration) error {
	var bad string
	out, err := r.until(r.clock.Now().Add(limit), func() (bool, string, error) {
		v := r.view.vm(name)
		switch v.GetState() {
		case api.VMState_VM_STATE_LOST, api.VMState_VM_STATE_FAILED, api.VMState_VM_STATE_STOPPED:
			bad = describeVM(v, name)
			return true, "", nil
		}
		return v != nil && v.GetState() != api.VMState_VM_STATE_STARTING, describeVM(v, name), nil
	})
	switch {
	case err != nil:
		return err
	case bad != "":
		return fmt.Errorf("VM %s did not start: %s", name, bad)
	case !out.ok:
		return fmt.Errorf("VM %s did not start within %v: %s", name, limit, out.instead)
	}
	return nil
}

func doOutput(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm starlark.Value
	if err := c.unpack("vm", &vm); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	var out []starlark.Value
	for _, n := range r.followers[name].kept() {
		out = append(out, starlark.MakeUint64(uint64(n)))
	}
	return starlark.NewList(out), nil
}

// onVM makes the word for a condition on one VM.
func onVM(make func(*run, string) *condition) func(*run, *starlark.Thread, call) (starlark.Value, error) {
	return func(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
		var vm starlark.Value
		if err := c.unpack("vm", &vm); err != nil {
			return nil, err
		}
		name, err := r.vmName(vm)
		if err != nil {
			return nil, err
		}
		return make(r, name), nil
	}
}

var states = []string{"starting", "running", "stopped", "exited", "lost", "failed"}

func doState(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm starlark.Value
	var state string
	if err := c.unpack("vm", &vm, "state", &state); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(states, state) {
		return nil, fmt.Errorf("state %q is none of %s", state, strings.Join(states, ", "))
	}
	return stateIs(name, state), nil
}

func doRecovered(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm starlark.Value
	times := 1
	if err := c.unpack("vm", &vm, "times?", &times); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	return recovered(name, uint64(max(times, 0))), nil
}

// defaultStall is how long a counting VM may be silent: far longer than any recovery, shorter than a stuck one.
const defaultStall = 30 * time.Second

func doCounting(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm, stall starlark.Value
	if err := c.unpack("vm", &vm, "stall?", &stall); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	limit, err := r.within(stall, defaultStall)
	if err != nil {
		return nil, err
	}
	return r.counting(name, limit), nil
}

func doGrows(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm starlark.Value
	by := 1
	if err := c.unpack("vm", &vm, "by?", &by); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	return r.grows(name, uint64(max(by, 1))), nil
}

func onName(state string) func(*run, *starlark.Thread, call) (starlark.Value, error) {
	want := api.ServerState_SERVER_STATE_LIVE
	if state == "dead" {
		want = api.ServerState_SERVER_STATE_DEAD
	}
	return func(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
		var name string
		if err := c.unpack("name", &name); err != nil {
			return nil, err
		}
		if _, err := r.serversOf(name); err != nil {
			return nil, err
		}
		return membership(name, want), nil
	}
}

func doNegate(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	var v starlark.Value
	if err := c.unpack("condition", &v); err != nil {
		return nil, err
	}
	cond, err := r.toCondition(t, v)
	if err != nil {
		return nil, err
	}
	return negated(cond), nil
}
