package tests

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// Twenty VMs of mixed sizes and weights on two slots, one on each of two servers: twelve stay for the whole time, on one of the servers or over both, up to
// eight others start, stop, move and have their workers killed. Those that stay get shares by their weights, and every guest that ends by itself has counted right.
// Two things count: the time on slots, which is what the schedule gave, and the CPU time of the vCPUs' threads, which is what they had of it. CPU time is compared
// between VMs of one place, and only told of those over both servers: on their slots these wait for pages, now more, now less. The time on slots is compared with all others too, and with what was due by
// the moment's load, as far as that could be seen, which is only told: who had more than others while his server was emptier waits for them when it is fuller, so over a
// long time shares are nearer to the weights than that sum. SHARES_SECONDS says for how long; the shares of a short run are only told.

const (
	sharesSeconds = 6  // by default; `make shares` takes ten minutes
	sharesStrict  = 60 // seconds from which on shares are demanded
	sharesWithin  = 0.05
	sharesSteady  = 12
	sharesPassing = 8
	sharesRounds  = 1<<31 - 1 // of those over both servers that stay: their pages travel, so it takes days
	sharesForever = "10 0 0"  // as fast as it goes, without end
)

type shares struct {
	chaos
	weights map[string]int
	made    int
	killed  map[string]bool
	ended   int // by themselves, with right sums
	moved   int

	servers []gang.Server
	names   map[ident.VMID]string
	running []gang.VM // when last seen
	seen    time.Time
	due     map[string]float64 // seconds on slots
}

func TestShares(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	seconds, seed := envNumber(t, "SHARES_SECONDS", sharesSeconds), envNumber(t, "SHARES_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: SHARES_SEED=%d SHARES_SECONDS=%d go test -run TestShares ./tests", seed, seconds)
	s := &shares{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(seed, 9))}, weights: map[string]int{}, killed: map[string]bool{}, names: map[ident.VMID]string{}, due: map[string]float64{}}
	s.startWith(local.Shape{Cells: 2, PerCell: 1, Slots: 1, Memory: ident.GiB, Lease: 10 * time.Second})
	s.servers = []gang.Server{{ID: 1, Slots: 1}, {ID: 2, Slots: 1}}
	for i := range sharesSteady {
		weight := []int{50, 100, 200, 100}[i%4]
		switch i % 3 {
		case 0:
			s.create(steadyName(i), 1, weight, "dirty", sharesForever, "a")
		case 1:
			s.create(steadyName(i), 1, weight, "dirty", sharesForever, "b")
		case 2:
			s.create(steadyName(i), 2, weight, "lock", fmt.Sprint(sharesRounds, " spin"), "a", "b")
		}
	}
	s.until(faultPatience, "all have run", func(ctx context.Context) error {
		for name, had := range s.ran(ctx) {
			if had.slots == 0 {
				return fmt.Errorf("VM %s has not run", name)
			}
		}
		return nil
	})
	s.look()
	clear(s.due)
	before, began := s.ran(t.Context()), time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := began.Add(time.Duration(seconds) * time.Second); time.Now().Before(end) && !t.Failed(); <-tick.C {
		if s.rng.IntN(2) == 0 {
			s.act()
		}
		s.look()
	}
	s.judge(before, s.ran(t.Context()), seconds >= sharesStrict)
	t.Logf("%d VMs passed by, %d of them ended by themselves with right sums, %d moves were begun", s.made-sharesSteady, s.ended, s.moved)
}

func (s *shares) create(name string, vcpus, weight int, payload, args string, span ...string) {
	w := int32(weight)
	spec := &api.VMSpec{Name: name, Vcpus: uint32(vcpus), Weight: &w, Span: span, Payload: &api.VMSpec_Builtin{Builtin: payload}, Args: args,
		MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
	s.until(faultPatience, "creating VM "+name, func(ctx context.Context) error { _, err := s.client.Run(ctx, spec, nil); return err })
	s.weights[name] = weight
	s.made++
}

// had is what a VM had since its start, in seconds: its slots, and CPU time on each server.
type had struct{ slots, cpu float64 }

func (h had) since(o had) had { return had{h.slots - o.slots, h.cpu - o.cpu} }

// ran is what each of the VMs that stay had, as their workers count it.
func (s *shares) ran(ctx context.Context) map[string]had {
	out := map[string]had{}
	for i := range sharesSteady {
		name := steadyName(i)
		r, err := s.client.API().GetVM(ctx, &api.GetVMRequest{Name: name})
		if err != nil {
			s.t.Fatal(err)
		}
		var sum had
		workers := r.GetVm().GetWorkers()
		for _, w := range workers {
			each := 1e6 * float64(len(workers))
			sum.slots += float64(w.GetCounters().GetSlotMicros()) / each
			sum.cpu += float64(w.GetCounters().GetCpuMicros()) / each
		}
		out[name] = sum
	}
	return out
}

// act does one thing to the VMs that pass by.
func (s *shares) act() {
	ctx, cancel := context.WithTimeout(s.t.Context(), faultPatience)
	defer cancel()
	vms, err := s.vms(ctx)
	if err != nil {
		s.t.Error(err)
		return
	}
	var passing []*api.VM
	for name, v := range vms {
		if strings.HasPrefix(name, "passing") && v.GetState() == api.VMState_VM_STATE_RUNNING {
			passing = append(passing, v)
		}
	}
	if len(passing) < sharesPassing && s.rng.IntN(2) == 0 || len(passing) == 0 {
		vcpus, rounds := 1, 1+s.rng.IntN(30_000_000)
		if s.rng.IntN(3) == 0 { // over both servers the pages of its locks travel
			vcpus, rounds = 2, 1+s.rng.IntN(5000)
		}
		s.create(fmt.Sprintf("passing-%d", s.made), vcpus, []int{50, 100, 200}[s.rng.IntN(3)], "lock", fmt.Sprint(rounds, " spin"))
		return
	}
	v := passing[s.rng.IntN(len(passing))]
	switch s.rng.IntN(3) {
	case 0:
		s.killed[v.GetName()] = true
		_, _ = s.client.API().StopVM(ctx, &api.StopVMRequest{Name: v.GetName()}) // it may have ended meanwhile
	case 1:
		to := "a-1"
		if v.GetHome() == to {
			to = "b-1"
		}
		if _, err := s.client.API().StartOperation(ctx, &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: v.GetName(), ToServer: to, MaxParallel: 1}); err == nil {
			s.moved++
		}
	default:
		for _, w := range v.GetWorkers() {
			if w.GetPid() != 0 {
				s.killed[v.GetName()] = true
				_ = syscall.Kill(int(w.GetPid()), syscall.SIGKILL)
			}
		}
	}
}

// look adds what was due since it looked last, as things were then, and removes the VMs that have ended.
func (s *shares) look() {
	ctx, cancel := context.WithTimeout(s.t.Context(), faultPatience)
	defer cancel()
	vms, err := s.vms(ctx)
	if err != nil {
		s.t.Error(err)
		return
	}
	now := time.Now()
	for id, share := range gang.FairShares(s.servers, s.running) {
		s.due[s.names[id]] += float64(share) / gang.FairWhole * now.Sub(s.seen).Seconds()
	}
	s.running, s.seen = nil, now
	for name, v := range vms {
		switch {
		case v.GetState() == api.VMState_VM_STATE_RUNNING:
			s.running = append(s.running, s.gang(v))
		case v.GetState().Ended():
			s.reap(ctx, v, name)
		}
	}
}

// gang is the VM as the scheduler sees it.
func (s *shares) gang(v *api.VM) gang.VM {
	out := gang.VM{ID: ident.VMID(v.GetId()), Weight: int(v.GetWeight())}
	s.names[out.ID] = v.GetName()
	for _, w := range v.GetWorkers() {
		for _, server := range s.servers {
			if w.GetServer() == []string{"a-1", "b-1"}[server.ID-1] && len(w.GetVcpus()) > 0 {
				out.Parts = append(out.Parts, gang.Part{Server: server.ID, VCPUs: len(w.GetVcpus())})
			}
		}
	}
	return out
}

// reap takes note of how a VM has ended, and removes it.
func (s *shares) reap(ctx context.Context, v *api.VM, name string) {
	switch {
	case v.GetState() == api.VMState_VM_STATE_EXITED && v.GetExitStatus() == 0:
		s.ended++
	case !s.killed[name]:
		s.t.Errorf("VM %s is %s with status %d: %s", name, v.GetState().Word(), v.GetExitStatus(), v.GetReason())
	}
	if _, err := s.client.API().RemoveVM(ctx, &api.RemoveVMRequest{Name: name, Force: true}); err != nil {
		s.t.Errorf("removing VM %s: %v", name, err)
	}
}

// lapses tells how often the schedule was given up for a while because nobody conducted.
func (s *shares) lapses() string {
	sum := map[string]uint64{}
	for _, server := range s.session.Cluster.Servers {
		client, err := api.Dial(s.t.Context(), server.API)
		if err != nil {
			s.t.Fatal(err)
		}
		r, err := client.API().DebugCounters(s.t.Context(), &api.DebugCountersRequest{})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, name := range []string{"gang.slices", "gang.lapses", "gang.undelivered", "gang.start_skew.p50_us", "gang.start_skew.p99_us"} {
			sum[name] += r.GetCounters()[name]
		}
		client.Close()
	}
	return fmt.Sprintf("%d slices, %d lapses, %d orders repeated, gangs over both began within %d us (median), %d us (p99)", sum["gang.slices"], sum["gang.lapses"], sum["gang.undelivered"], sum["gang.start_skew.p50_us"],
		sum["gang.start_skew.p99_us"])
}

// judge compares what each VM that stayed had with what the others had, by weight; and tells how that compares with what seemed due.
func (s *shares) judge(before, after map[string]had, strict bool) {
	got, weights := map[string]had{}, 0.0
	var all had
	var alike [3]had // sums by place, and what they weigh
	var alikeWeights [3]float64
	due := 0.0
	for i := range sharesSteady {
		name := steadyName(i)
		g, weight := after[name].since(before[name]), float64(s.weights[name])
		got[name] = g
		all, weights, due = had{all.slots + g.slots, 0}, weights+weight, due+s.due[name]
		alike[i%3], alikeWeights[i%3] = had{0, alike[i%3].cpu + g.cpu}, alikeWeights[i%3]+weight
	}
	s.t.Logf("those that stayed had %.1f%% of the time that was due to them; %s", 100*all.slots/due, s.lapses())
	for i := range sharesSteady {
		name := steadyName(i)
		g, weight := got[name], float64(s.weights[name])
		offSlots, offCPU := g.slots/(all.slots*weight/weights)-1, g.cpu/(alike[i%3].cpu*weight/alikeWeights[i%3])-1
		s.t.Logf("%s, weight %.0f, %s: %.2f s on its slots, %+.1f%% beside all, %+.1f%% of what seemed due; %.2f s of CPU time, %+.1f%% beside its like", name, weight,
			[]string{"on a", "on b", "on both"}[i%3], g.slots, 100*offSlots, 100*(g.slots/all.slots/(s.due[name]/due)-1), g.cpu, 100*offCPU)
		switch {
		case g.slots == 0 || g.cpu == 0:
			s.t.Errorf("VM %s did not run", name)
		case strict && (math.Abs(offSlots) > sharesWithin || i%3 < 2 && math.Abs(offCPU) > sharesWithin):
			s.t.Errorf("VM %s is off its share: %.1f%% of time on slots, %.1f%% of CPU time", name, 100*offSlots, 100*offCPU)
		}
	}
}

func steadyName(i int) string { return fmt.Sprintf("steady-%d", i) }
