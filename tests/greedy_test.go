package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// What TestGreedyGuests waits for, and what it demands.
const (
	greedyMicros = 3_000_000 // on the slot, by all together
	greedyLeast  = 85        // percent of its share that everybody comes to; orders are carried out late on a busy machine
)

// A guest that never idles, and one that idles as often as it can, take nothing from others beyond their share.
func TestGreedyGuests(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	s := &shares{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(1, 9))}, weights: map[string]int{}}
	s.startWith(local.Shape{Cells: 1, PerCell: 1, Slots: 1, Memory: 256 * ident.MiB, Lease: 10 * time.Second})
	s.create("usual", 1, 100, "dirty", "10 1000 0")
	s.create("honest", 1, 100, "lock", fmt.Sprint(sharesRounds, " spin"))
	s.create("never", 1, 100, "dirty", sharesForever)
	s.create("often", 1, 100, "idle", "0")
	full := []string{"honest", "never", "often"} // those that always want the slot
	before := map[string]uint64{}
	got := map[string]uint64{}
	sum := uint64(0)
	s.until(faultPatience, "the guests have shared the slot", func(ctx context.Context) error {
		sum = 0
		for _, name := range full {
			micros, err := s.slotTime(ctx, name)
			if err != nil {
				return err
			}
			if micros == 0 {
				clear(before) // what counts is the time from when all have run
				return fmt.Errorf("VM %s has not run", name)
			}
			if before[name] == 0 {
				before[name] = micros
			}
			got[name] = micros - before[name]
			sum += got[name]
		}
		if sum < greedyMicros {
			return fmt.Errorf("they had %d us of the slot", sum)
		}
		for _, name := range full { // workers tell their counters now and then: the longer it takes, the less that matters
			if got[name]*uint64(len(full))*100 < sum*greedyLeast {
				return fmt.Errorf("VM %s had %d us of %d, less than its share", name, got[name], sum)
			}
		}
		return nil
	})
	for _, name := range full {
		t.Logf("%s: %.1f%% of the slot", name, 100*float64(got[name])/float64(sum))
	}
}

// slotTime is for how long a VM on one server had its slots, in microseconds.
func (s *shares) slotTime(ctx context.Context, name string) (uint64, error) {
	r, err := s.client.API().GetVM(ctx, &api.GetVMRequest{Name: name})
	if err != nil {
		return 0, err
	}
	for _, w := range r.GetVm().GetWorkers() {
		return w.GetCounters().GetSlotMicros(), nil
	}
	return 0, fmt.Errorf("VM %s has no worker", name)
}
