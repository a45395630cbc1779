package drill

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// condition is something that holds or not, with a name, and words for what is there instead. Conditions look at r.view only.
type condition struct {
	name string
	eval func(r *run) (ok bool, instead string, err error)
}

func (c *condition) String() string        { return c.name }
func (c *condition) Type() string          { return "condition" }
func (c *condition) Freeze()               {}
func (c *condition) Truth() starlark.Bool  { return true }
func (c *condition) Hash() (uint32, error) { return starlark.String(c.name).Hash() }

// toCondition accepts a condition or a function without parameters. A function without a name of its own is called by its line.
func (r *run) toCondition(t *starlark.Thread, v starlark.Value) (*condition, error) {
	switch v := v.(type) {
	case *condition:
		return v, nil
	case starlark.Callable:
		_, text := r.where(t)
		return &condition{name: text, eval: func(r *run) (bool, string, error) {
			got, err := starlark.Call(r.thread, v, nil, nil)
			if err != nil {
				return false, "", innermost(err)
			}
			instead := r.scene(r.view)
			if _, isBool := got.(starlark.Bool); !isBool {
				instead = fmt.Sprintf("it is %s; %s", got, instead)
			}
			return bool(got.Truth()), instead, nil
		}}, nil
	case starlark.Bool:
		return nil, fmt.Errorf("a condition is evaluated again and again: write `lambda: …` around the expression")
	}
	return nil, fmt.Errorf("%s is no condition: give a named one, as running(p), or a function, as lambda: p.state == \"running\"", v.Type())
}

// watched is an invariant that is checked whenever the drill waits.
type watched struct {
	cond   *condition
	abort  bool // abort_if: it must stay false
	report int  // index in report.Invariants
	last   *snapshot
}

// checkWatched evaluates all invariants on the present view.
func (r *run) checkWatched() error {
	for _, w := range r.watched {
		ok, instead, err := w.cond.eval(r)
		if err != nil {
			return err
		}
		line := &r.report.Invariants[w.report]
		if w.last != r.view {
			line.Checks++
			w.last = r.view
		}
		if ok != w.abort {
			continue
		}
		line.OK, line.BrokenMs, line.Instead = false, r.since(r.clock.Now()), instead
		if w.abort {
			return abortedError{fmt.Sprintf("abort_if %s: %s", w.cond.name, instead)}
		}
		return failedError{fmt.Sprintf("steady %s broke after %.1f s: %s", w.cond.name, float64(line.BrokenMs)/1000, instead)}
	}
	return nil
}

// vmName reads an argument that names a VM of this drill.
func (r *run) vmName(v starlark.Value) (string, error) {
	name, ok := starlark.AsString(v)
	if vm, is := v.(*vmValue); is {
		name, ok = vm.name, true
	}
	if !ok {
		return "", fmt.Errorf("%s is no VM", v.Type())
	}
	if r.followers[name] == nil {
		return "", fmt.Errorf("this drill has started no VM %q", name)
	}
	return name, nil
}

// vmCondition makes a condition on one VM as it is in the view.
func vmCondition(name, text string, hold func(*api.VM) bool) *condition {
	return &condition{name: text, eval: func(r *run) (bool, string, error) {
		v := r.view.vm(name)
		return v != nil && hold(v), describeVM(v, name), nil
	}}
}

func stateIs(name, state string) *condition {
	return vmCondition(name, fmt.Sprintf("VM %s is %s", name, state), func(v *api.VM) bool { return v.GetState().Word() == state })
}

func protectionIs(name, protection string) *condition {
	return vmCondition(name, fmt.Sprintf("VM %s's protection is %s", name, protection), func(v *api.VM) bool {
		return v.GetProtection() == protection && !v.GetState().Ended()
	})
}

func recovered(name string, times uint64) *condition {
	return vmCondition(name, fmt.Sprintf("VM %s went on from its replica", name), func(v *api.VM) bool {
		return v.GetRecoveries() >= times && v.GetState() == api.VMState_VM_STATE_RUNNING
	})
}

// counting: the output is 0, 1, 2, … without a gap, and goes on.
func (r *run) counting(name string, stall time.Duration) *condition {
	f := r.followers[name]
	return &condition{name: fmt.Sprintf("VM %s counts on without a gap", name), eval: func(r *run) (bool, string, error) {
		wrong, silent := f.counting()
		v := r.view.vm(name)
		switch {
		case wrong != "":
			return false, wrong, nil
		case v == nil || v.GetState() == api.VMState_VM_STATE_LOST || v.GetState() == api.VMState_VM_STATE_FAILED:
			return false, fmt.Sprintf("%s, after %d records", describeVM(v, name), f.length()), nil
		case !v.GetState().Ended() && silent > stall:
			return false, fmt.Sprintf("nothing came for %.1f s after record %d; %s", silent.Seconds(), f.length(), describeVM(v, name)), nil
		}
		return true, fmt.Sprintf("%d records, each in its turn", f.length()), nil
	}}
}

// grows: the output gets by records longer than it was when the condition was made.
func (r *run) grows(name string, by uint64) *condition {
	f := r.followers[name]
	from := f.length()
	return &condition{name: fmt.Sprintf("VM %s emits %d records more", name, by), eval: func(r *run) (bool, string, error) {
		n := f.length() - from
		return n >= by, fmt.Sprintf("%d came; %s", n, describeVM(r.view.vm(name), name)), nil
	}}
}

// live and dead: all servers of that name or cell are in the view, or none is.
func membership(name string, want api.ServerState) *condition {
	return &condition{name: name + " is " + want.Word(), eval: func(r *run) (bool, string, error) {
		var words []string
		list := r.view.members(name)
		ok := len(list) > 0 && r.view.reached
		for _, v := range list {
			ok = ok && v.GetState() == want
			words = append(words, fmt.Sprintf("server %s is %s", v.GetName(), v.GetState().Word()))
		}
		slices.Sort(words)
		return ok, strings.Join(words, ", "), nil
	}}
}

func quorate(want bool) *condition {
	name := "there is a quorum"
	if !want {
		name = "there is no quorum"
	}
	return &condition{name: name, eval: func(r *run) (bool, string, error) {
		has := r.view.reached && r.view.quorum
		instead := fmt.Sprintf("quorum: %t, %d servers known", has, len(r.view.servers))
		if r.view.err != nil {
			instead += ": " + api.Message(r.view.err)
		}
		return has == want, instead, nil
	}}
}

// negated holds when the other does not.
func negated(c *condition) *condition {
	return &condition{name: "not: " + c.name, eval: func(r *run) (bool, string, error) {
		ok, instead, err := c.eval(r)
		return !ok, instead, err
	}}
}
