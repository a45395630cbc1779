package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// A VM that went on from its replica is reset by hand: it boots again from the mirror's copy of its disk, verifies every block of it, and is safe once more.
// Its output has a record for each boot.
func TestResetAfterAFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	f := newFailover(t, rand.New(rand.NewPCG(1, 11)), "")
	f.payload, f.args, f.disks = "phoenix", "0 64 read", []*api.Disk{{Name: "d", SizeBytes: 1 << 20, Mirrors: 1}}
	f.vcpus, f.span = 1, []string{"a"}
	f.start()
	f.create()
	f.boots(1)
	for round := range uint64(2) {
		vm := f.awaitSafe(fmt.Sprintf("round %d", round))
		f.signalAll(syscall.SIGKILL, ofServer(vm.GetHome()))
		f.healAll()
		now := f.awaitSafe(fmt.Sprintf("round %d, after the kill of %s", round, vm.GetHome()))
		if now.GetHome() == vm.GetHome() || now.GetRecoveries() <= vm.GetRecoveries() {
			t.Fatalf("its home is %s after %d recoveries, was %s after %d", now.GetHome(), now.GetRecoveries(), vm.GetHome(), vm.GetRecoveries())
		}
		f.until(faultPatience, "reset", func(ctx context.Context) error {
			_, err := f.client.API().ResetVM(ctx, &api.ResetVMRequest{Name: failoverVM})
			return err
		})
		f.boots(int(round) + 2)
		if vm := f.awaitSafe("after the reset"); vm.GetRestarts() < round+1 {
			t.Fatalf("%d restarts, %d were asked for", vm.GetRestarts(), round+1)
		}
	}
}

// boots waits until the guest has said at least n times that it has read and verified its disk.
func (f *failover) boots(n int) {
	f.t.Helper()
	f.until(time.Minute, fmt.Sprintf("boot %d", n), func(ctx context.Context) error {
		got := 0
		err := f.client.Output(ctx, failoverVM, 0, false, func(_ uint64, record uint32) error {
			if got++; record != 1 {
				f.t.Fatalf("record %d", record)
			}
			return nil
		})
		if err == nil && got < n {
			err = fmt.Errorf("%d boots", got)
		}
		return err
	})
}
