package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// GangSettings say how the gang benchmark runs.
type GangSettings struct {
	Seconds int `json:"seconds"` // about so long does one VM alone take
	Rounds  int `json:"rounds"`  // of everything; the median of each figure counts

	Only string `json:"only,omitempty"` // one of GangParts; "": all
}

// GangParts are what the gang benchmark consists of: throughputs, the start skew, and what scheduling many VMs costs.
var GangParts = []string{"locks", "skew", "crowd"}

// Bounds of GangSettings, and the shape of what runs.
const (
	maxGangSeconds = 60
	gangVCPUs      = 2
	gangSlots      = 2
	gangMemory     = 16 * ident.MiB
	skewSeconds    = 20      // at least, for enough starts: the longest of a hundred is what counts
	calibrate      = 100_000 // increments of the run that finds out how many take a second
)

// Check tells what is wrong with the settings.
func (s GangSettings) Check() error {
	switch {
	case s.Seconds < 1 || s.Seconds > maxGangSeconds:
		return fmt.Errorf("seconds must be from 1 to %d, not %d", maxGangSeconds, s.Seconds)
	case s.Rounds < 1 || s.Rounds > 100:
		return fmt.Errorf("rounds must be from 1 to 100, not %d", s.Rounds)
	case s.Only != "" && !slices.Contains(GangParts, s.Only):
		return fmt.Errorf("there is no part %q, only %s", s.Only, strings.Join(GangParts, ", "))
	}
	return nil
}

// GangReport is the result of the gang benchmark: two VMs of two vCPUs with the payload lock on two slots. Its waiters spin: if they idled, one vCPU would
// count faster while the other sleeps than both do together, and two VMs that disturb each other could exceed one alone. Throughputs are increments of the
// shared counters by one vCPU in a second. Names of fields are an interface: see docs/json.md.
type GangReport struct {
	Benchmark string       `json:"benchmark"`
	Host      Host         `json:"host"`
	Settings  GangSettings `json:"settings"`

	AlonePerSecond float64 `json:"alone_per_second"` // one VM alone
	GangPerSecond  float64 `json:"gang_per_second"`  // both together, gang-scheduled
	HostPerSecond  float64 `json:"host_per_second"`  // both together, left to Linux

	SpeedupOverHost float64 `json:"speedup_over_host"` // gang over host
	ShareOfIdeal    float64 `json:"share_of_ideal"`    // of both gangs together, of what one has alone; that of each is measured against half of it

	StartSkew  SkewFigure     `json:"start_skew_us"` // of a gang on two servers: from the first vCPU that runs in a slice to the last
	Scheduling SchedulingCost `json:"scheduling"`
	Crowd      CrowdCost      `json:"crowd"`
}

// SkewFigure sums up start skews.
type SkewFigure struct {
	Samples uint64 `json:"samples"`
	P50     uint64 `json:"p50"`
	P99     uint64 `json:"p99"`
}

// SchedulingCost is what deciding cost while the two VMs shared the slots.
type SchedulingCost struct {
	Slices         uint64  `json:"slices"`
	MicrosPerSlice float64 `json:"micros_per_slice"` // of a CPU, in serve: planning and telling
}

// Gang measures what gang scheduling gains on this machine. say is told how far it is.
func Gang(ctx context.Context, exe string, set GangSettings, say func(string)) (rep GangReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = GangReport{Benchmark: "gang", Host: ThisHost(), Settings: set}
	g := gangBench{exe: exe, set: set, say: say}
	if set.wants("locks") {
		if err := g.locks(ctx); err != nil {
			return rep, err
		}
	}
	if set.wants("skew") {
		say("two gangs on two servers")
		if err := g.skew(ctx, &rep.StartSkew); err != nil {
			return rep, err
		}
	}
	if set.wants("crowd") {
		say(fmt.Sprintf("%d VMs on one server", crowdVMs))
		if err := g.crowd(ctx, &rep.Crowd); err != nil {
			return rep, err
		}
	}
	g.fill(&rep)
	return rep, nil
}

// wants tells whether a part is to run.
func (s GangSettings) wants(part string) bool { return s.Only == "" || s.Only == part }

// gangBench is a run of the benchmark.
type gangBench struct {
	exe         string
	set         GangSettings
	say         func(string)
	increments  int // of each run
	alone       []float64
	gang        []float64
	host        []float64
	slices      uint64
	sliceMicros uint64
}

// locks measures throughputs.
func (g *gangBench) locks(ctx context.Context) error {
	g.say("finding out how fast this machine is")
	if err := g.with(ctx, config.SchedGang, func(c *cluster) error { return g.calibrate(ctx, c) }); err != nil {
		return err
	}
	for round := range g.set.Rounds {
		g.say(fmt.Sprintf("round %d of %d", round+1, g.set.Rounds))
		if err := g.round(ctx); err != nil {
			return err
		}
	}
	return nil
}

// with runs f on a cluster of one server.
func (g *gangBench) with(ctx context.Context, sched config.Sched, f func(*cluster) error) (err error) {
	c, err := startShape(ctx, g.exe, local.Shape{Cells: 1, PerCell: 1, Slots: gangSlots, Memory: 256 * ident.MiB, Sched: sched})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	return f(c)
}

// calibrate finds out how many increments take the wanted time.
func (g *gangBench) calibrate(ctx context.Context, c *cluster) error {
	curves, err := runLocks(ctx, c, calibrate, "first")
	if err == nil {
		g.increments = max(calibrate, int(throughput(curves))*g.set.Seconds)
	}
	return err
}

// round measures each throughput once.
func (g *gangBench) round(ctx context.Context) error {
	err := g.with(ctx, config.SchedGang, func(c *cluster) error {
		curves, err := runLocks(ctx, c, g.increments, "alone")
		if err != nil {
			return err
		}
		g.alone = append(g.alone, throughput(curves))
		if curves, err = runLocks(ctx, c, g.increments, "one", "two"); err != nil {
			return err
		}
		g.gang = append(g.gang, throughput(curves))
		n, err := c.counters(ctx)
		g.slices += n["gang.slices"]
		g.sliceMicros += n["gang.busy_micros"]
		return err
	})
	if err != nil {
		return err
	}
	return g.with(ctx, config.SchedHost, func(c *cluster) error {
		curves, err := runLocks(ctx, c, g.increments, "one", "two")
		if err == nil {
			g.host = append(g.host, throughput(curves))
		}
		return err
	})
}

// skew lets two gangs share two servers of one slot each.
func (g *gangBench) skew(ctx context.Context, out *SkewFigure) (err error) {
	c, err := startShape(ctx, g.exe, local.Shape{Cells: 2, PerCell: 1, Slots: 1, Memory: 256 * ident.MiB})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	for _, name := range []string{"one", "two"} {
		if _, err := c.start(ctx, lockSpec(name, 1<<30, "a", "b")); err != nil {
			return err
		}
	}
	const interval = 100 * time.Millisecond
	deadline := time.Now().Add(time.Duration(max(skewSeconds, g.set.Seconds)) * time.Second)
	for time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval):
		}
	}
	n, err := c.counters(ctx)
	*out = SkewFigure{Samples: n["gang.start_skew.count"], P50: n["gang.start_skew.p50_us"], P99: n["gang.start_skew.p99_us"]}
	if err == nil && out.Samples == 0 {
		err = errors.New("no gang was started on two servers")
	}
	return err
}

func (g *gangBench) fill(r *GangReport) {
	r.AlonePerSecond, r.GangPerSecond, r.HostPerSecond = middle(g.alone), middle(g.gang), middle(g.host)
	r.SpeedupOverHost = quotient(r.GangPerSecond, r.HostPerSecond)
	r.ShareOfIdeal = quotient(r.GangPerSecond, r.AlonePerSecond)
	r.Scheduling = SchedulingCost{Slices: g.slices, MicrosPerSlice: quotient(float64(g.sliceMicros), float64(g.slices))}
}

func lockSpec(name string, increments int, span ...string) *api.VMSpec {
	return &api.VMSpec{
		Name: name, Payload: &api.VMSpec_Builtin{Builtin: "lock"}, Args: strconv.Itoa(increments) + " spin", Vcpus: gangVCPUs, MemoryBytes: uint64(gangMemory), Span: span,
	}
}
