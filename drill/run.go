package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// Options say how a drill is run.
type Options struct {
	Seed     uint64 // of the drill's choices
	Patience int    // factor on all its deadlines, for slow machines; 0 means 1
	Step     func(Step)
	Clock    Clock  // nil: the time outside
	Replay   string // the command that runs the drill again; "": the one for a real cluster
}

// run is one drill in progress. All of it belongs to the goroutine that called Run, save what the observer and the followers protect.
type run struct {
	ctx      context.Context
	prog     *Program
	cluster  Cluster
	host     Host
	clock    Clock
	opt      Options
	thread   *starlark.Thread
	rng      *rand.Rand
	start    time.Time
	report   *Report
	journal  *journal
	obs      *observer
	injector *injector

	followers map[string]*follower // by VM
	order     []string             // the VMs, as they were started
	watched   []*watched
	acted     time.Time // the last injection: what was seen before it says nothing
	view      *snapshot // while conditions are evaluated: what they look at
	lastEvent uint64    // log index of the newest event before the start
}

// The ways in which a drill ends early. Anything else is an error of the drill itself.
type (
	failedError  struct{ text string }
	abortedError struct{ text string }
)

func (e failedError) Error() string  { return e.text }
func (e abortedError) Error() string { return e.text }

// Run runs a drill and heals what it broke. It returns an error, and no report, only if the drill never began.
func Run(ctx context.Context, p *Program, c Cluster, h Host, opt Options) (*Report, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the followers
	defer cancel()
	r := newRun(ctx, p, c, h, opt)
	if err := r.fits(); err != nil {
		return nil, err
	}
	if err := r.allowed(); err != nil {
		return nil, err
	}
	var err error
	if r.journal, err = openJournal(h, p.Name, r.start); err != nil {
		return nil, err
	}
	if err = r.settle(); err == nil {
		err = r.act()
	}
	r.conclude(err)
	return r.report, nil
}

func newRun(ctx context.Context, p *Program, c Cluster, h Host, opt Options) *run {
	opt.Patience = max(opt.Patience, 1)
	if opt.Replay == "" {
		opt.Replay = fmt.Sprintf("cellvisor drill run %s --seed %d", p.file, opt.Seed)
	}
	if opt.Step == nil {
		opt.Step = func(Step) {}
	}
	if opt.Clock == nil {
		opt.Clock = wallClock{}
	}
	r := &run{
		ctx: ctx, prog: p, cluster: c, host: h, clock: opt.Clock, opt: opt, start: opt.Clock.Now(),
		rng: rand.New(rand.NewPCG(opt.Seed, 1)), followers: make(map[string]*follower),
	}
	r.obs, r.injector = newObserver(c, r.clock), newInjector(c, opt.Seed)
	r.report = &Report{
		Drill: p.Name, About: p.About, Seed: opt.Seed, Replay: opt.Replay, StartedAt: r.start.UTC(), Cells: r.cells(),
		Steps: []Step{}, Expectations: []Expectation{}, Invariants: []Invariant{}, Recoveries: []Recovery{}, Lost: []LostVM{}, Outputs: []Output{},
	}
	for _, s := range h.Servers() {
		r.report.Servers = append(r.report.Servers, s.Name)
	}
	return r
}

// cells returns the names of the cells that the host knows, sorted.
func (r *run) cells() []string { return cellsOf(r.host) }

func cellsOf(h Host) (out []string) {
	for _, s := range h.Servers() {
		if s.Cell != "" && !slices.Contains(out, s.Cell) {
			out = append(out, s.Cell)
		}
	}
	slices.Sort(out)
	return out
}

// fits tells whether the cluster is large enough for the drill.
func (r *run) fits() error {
	perCell := make(map[string]int)
	for _, s := range r.host.Servers() {
		perCell[s.Cell]++
	}
	enough := 0
	for _, cell := range r.cells() {
		if perCell[cell] >= r.prog.Servers {
			enough++
		}
	}
	if enough < r.prog.Cells {
		return fmt.Errorf("drill %s needs %d cells of %d servers, this cluster has %d such cells: --up gives it a cluster of its own", r.prog.Name, r.prog.Cells, r.prog.Servers, enough)
	}
	return nil
}

// settle waits until the cluster is whole: a drill that begins on a broken cluster measures something else.
func (r *run) settle() error {
	if err := awaitWhole(r.ctx, r.clock, time.Duration(r.opt.Patience)*10*time.Second, r.cluster, r.host); err != nil {
		return fmt.Errorf("a drill begins on a healthy cluster: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, 10*time.Second)
	defer cancel()
	events, err := r.cluster.Events(ctx)
	if n := len(events); n > 0 {
		r.lastEvent = events[n-1].GetLogIndex()
	}
	return err
}

// act calls the drill's own code and then looks at the invariants a last time.
func (r *run) act() error {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	if !r.clock.Stepped() {
		go r.obs.run(ctx)
		var renewing sync.WaitGroup
		renewing.Go(func() { r.injector.run(ctx) })
		defer renewing.Wait()
		defer cancel()
	}
	r.thread = &starlark.Thread{Name: r.prog.Name, Print: func(_ *starlark.Thread, msg string) { r.step("log", "%s", msg) }}
	r.thread.SetLocal(runKey, r)
	bound(r.thread)
	stop := context.AfterFunc(r.ctx, func() { r.thread.Cancel("interrupted") })
	defer stop()
	r.acted = r.clock.Now()
	_, err := starlark.Call(r.thread, r.prog.body, nil, nil)
	if err == nil {
		r.acted = r.clock.Now()
		_, err = r.until(r.acted, func() (bool, string, error) { return true, "", nil })
	}
	if r.ctx.Err() != nil {
		return abortedError{"interrupted"}
	}
	return err
}

// step notes and tells what the drill does.
func (r *run) step(kind, format string, args ...any) {
	s := Step{AtMs: r.since(r.clock.Now()), Kind: kind, Text: fmt.Sprintf(format, args...)}
	r.report.Steps = append(r.report.Steps, s)
	r.opt.Step(s)
}

func (r *run) since(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Sub(r.start).Milliseconds()
}

// see returns a snapshot that knows of the last injection; within a condition, the one that the condition looks at.
func (r *run) see() (*snapshot, error) {
	if r.view != nil {
		return r.view, nil
	}
	var out *snapshot
	_, err := r.until(r.clock.Now(), func() (bool, string, error) { out = r.view; return true, "", nil })
	return out, err
}

// outcome of until.
type outcome struct {
	ok      bool
	took    time.Duration
	instead string
}

// until evaluates hold again and again, invariants first, until it is true or the deadline passed; at least once, and only on what was seen
// after the last injection.
func (r *run) until(deadline time.Time, hold func() (bool, string, error)) (outcome, error) {
	began := r.clock.Now()
	limit := deadline
	if soonest := began.Add(10 * time.Second); limit.Before(soonest) {
		limit = soonest // for a first look
	}
	out, looked := outcome{instead: "the cluster could not be looked at"}, false
	for {
		next, s := r.glance()
		if r.clock.Stepped() || s.begun.After(r.acted) {
			looked = true
			ok, instead, err := r.evaluate(s, hold)
			out = outcome{ok: ok, took: r.clock.Now().Sub(began), instead: instead}
			if ok || err != nil {
				return out, err
			}
		}
		if now := r.clock.Now(); looked && now.After(deadline) || now.After(limit) {
			return out, nil
		}
		if err := r.clock.Pause(r.ctx, evaluatePause, next); err != nil {
			return out, failedError{err.Error()}
		}
		if r.ctx.Err() != nil {
			return out, abortedError{"interrupted"}
		}
	}
}

// evaluatePause is how often conditions are evaluated while nothing new is seen.
const evaluatePause = 20 * time.Millisecond

// glance returns the newest snapshot, and a channel that closes when there is a newer one. Where time is stepped it is taken now.
func (r *run) glance() (next <-chan struct{}, s *snapshot) {
	if r.clock.Stepped() && r.view == nil {
		r.obs.publish(r.obs.look(r.ctx))
		for _, name := range r.order {
			_ = r.followers[name].poll(r.ctx, r.cluster)
		}
	}
	return r.obs.next(), r.obs.now()
}

func (r *run) evaluate(s *snapshot, hold func() (bool, string, error)) (bool, string, error) {
	if r.view != nil {
		return false, "", errors.New("a condition must not wait or act: it only looks")
	}
	r.view = s
	defer func() { r.view = nil }()
	if err := r.checkWatched(); err != nil {
		return false, "", err
	}
	return hold()
}

// scene describes what the drill's VMs and servers are like now, for whoever expected something else.
func (r *run) scene(s *snapshot) string {
	var parts []string
	for _, name := range r.order {
		parts = append(parts, describeVM(s.vm(name), name))
	}
	for _, v := range s.servers {
		if v.GetState() != api.ServerState_SERVER_STATE_LIVE {
			parts = append(parts, fmt.Sprintf("server %s is %s", v.GetName(), v.GetState().Word()))
		}
	}
	if !s.quorum {
		parts = append(parts, "there is no quorum")
	}
	return strings.Join(append(parts, fmt.Sprintf("epoch %d", s.epoch)), "; ")
}

func describeVM(v *api.VM, name string) string {
	if v == nil {
		return fmt.Sprintf("VM %s is not there", name)
	}
	text := fmt.Sprintf("VM %s is %s", name, v.GetState().Word())
	if reason := v.GetReason(); reason != "" {
		text += " (" + reason + ")"
	}
	if v.GetState().Ended() {
		return text
	}
	if p := v.GetProtection(); p != "" && p != "none" {
		text += ", protection " + p
	}
	if n := v.GetRecoveries(); n > 0 {
		text += fmt.Sprintf(", recovered %d times", n)
	}
	return text + " on " + strings.Join(hosts(v, false), ", ")
}

// where names the line of the drill that called the builtin, with its text.
func (r *run) where(t *starlark.Thread) (at, text string) {
	pos := t.CallFrame(1).Pos
	return fmt.Sprintf("%s:%d", filepath.Base(pos.Filename()), pos.Line), r.prog.line(pos.Line)
}
