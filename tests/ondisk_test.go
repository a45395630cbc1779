package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// A protected guest crashes itself again and again while the cells that it runs in are killed: blocks come from pages of former boots, from disks, and
// after a loss pages come from a mirror's blocks. The guest verifies every byte that it reads and fails the VM if one is wrong; it emits how often it has
// crashed, so its output must be 0, 1, 2, … ONDISK_ROUNDS and ONDISK_SEED choose how many kills, and when.
func TestCrashesAndLossesWithADisk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "ONDISK_ROUNDS", 3), envNumber(t, "ONDISK_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: ONDISK_SEED=%d ONDISK_ROUNDS=%d go test -run TestCrashesAndLossesWithADisk ./tests", seed, rounds)
	f := newFailover(t, rand.New(rand.NewPCG(seed, 9)), "")
	f.payload, f.args, f.disks = "phoenix", "1000000 200", []*api.Disk{{Name: "d", SizeBytes: 4 << 20, Mirrors: 1}}
	f.span, f.crashesFreely = []string{"a"}, true
	f.start()
	f.run()
	var left uint64
	for round := range rounds {
		vm := f.awaitSafe(fmt.Sprintf("before round %d", round))
		f.reader.await(t, "before the kill", f.reader.count()+8)
		f.until(safePatience, "pages are left to a mirror", func(ctx context.Context) error {
			now, err := f.leftToDisks(ctx)
			if left += now; err == nil && now == 0 {
				err = fmt.Errorf("checkpoints name no disk block")
			}
			return err
		})
		<-time.After(time.Duration(f.rng.IntN(300)) * time.Millisecond)
		struck := time.Now()
		f.signalAll(syscall.SIGKILL, ofServer(vm.GetHome()))
		f.awaitKilled()
		f.reader.await(t, "after the kill of "+vm.GetHome(), f.reader.count()+8)
		gap, _ := f.reader.longestGap(struck)
		f.gaps["boots, home kill"] = append(f.gaps["boots, home kill"], gap)
		f.healAll()
		f.awaitSafe(fmt.Sprintf("after round %d", round))
		f.check(fmt.Sprintf("round %d", round))
	}
	campaigned(t, f.began, f.reader.count(), f.gaps)
	t.Logf("%d boots, %d pages named by block", f.reader.count(), left)
}

// leftToDisks is how many pages the checkpoints of all servers named by block.
func (f *failover) leftToDisks(ctx context.Context) (sum uint64, err error) {
	for addr := range strings.SplitSeq(f.session.Cluster.Addrs(), ",") {
		one, err := api.Dial(ctx, addr)
		if err != nil {
			return 0, err
		}
		err = one.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			r, err := svc.DebugCounters(ctx, &api.DebugCountersRequest{})
			sum += r.GetCounters()["checkpoints.pages_on_disk_sum"]
			return err
		})
		one.Close()
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}
