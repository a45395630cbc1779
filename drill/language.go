package drill

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// word is one word of the language beyond Starlark's own.
type word struct {
	params   []string
	variadic bool // takes any number of names in front
	do       func(r *run, t *starlark.Thread, c call) (starlark.Value, error)
}

// call is the arguments of one call.
type call struct {
	name   string
	args   starlark.Tuple
	kwargs []starlark.Tuple
}

func (c call) unpack(pairs ...any) error {
	return starlark.UnpackArgs(c.name, c.args, c.kwargs, pairs...)
}

const runKey = "run"

// vocabulary is what a drill can say. docs/drills.md explains each word; a test compares the two.
var vocabulary map[string]word

func init() {
	vocabulary = map[string]word{
		"vm":      {params: []string{"name", "payload", "args", "vcpus", "memory", "span", "protect", "on_loss", "checkpoint", "crash_limit", "wait", "within"}, do: doVM},
		"wait":    {params: []string{"vm", "state", "protection", "within"}, do: doWait},
		"sleep":   {params: []string{"time"}, do: doSleep},
		"log":     {params: []string{"text"}, do: doLog},
		"output":  {params: []string{"vm"}, do: doOutput},
		"cluster": {params: []string{}, do: func(r *run, _ *starlark.Thread, c call) (starlark.Value, error) { return clusterValue{r}, c.unpack() }},
		"choice":  {params: []string{"list"}, do: doChoice},
		"randint": {params: []string{"low", "high"}, do: doRandint},

		"kill":         {params: []string{"only"}, variadic: true, do: doKill},
		"stop_process": {params: []string{}, variadic: true, do: doStopProcess},
		"cont":         {params: []string{"wait", "within"}, variadic: true, do: doCont},
		"restart":      {params: []string{"wait", "within"}, variadic: true, do: doRestart},
		"kill_worker":  {params: []string{"vm", "server"}, do: doKillWorker},

		"cut":         {params: []string{"a", "b"}, do: doCut},
		"delay":       {params: []string{"a", "b", "time", "jitter"}, do: doDelay},
		"loss":        {params: []string{"a", "b", "permille"}, do: doLoss},
		"disk_full":   {params: []string{}, variadic: true, do: doDisk(api.FaultKind_FAULT_KIND_DISK_FULL, "no space is left on the disk of ")},
		"disk_error":  {params: []string{}, variadic: true, do: doDisk(api.FaultKind_FAULT_KIND_DISK_ERROR, "input/output errors on the disk of ")},
		"wedge_rpc":   {params: []string{"name", "time"}, do: doWedge},
		"panic_guest": {params: []string{"vm"}, do: doPanicGuest},
		"mend":        {params: []string{"a", "b", "wait", "within"}, do: doMend},
		"drain":       {params: []string{"wait", "within"}, variadic: true, do: doDrain},
		"restore":     {params: []string{"back", "wait", "within"}, variadic: true, do: doRestore},

		"expect":   {params: []string{"condition", "within", "name"}, do: doExpect},
		"steady":   {params: []string{"condition", "name"}, do: func(r *run, t *starlark.Thread, c call) (starlark.Value, error) { return r.doWatch(t, c, false) }},
		"abort_if": {params: []string{"condition", "name"}, do: func(r *run, t *starlark.Thread, c call) (starlark.Value, error) { return r.doWatch(t, c, true) }},

		"running":      {params: []string{"vm"}, do: onVM(func(_ *run, vm string) *condition { return stateIs(vm, "running") })},
		"safe":         {params: []string{"vm"}, do: onVM(func(_ *run, vm string) *condition { return protectionIs(vm, "safe") })},
		"state":        {params: []string{"vm", "state"}, do: doState},
		"recovered":    {params: []string{"vm", "times"}, do: doRecovered},
		"counting":     {params: []string{"vm", "stall"}, do: doCounting},
		"grows":        {params: []string{"vm", "by"}, do: doGrows},
		"live":         {params: []string{"name"}, do: onName("live")},
		"dead":         {params: []string{"name"}, do: onName("dead")},
		"safe_to_stop": {params: []string{"name"}, do: doSafeToStop},
		"quorum":       {params: []string{}, do: func(_ *run, _ *starlark.Thread, c call) (starlark.Value, error) { return quorate(true), c.unpack() }},
		"no_quorum":    {params: []string{}, do: func(_ *run, _ *starlark.Thread, c call) (starlark.Value, error) { return quorate(false), c.unpack() }},
		"negate":       {params: []string{"condition"}, do: doNegate},
	}
}

// Words lists the language's own words, sorted.
func Words() (out []string) {
	for name := range vocabulary {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// predeclared gives each word to Starlark. A word finds its run through the thread, so a Program can be run more than once.
func predeclared() starlark.StringDict {
	out := make(starlark.StringDict, len(vocabulary)+2)
	out["range"] = starlark.NewBuiltin("range", boundedRange)
	out[timesWord] = starlark.NewBuiltin(timesWord, boundedTimes)
	for name, w := range vocabulary {
		out[name] = starlark.NewBuiltin(name, func(t *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			r, ok := t.Local(runKey).(*run)
			if !ok {
				return nil, fmt.Errorf("%s() works within drill() only: outside of it nothing is reached", b.Name())
			}
			v, err := w.do(r, t, call{b.Name(), args, kwargs})
			if v == nil && err == nil {
				v = starlark.None
			}
			return v, err
		})
	}
	return out
}

// within reads a deadline argument, stretched by the run's patience.
func (r *run) within(v starlark.Value, otherwise time.Duration) (time.Duration, error) {
	d := otherwise
	if v != nil && v != starlark.None {
		var err error
		if d, err = duration(v); err != nil {
			return 0, err
		}
	}
	return d * time.Duration(r.opt.Patience), nil
}

// defaultWithin is how long wait, cont and restart wait unless told otherwise.
const defaultWithin = 30 * time.Second

func doWait(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	var vm, within starlark.Value
	var state, protection string
	if err := c.unpack("vm", &vm, "state?", &state, "protection?", &protection, "within?", &within); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	limit, err := r.within(within, defaultWithin)
	if err != nil {
		return nil, err
	}
	switch {
	case (state == "") == (protection == ""):
		return nil, errors.New("wait() needs a state or a protection to wait for")
	case state != "":
		return nil, r.demand(t, stateIs(name, state), "", limit)
	}
	return nil, r.demand(t, protectionIs(name, protection), "", limit)
}

// demand waits until the condition holds and notes the outcome; when it does not in time the drill has failed.
func (r *run) demand(t *starlark.Thread, cond *condition, name string, within time.Duration) error {
	if name == "" {
		name = cond.name
	}
	at, _ := r.where(t)
	began := r.clock.Now()
	out, err := r.until(began.Add(within), func() (bool, string, error) { return cond.eval(r) })
	line := Expectation{AtMs: r.since(began), Name: name, OK: out.ok, TookMs: out.took.Milliseconds(), WithinMs: within.Milliseconds(), Where: at}
	if out.ok {
		r.report.Expectations = append(r.report.Expectations, line)
		r.step("expect", "%s: after %d ms", name, line.TookMs)
		return nil
	}
	line.Instead = out.instead
	if err != nil {
		line.Instead = "not known: the drill ended while it waited"
	}
	line.TookMs = r.clock.Now().Sub(began).Milliseconds()
	r.report.Expectations = append(r.report.Expectations, line)
	if err != nil {
		return err
	}
	return failedError{fmt.Sprintf("expected within %v: %s; instead: %s", within, name, out.instead)}
}

func doExpect(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	var v, within starlark.Value
	var name string
	if err := c.unpack("condition", &v, "within?", &within, "name?", &name); err != nil {
		return nil, err
	}
	cond, err := r.toCondition(t, v)
	if err != nil {
		return nil, err
	}
	limit, err := r.within(within, 0)
	if err != nil {
		return nil, err
	}
	return nil, r.demand(t, cond, name, limit)
}

// doWatch is steady and abort_if: the condition is checked now, and from now on whenever the drill waits.
func (r *run) doWatch(t *starlark.Thread, c call, abort bool) (starlark.Value, error) {
	var v starlark.Value
	var name string
	if err := c.unpack("condition", &v, "name?", &name); err != nil {
		return nil, err
	}
	cond, err := r.toCondition(t, v)
	if err != nil {
		return nil, err
	}
	if name != "" {
		cond = &condition{name: name, eval: cond.eval}
	}
	at, _ := r.where(t)
	r.watched = append(r.watched, &watched{cond: cond, abort: abort, report: len(r.report.Invariants)})
	shown := cond.name
	if abort {
		shown = "never: " + shown
	}
	r.report.Invariants = append(r.report.Invariants, Invariant{FromMs: r.since(r.clock.Now()), Name: shown, OK: true, Where: at})
	_, err = r.see()
	return nil, err
}

func doSleep(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var v starlark.Value
	if err := c.unpack("time", &v); err != nil {
		return nil, err
	}
	d, err := duration(v)
	if err != nil {
		return nil, err
	}
	until := r.clock.Now().Add(d)
	_, err = r.until(until, func() (bool, string, error) { return !r.clock.Now().Before(until), "", nil })
	return nil, err
}

func doLog(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var v starlark.Value
	if err := c.unpack("text", &v); err != nil {
		return nil, err
	}
	text, ok := starlark.AsString(v)
	if !ok {
		text = v.String()
	}
	r.step("log", "%s", text)
	return nil, nil
}

func doChoice(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var list *starlark.List
	if err := c.unpack("list", &list); err != nil {
		return nil, err
	}
	if list.Len() == 0 {
		return nil, errors.New("choice() of an empty list")
	}
	v := list.Index(r.rng.IntN(list.Len()))
	r.step("log", "chose %s", v)
	return v, nil
}

func doRandint(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var low, high int
	if err := c.unpack("low", &low, "high", &high); err != nil {
		return nil, err
	}
	if high < low {
		return nil, fmt.Errorf("randint(%d, %d): there is no number between", low, high)
	}
	return starlark.MakeInt(low + r.rng.IntN(high-low+1)), nil
}
