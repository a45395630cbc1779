package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/tests/setting"
)

// Twenty VMs of mixed sizes and weights on two slots: twelve stay for the whole time, up to eight others start, stop, move and have their workers killed. Those
// of one vCPU that stay get their weights' shares, and every guest that ends by itself has counted right. (Of more vCPUs the payload's waiters idle for
// microseconds, which workers do not count as running: of them only progress is demanded.) SHARES_SECONDS says for how long; the shares of a short run are
// only told.

const (
	sharesSeconds = 6  // by default; `make shares` takes ten minutes
	sharesStrict  = 60 // seconds from which on shares are demanded
	sharesWithin  = 0.05
	sharesSteady  = 12
	sharesPassing = 8
)

type shares struct {
	chaos
	weights map[string]int
	made    int
	killed  map[string]bool
	ended   int // by themselves, with right sums
	moved   int
}

func TestShares(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	seconds, seed := envNumber(t, "SHARES_SECONDS", sharesSeconds), envNumber(t, "SHARES_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: SHARES_SEED=%d SHARES_SECONDS=%d go test -run TestShares ./tests", seed, seconds)
	s := &shares{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(seed, 9))}, weights: map[string]int{}, killed: map[string]bool{}}
	s.begin()
	for i := range sharesSteady {
		s.create(fmt.Sprintf("steady-%d", i), 1+i%2, []int{50, 100, 200, 100}[i%4], 1<<30, "a")
	}
	s.until(faultPatience, "all have run", func(ctx context.Context) error {
		for name, micros := range s.ran(ctx) {
			if micros == 0 {
				return fmt.Errorf("VM %s has not run", name)
			}
		}
		return nil
	})
	before, began := s.ran(t.Context()), time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := began.Add(time.Duration(seconds) * time.Second); time.Now().Before(end) && !t.Failed(); <-tick.C {
		s.act()
		s.reap()
	}
	s.judge(before, s.ran(t.Context()), seconds >= sharesStrict)
	t.Logf("%d VMs passed by, %d of them ended by themselves with right sums, %d moves were asked for", s.made-sharesSteady, s.ended, s.moved)
}

func (s *shares) begin() {
	t := s.t
	dir, err := os.MkdirTemp(setting.Dir(), "cvx-")
	if err != nil {
		t.Fatal(err)
	}
	if s.dir, err = local.Abs(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.finish)
	if s.session, err = local.Start(local.Options{Dir: s.dir, Exe: program, Shape: local.Shape{Cells: 2, PerCell: 1, Slots: 2, Memory: ident.GiB}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.session.WaitLive(ctx, func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	if s.client, err = api.Dial(ctx, s.session.Cluster.Addrs()); err != nil {
		t.Fatal(err)
	}
}

func (s *shares) create(name string, vcpus, weight, rounds int, span ...string) {
	w := int32(weight)
	spec := &api.VMSpec{Name: name, Vcpus: uint32(vcpus), Weight: &w, Span: span, Payload: &api.VMSpec_Builtin{Builtin: "lock"}, Args: fmt.Sprint(rounds),
		MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
	s.until(faultPatience, "creating VM "+name, func(ctx context.Context) error { _, err := s.client.Run(ctx, spec, nil); return err })
	s.weights[name] = weight
	s.made++
}

// ran is for how long each vCPU of the VMs that stay has run, in microseconds, as their workers count it.
func (s *shares) ran(ctx context.Context) map[string]uint64 {
	out := map[string]uint64{}
	for i := range sharesSteady {
		name := fmt.Sprintf("steady-%d", i)
		r, err := s.client.API().GetVM(ctx, &api.GetVMRequest{Name: name})
		if err != nil {
			s.t.Fatal(err)
		}
		out[name] = 0
		for _, w := range r.GetVm().GetWorkers() {
			out[name] += w.GetCounters().GetRunMicros() / uint64(r.GetVm().GetVcpus())
		}
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
		s.create(fmt.Sprintf("passing-%d", s.made), 1+s.rng.IntN(2), []int{50, 100, 200}[s.rng.IntN(3)], 1000+s.rng.IntN(20_000))
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

// reap looks at the VMs that have ended, and removes them.
func (s *shares) reap() {
	ctx, cancel := context.WithTimeout(s.t.Context(), faultPatience)
	defer cancel()
	vms, err := s.vms(ctx)
	if err != nil {
		s.t.Error(err)
		return
	}
	for name, v := range vms {
		switch {
		case !v.GetState().Ended():
			continue
		case v.GetState() == api.VMState_VM_STATE_EXITED && v.GetExitStatus() == 0:
			s.ended++
		case !s.killed[name]:
			s.t.Errorf("VM %s is %s with status %d: %s", name, v.GetState().Word(), v.GetExitStatus(), v.GetReason())
		}
		if _, err := s.client.API().RemoveVM(ctx, &api.RemoveVMRequest{Name: name, Force: true}); err != nil {
			s.t.Errorf("removing VM %s: %v", name, err)
		}
	}
}

// judge compares what each VM got with its weight.
func (s *shares) judge(before, after map[string]uint64, strict bool) {
	sum, weights := uint64(0), 0
	for i := 0; i < sharesSteady; i += 2 { // those of one vCPU
		name := fmt.Sprintf("steady-%d", i)
		sum += after[name] - before[name]
		weights += s.weights[name]
	}
	for i := range sharesSteady {
		name := fmt.Sprintf("steady-%d", i)
		got, due := float64(after[name]-before[name]), float64(sum)*float64(s.weights[name])/float64(weights)
		off := got/due - 1
		s.t.Logf("%s, weight %d: each vCPU ran %.0f ms, due are %.0f (%+.1f%%)", name, s.weights[name], got/1000, due/1000, 100*off)
		switch {
		case got == 0:
			s.t.Errorf("VM %s did not run", name)
		case i%2 == 0 && strict && (off > sharesWithin || off < -sharesWithin):
			s.t.Errorf("VM %s got %.1f%% off its share", name, 100*off)
		}
	}
}
