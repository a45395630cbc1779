package forecast

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
		got := (&Forecast{Quorum: true}).Of(v, gone, "")
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
