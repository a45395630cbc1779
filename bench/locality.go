package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/wire"
)

// LocalitySettings say how the locality benchmark runs.
type LocalitySettings struct {
	Rounds int `json:"rounds"` // in which each policy runs the whole mix once; the median of each figure counts
	Shifts int `json:"shifts"` // of who shares what, in one run
	Scale  int `json:"scale"`  // of each phase's work

	Servers int `json:"servers"` // each in a cell of its own
}

// Shape of what runs: one slot less than would let all vCPUs gather on one server.
const (
	localityVCPUs  = 3
	localitySlots  = 2
	localityMemory = 32 * ident.MiB
	localityLinger = 2500 * time.Millisecond // after the work, in which counters are read
)

// Check tells what is wrong with the settings.
func (s LocalitySettings) Check() error {
	switch {
	case s.Rounds < 1 || s.Rounds > 100:
		return fmt.Errorf("rounds must be from 1 to 100, not %d", s.Rounds)
	case s.Shifts < 1 || s.Shifts > 1000:
		return fmt.Errorf("shifts must be from 1 to 1000, not %d", s.Shifts)
	case s.Servers < 2 || s.Servers > 4:
		return fmt.Errorf("servers must be from 2 to 4, not %d", s.Servers)
	case s.Scale < 1 || s.Scale > 10000:
		return fmt.Errorf("scale must be from 1 to 10000, not %d", s.Scale)
	}
	return nil
}

// LocalityReport compares what is done about pages that other servers hold, over a mix of phases. Names of fields are an interface: see docs/json.md.
type LocalityReport struct {
	Benchmark string           `json:"benchmark"`
	Host      Host             `json:"host"`
	Settings  LocalitySettings `json:"settings"`

	Phases   []string         `json:"phases"`
	Policies []LocalityFigure `json:"policies"`

	BestFixed     string  `json:"best_fixed"`      // by the mix
	AutoOverBest  float64 `json:"auto_over_best"`  // time of auto's mix over that of the best fixed policy: below 1 beats all of them
	WorstOverBest float64 `json:"worst_over_best"` // of all phases, auto's time over that of the policy which is best in it
}

// LocalityFigure is one policy's.
type LocalityFigure struct {
	Policy      string    `json:"policy"`
	PhaseMillis []float64 `json:"phase_ms"` // in the order of Phases, all shifts together
	MixMillis   float64   `json:"mix_ms"`
	RemotePages uint64    `json:"remote_pages"` // pages, or the right to write them, that came from another server
	VCPUMoves   uint64    `json:"vcpu_moves"`
	Homes       uint64    `json:"homes"`         // regions whose directory went elsewhere
	OverBest    []float64 `json:"over_best"`     // by phase: its time over that of the fixed policy which is best in the phase
	MixOverBest float64   `json:"mix_over_best"` // the same over the mix
}

// localityRun is what one run came to.
type localityRun struct {
	phases        []float64
	mix           float64
	remote, moves uint64
	homes         uint64
}

// LocalityPhases names the phases of the payload.
var LocalityPhases = []string{"own", "read", "pipe", "lock"}

// Locality compares the policies on this machine.
func Locality(ctx context.Context, exe string, set LocalitySettings, say func(string)) (rep LocalityReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = LocalityReport{Benchmark: "locality", Host: ThisHost(), Settings: set, Phases: LocalityPhases}
	c, err := startShape(ctx, exe, local.Shape{Cells: set.Servers, PerCell: 1, Slots: localitySlots, Memory: 4*localityMemory + 64*ident.MiB})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	runs := make(map[string][]localityRun)
	for round := range set.Rounds {
		for i := range locality.Policies() { // in another order each time
			policy := locality.Policies()[(i+round)%len(locality.Policies())]
			say(fmt.Sprintf("round %d of %d: %s", round+1, set.Rounds, policy))
			r, err := c.runPhases(ctx, policy, set)
			if err != nil {
				return rep, fmt.Errorf("policy %s: %w", policy, err)
			}
			runs[policy] = append(runs[policy], r)
		}
	}
	for _, policy := range locality.Policies() {
		rep.Policies = append(rep.Policies, localityFigure(policy, runs[policy]))
	}
	rep.compare()
	return rep, nil
}

// runPhases runs the mix once.
func (c *cluster) runPhases(ctx context.Context, policy string, set LocalitySettings) (r localityRun, err error) {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	spec := &api.VMSpec{Name: "phases-" + policy, Payload: &api.VMSpec_Builtin{Builtin: "phases"}, Vcpus: localityVCPUs, MemoryBytes: uint64(localityMemory),
		Args: fmt.Sprintf("%d %d %d", set.Shifts, set.Scale, localityLinger.Milliseconds()), Span: strings.Split("a b c d", " ")[:set.Servers],
		Options: map[string]string{wire.OptionLocality: policy}}
	v, err := c.start(ctx, spec)
	for err == nil && !v.GetState().Ended() {
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		err = c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			got, err := svc.GetVM(ctx, &api.GetVMRequest{Name: spec.GetName()})
			v = got.GetVm()
			return err
		})
		r.count(v)
	}
	switch {
	case err != nil:
		return r, err
	case v.GetState() != api.VMState_VM_STATE_EXITED || v.GetExitStatus() != 0:
		return r, fmt.Errorf("VM %s is %s, status %d: %s\n%s", v.GetName(), v.GetState().Word(), v.GetExitStatus(), v.GetReason(), c.console(ctx, v))
	}
	err = c.client.Output(ctx, v.GetName(), 0, false, func(_ uint64, micros uint32) error {
		r.phases = append(r.phases, float64(micros)/1000)
		r.mix += float64(micros) / 1000
		return nil
	})
	if err == nil && len(r.phases) != len(LocalityPhases) {
		err = fmt.Errorf("the guest tells of %d phases, want %d", len(r.phases), len(LocalityPhases))
	}
	return r, errors.Join(err, c.remove(ctx, v.GetName()))
}

// count takes in what the workers have counted so far.
func (r *localityRun) count(v *api.VM) {
	var remote, moves, homes uint64
	for _, w := range v.GetWorkers() {
		remote += w.GetCounters().GetRemoteReads() + w.GetCounters().GetRemoteWrites()
		moves += w.GetCounters().GetLocality().GetMoved()
		homes += w.GetCounters().GetLocality().GetHomes()
	}
	r.remote, r.moves, r.homes = max(r.remote, remote), max(r.moves, moves), max(r.homes, homes)
}

func localityFigure(policy string, runs []localityRun) LocalityFigure {
	f := LocalityFigure{Policy: policy, PhaseMillis: make([]float64, len(LocalityPhases))}
	pick := func(of func(localityRun) float64) float64 {
		all := make([]float64, len(runs))
		for i, r := range runs {
			all[i] = of(r)
		}
		return round3(middle(all))
	}
	for i := range f.PhaseMillis {
		f.PhaseMillis[i] = pick(func(r localityRun) float64 { return r.phases[i] })
	}
	f.MixMillis = pick(func(r localityRun) float64 { return r.mix })
	f.RemotePages = uint64(pick(func(r localityRun) float64 { return float64(r.remote) }))
	f.VCPUMoves = uint64(pick(func(r localityRun) float64 { return float64(r.moves) }))
	f.Homes = uint64(pick(func(r localityRun) float64 { return float64(r.homes) }))
	return f
}

// compare sets auto beside the fixed policies.
func (r *LocalityReport) compare() {
	var auto, best *LocalityFigure
	for i := range r.Policies {
		switch f := &r.Policies[i]; {
		case f.Policy == locality.Auto.String():
			auto = f
		case best == nil || f.MixMillis < best.MixMillis:
			best = f
		}
	}
	if auto == nil || best == nil {
		return
	}
	r.BestFixed, r.AutoOverBest = best.Policy, quotient(auto.MixMillis, best.MixMillis)
	for i := range r.Policies {
		r.Policies[i].MixOverBest = quotient(r.Policies[i].MixMillis, best.MixMillis)
	}
	for phase := range r.Phases {
		least := best.PhaseMillis[phase]
		for _, f := range r.Policies {
			if f.Policy != auto.Policy {
				least = min(least, f.PhaseMillis[phase])
			}
		}
		for i := range r.Policies {
			r.Policies[i].OverBest = append(r.Policies[i].OverBest, quotient(r.Policies[i].PhaseMillis[phase], least))
		}
		r.WorstOverBest = max(r.WorstOverBest, auto.OverBest[phase])
	}
}
