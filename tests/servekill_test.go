package tests

import (
	"context"
	"fmt"
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
	gap map[string]time.Duration // protected by mu; by VM: the longest time without growth
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

func (g *growth) end() map[string]time.Duration {
	close(g.stop)
	g.done.Wait()
	return g.gap
}

// Every serve process is killed, one after the other, under load. Workers and guests go on, the next serve adopts them, and nobody outside sees more
// than a pause. The longest pauses are reported; what they may be depends on the machine.
func TestServesAreKilledUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	f := &failover{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(1, 6))}}
	f.start()
	f.run()
	for _, spec := range []*api.VMSpec{{Name: "in-c", Vcpus: 1, Span: []string{"c"}}, {Name: "over-ab", Vcpus: 2, Span: []string{"a", "b"}}} {
		spec.Payload, spec.Args, spec.MemoryBytes = &api.VMSpec_Builtin{Builtin: "count"}, "0 1000", uint64(64*ident.MiB)
		spec.OnLoss, spec.Protect = api.OnLoss_ON_LOSS_STOP, "none"
		f.until(faultPatience, "creating VM "+spec.GetName(), func(ctx context.Context) error { _, err := f.client.Run(ctx, spec, nil); return err })
	}
	pids := func() (out map[string][]uint32, files map[string]string) {
		f.until(faultPatience, "all VMs run", func(ctx context.Context) error {
			vms, err := f.vms(ctx)
			out, files = map[string][]uint32{}, map[string]string{}
			for name, vm := range vms {
				if vm.GetState() != api.VMState_VM_STATE_RUNNING {
					return fmt.Errorf("VM %s is %s: %s", name, vm.GetState().Word(), vm.GetReason())
				}
				for _, w := range vm.GetWorkers() {
					out[name] = append(out[name], w.GetPid())
				}
				found, _ := filepath.Glob(filepath.Join(f.dir, vm.GetHome(), "workers", fmt.Sprintf("%d-*", vm.GetId()), "output.log"))
				if len(found) != 1 {
					return fmt.Errorf("VM %s has no output log on %s", name, vm.GetHome())
				}
				files[name] = found[0]
			}
			if err == nil && len(vms) != 3 {
				err = fmt.Errorf("there are %d VMs", len(vms))
			}
			return err
		})
		return out, files
	}
	f.awaitSafe("before the first kill")
	before, files := pids()
	f.reader.await(t, "before the first kill", f.reader.count()+200)
	g := watchGrowth(files)
	for _, s := range f.session.Cluster.Servers[:3] {
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == s.Name && m.Kind == local.KindServe })
		f.healAll()
		f.reader.await(t, "after the kill of "+s.Name, f.reader.count()+200)
	}
	for vm, gap := range g.end() {
		t.Logf("VM %s: longest gap %v", vm, gap.Round(time.Millisecond))
	}
	after, _ := pids()
	for vm, was := range before {
		if !slices.Equal(was, after[vm]) {
			t.Errorf("VM %s had workers %v, now %v: not all were adopted", vm, was, after[vm])
		}
	}
	f.check("at the end")
	for _, vm := range []string{"in-c", "over-ab"} {
		n := 0
		f.until(faultPatience, "reading the output of "+vm, func(ctx context.Context) error {
			n = 0
			return f.client.Output(ctx, vm, 0, false, func(at uint64, record uint32) error {
				if n++; uint64(record) != at {
					t.Fatalf("VM %s: record %d is %d", vm, at, record)
				}
				return nil
			})
		})
		t.Logf("VM %s: %d records in order", vm, n)
	}
}
