package tests

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// growth watches how output logs grow, where their workers write them: what a guest does, without any serve in between.
type growth struct {
	stop chan struct{}
	done sync.WaitGroup

	mu  sync.Mutex
	gap map[string]time.Duration // protected by mu; by VM: the longest time without growth since the last take
}

// take returns the longest pauses since the last time, by VM.
func (g *growth) take() map[string]time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := maps.Clone(g.gap)
	clear(g.gap)
	return out
}

// watchGrowth looks every few milliseconds. files are the output logs, by VM.
func watchGrowth(files map[string]string) *growth {
	g := &growth{stop: make(chan struct{}), gap: map[string]time.Duration{}}
	for vm, file := range files {
		g.done.Go(func() {
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			var size int64
			last := time.Now()
			for {
				select {
				case <-tick.C:
				case <-g.stop:
					return
				}
				info, err := os.Stat(file)
				if err != nil || info.Size() == size {
					continue
				}
				now := time.Now()
				g.mu.Lock()
				g.gap[vm] = max(g.gap[vm], now.Sub(last))
				g.mu.Unlock()
				size, last = info.Size(), now
			}
		})
	}
	return g
}

func (g *growth) end() {
	close(g.stop)
	g.done.Wait()
}

// gapMost is the longest pause that a guest may show when its serve process is killed. Only `make serves` demands it, on a machine that does nothing else.
const gapMost = 200 * time.Millisecond

// Every serve process is killed, one after the other, under load: every server's slots are busy, and a protected VM is checkpointed all the time. Workers
// and guests go on, the next serve adopts them, and nobody outside sees more than a pause. The longest pauses are reported; what they may be depends on
// the machine. SERVEKILL_ROUNDS says how many are killed; with it none may take longer than gapMost.
func TestServesAreKilledUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	const fewKills = 3 // by default: each server's once
	kills := envNumber(t, "SERVEKILL_ROUNDS", fewKills)
	// A serve must be back before its lease lapses, however busy the machine is.
	f := &failover{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(1, 6)), lease: 20 * time.Second}}
	f.start()
	f.run()
	f.populateServes()
	f.awaitSafe("before the first kill")
	before, files := f.pidsAndLogs()
	f.reader.await(t, "before the first kill", f.reader.count()+200)
	g := watchGrowth(files)
	f.reader.await(t, "before the first kill, watched", f.reader.count()+1000)
	calm, gaps, all := g.take(), map[string][]time.Duration{}, []time.Duration(nil)
	began := time.Now()
	for n := range kills {
		s := f.session.Cluster.Servers[n%fewKills]
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == s.Name && m.Kind == local.KindServe })
		f.healAll()
		f.reader.await(t, "after the kill of "+s.Name, f.reader.count()+200)
		for vm, gap := range g.take() {
			gaps[vm], all = append(gaps[vm], gap), append(all, gap)
			if kills > fewKills && gap > gapMost {
				t.Errorf("kill %d, of %s: VM %s showed a gap of %v, at most %v is allowed", n, s.Name, vm, gap.Round(time.Millisecond), gapMost)
			}
		}
	}
	g.end()
	campaigned(t, began, f.reader.count(), map[string][]time.Duration{"serve": all})
	for _, vm := range slices.Sorted(maps.Keys(gaps)) {
		all := gaps[vm]
		slices.Sort(all)
		t.Logf("VM %s: %d kills, longest gap %v median, %v p99, %v worst; %v in a second without kills", vm, len(all), all[len(all)/2].Round(time.Millisecond),
			all[(99*len(all)-1)/100].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond), calm[vm].Round(time.Millisecond))
	}
	after, _ := f.pidsAndLogs()
	for vm, was := range before {
		if !slices.Equal(was, after[vm]) {
			t.Errorf("VM %s had workers %v, now %v: not all were adopted", vm, was, after[vm])
		}
	}
	f.check("at the end")
	for _, vm := range []string{"in-c", "over-ab"} {
		f.inOrder(vm)
	}
}

// populateServes runs, beside the protected VM, two that count and one whose vCPUs never rest.
func (f *failover) populateServes() {
	for _, spec := range []*api.VMSpec{
		{Name: "in-c", Vcpus: 1, Span: []string{"c"}, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 1000"},
		{Name: "over-ab", Vcpus: 2, Span: []string{"a", "b"}, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 1000"},
		{Name: "busy", Vcpus: 2, Span: []string{"b", "c"}, Payload: &api.VMSpec_Builtin{Builtin: "lock"}, Args: "2000000000"},
	} {
		spec.MemoryBytes, spec.OnLoss, spec.Protect = uint64(64*ident.MiB), api.OnLoss_ON_LOSS_STOP, "none"
		f.until(faultPatience, "creating VM "+spec.GetName(), func(ctx context.Context) error { _, err := f.client.Run(ctx, spec, nil); return err })
	}
}

// pidsAndLogs waits until all VMs run, and returns the processes of each and the output logs of those that count.
func (f *failover) pidsAndLogs() (pids map[string][]uint32, files map[string]string) {
	f.until(faultPatience, "all VMs run", func(ctx context.Context) error {
		vms, err := f.vms(ctx)
		pids, files = map[string][]uint32{}, map[string]string{}
		for name, vm := range vms {
			if vm.GetState() != api.VMState_VM_STATE_RUNNING {
				return fmt.Errorf("VM %s is %s: %s", name, vm.GetState().Word(), vm.GetReason())
			}
			for _, w := range vm.GetWorkers() {
				pids[name] = append(pids[name], w.GetPid())
			}
			found, _ := filepath.Glob(filepath.Join(f.dir, vm.GetHome(), "workers", fmt.Sprintf("%d-*", vm.GetId()), "output.log"))
			if len(found) != 1 && name != "busy" {
				return fmt.Errorf("VM %s has no output log on %s", name, vm.GetHome())
			} else if name != "busy" {
				files[name] = found[0]
			}
		}
		if err == nil && len(vms) != 4 {
			err = fmt.Errorf("there are %d VMs", len(vms))
		}
		return err
	})
	return pids, files
}

// inOrder demands that a VM's output is 0, 1, 2, ….
func (f *failover) inOrder(vm string) {
	n := 0
	f.until(faultPatience, "reading the output of "+vm, func(ctx context.Context) error {
		n = 0
		return f.client.Output(ctx, vm, 0, false, func(at uint64, record uint32) error {
			if n++; uint64(record) != at {
				f.t.Fatalf("VM %s: record %d is %d", vm, at, record)
			}
			return nil
		})
	})
	f.t.Logf("VM %s: %d records in order", vm, n)
}
