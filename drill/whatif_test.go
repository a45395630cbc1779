package drill

import (
	"math/rand/v2"
	"testing"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/recovery"
)

// The forecast and the decision that the cluster takes when the loss comes are the same, for any VM and any loss.
func TestForecastIsTheDecision(t *testing.T) {
	const seed, rounds = 1, 20000
	rng := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a-1", "a-2", "b-1", "b-2", "c-1"}
	fates := map[recovery.Fate]string{recovery.Untouched: "untouched", recovery.Lost: "lost", recovery.Continues: "continues",
		recovery.Restored: "recovered", recovery.Unprotected: "unprotected"}
	seen := make(map[string]int)
	for round := range rounds {
		v, gone := &api.VM{Name: "v", State: api.VMState_VM_STATE_RUNNING, OnLoss: api.OnLoss_ON_LOSS_STOP, Protection: "safe"}, make(map[string]bool)
		if rng.IntN(4) == 0 {
			v.State = api.VMState_VM_STATE_STARTING
		}
		if rng.IntN(2) == 0 {
			v.OnLoss = api.OnLoss_ON_LOSS_TOUCH
		}
		if rng.IntN(2) == 0 {
			v.Protection = "syncing"
		}
		order := rng.Perm(len(names))
		v.Home = names[order[0]]
		loss, ask := recovery.Loss{Epoch: 9}, recovery.VM{Running: v.State == api.VMState_VM_STATE_RUNNING, OnLossTouch: v.OnLoss == api.OnLoss_ON_LOSS_TOUCH}
		for i, n := range order[:1+rng.IntN(len(names))] {
			w := &api.Worker{Part: uint32(i), Server: names[n], Ready: true, Standby: i > 0 && rng.IntN(3) == 0, Lost: i > 0 && rng.IntN(5) == 0}
			v.Workers = append(v.Workers, w)
			ask.Parts = append(ask.Parts, recovery.Part{Part: ident.Part(i), Server: ident.ServerID(n + 1), Gone: w.Lost, Standby: w.Standby,
				Holds: w.Standby && v.Protection == "safe"})
		}
		for n, name := range names {
			if rng.IntN(3) == 0 {
				gone[name] = true
				loss.Servers = append(loss.Servers, recovery.LostServer{Server: ident.ServerID(n + 1), Name: ident.ServerName(name)})
			}
		}
		want := fates[recovery.Contain(loss, ask).Fate]
		got := (&Forecast{Quorum: true}).vm(v, gone, "")
		if got.Fate != want {
			t.Fatalf("seed %d, round %d: forecast %s, decision %s: %v, loss of %v", seed, round, got.Fate, want, v, gone)
		}
		seen[want]++
	}
	for _, fate := range fates {
		if seen[fate] < rounds/200 {
			t.Errorf("fate %s came up only %d times", fate, seen[fate])
		}
	}
}

// How long a recovery takes is what recoveries took: the median of each stage, the VM's own word on its own stages.
func TestForecastOfTime(t *testing.T) {
	event := func(kind string, fields map[string]string) *api.Event { return &api.Event{Type: kind, Fields: fields} }
	var f Forecast
	f.measure([]*api.Event{
		event("recovery.stages", map[string]string{"detect_us": "30000", "agree_us": "2000", "fence_us": "12000", "remap_us": "1"}),
		event("recovery.stages", map[string]string{"detect_us": "50000", "agree_us": "3000", "fence_us": "14000"}),
		event("recovery.stages", map[string]string{"detect_us": "900000", "agree_us": "1000", "fence_us": "13000"}),
		event("vm.recovered", map[string]string{"remap_us": "800", "resume_us": "3100", "checkpoint": "9"}),
		event("vm.moved", map[string]string{"down_us": "5000"}),
	})
	if got := stageText(f.Stages); got != "detect 50.0 ms, agree 2.0 ms, fence 13.0 ms, remap 0.8 ms, resume 3.1 ms" || f.ExpectedMs != 69 || f.Measured != 1 {
		t.Errorf("%s, %d ms, %d recoveries", got, f.ExpectedMs, f.Measured)
	}
	var none Forecast
	none.measure(nil)
	if none.ExpectedMs != 0 || len(none.Stages) != 0 {
		t.Errorf("%+v", none)
	}
}
