package tests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/wire"
)

// TestJournalMirrors is TestJournal for a VM without replicas, whose disk has a mirror in another cell. The VM is lost with its home's cell, and starts again
// on the mirror: there the guest, which verifies its whole journal at the start, must find every record that it had flushed, and so emitted, before.
// JOURNAL_ROUNDS, JOURNAL_SEED and JOURNAL_FAULTS choose how many faults, which, and of what kind.
func TestJournalMirrors(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	const fewRounds = 3 // by default; `make journal` does a hundred
	rounds, seed := envNumber(t, "JOURNAL_ROUNDS", fewRounds), envNumber(t, "JOURNAL_SEED", uint64(time.Now().UnixNano()))
	kinds := cmp.Or(os.Getenv("MIRROR_FAULTS"), "cell,cell,stop,home,both,mirror")
	t.Logf("replay: JOURNAL_SEED=%d JOURNAL_ROUNDS=%d MIRROR_FAULTS=%s go test -run TestJournalMirrors ./tests", seed, rounds, kinds)
	f := &mirrors{failover: newFailover(t, rand.New(rand.NewPCG(seed, 11)), kinds)}
	f.start()
	spec := &api.VMSpec{Name: failoverVM, Vcpus: 1, Payload: &api.VMSpec_Builtin{Builtin: "journal"}, Args: "0 400 64", MemoryBytes: uint64(32 * ident.MiB),
		Disks: []*api.Disk{{Name: "journal", SizeBytes: 4 << 20, Mirrors: 1}}, OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none", Restart: "always"}
	f.until(faultPatience, "creating the VM", func(ctx context.Context) error { _, err := f.client.Run(ctx, spec); return err })
	for round := range rounds {
		f.round(int(round))
	}
	f.inStep("in the end", time.Time{})
}

// mirrors is a cluster with one VM whose disk has a mirror.
type mirrors struct{ *failover }

// inStep waits until the VM, started after a moment, runs with its mirror in step and has emitted some records, and returns it.
func (f *mirrors) inStep(what string, after time.Time) (vm *api.VM) {
	f.t.Helper()
	f.until(recoverPatience, what+": the mirror is in step", func(ctx context.Context) (err error) {
		if vm, err = f.vm(ctx); err != nil {
			return err
		}
		if vm.GetState() == api.VMState_VM_STATE_FAILED {
			f.t.Fatalf("%s: VM %s failed: %s", what, vm.GetName(), vm.GetReason())
		}
		if vm.GetState() != api.VMState_VM_STATE_RUNNING || vm.GetMirroring() != "in-step" || !vm.GetStartedAt().AsTime().After(after) {
			return fmt.Errorf("VM %s is %s (%s), its mirrors are %s", vm.GetName(), vm.GetState().Word(), vm.GetReason(), vm.GetMirroring())
		}
		return nil
	})
	before := -1
	f.until(recoverPatience, what+": records", func(context.Context) error {
		now := len(f.records(vm))
		if before < 0 {
			before = now
		}
		if now < before+50 {
			return fmt.Errorf("%d", now)
		}
		return nil
	})
	return vm
}

// records is what the VM, in this life of it, has put out, as its home has written it: the outside can have seen no more.
func (f *mirrors) records(vm *api.VM) []int {
	paths, err := filepath.Glob(filepath.Join(f.dir, vm.GetHome(), "workers", "*", wire.WorkerOutputFile))
	f.must(err)
	var newest string
	var at time.Time
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.ModTime().After(at) {
			newest, at = p, info.ModTime()
		}
	}
	raw, err := os.ReadFile(newest)
	if len(raw) == 0 && (err == nil || errors.Is(err, os.ErrNotExist)) {
		return nil
	}
	f.must(err)
	var out []int
	for _, line := range strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n") {
		n, err := strconv.Atoi(line)
		if err != nil || len(out) > 0 && n != out[len(out)-1]+1 {
			f.t.Fatalf("%s: record %d is %q", newest, len(out), line)
		}
		out = append(out, n)
	}
	return out
}

func (f *mirrors) round(n int) {
	vm := f.inStep(fmt.Sprintf("before round %d", n), time.Time{})
	<-time.After(time.Duration(f.rng.IntN(300)) * time.Millisecond)
	home, mirror := vm.GetHome(), f.workerOf(vm, "standby")
	kind, undo, began := f.kinds[f.rng.IntN(len(f.kinds))], func() {}, vm.GetStartedAt().AsTime()
	switch kind {
	case "cell":
		f.signalAll(syscall.SIGKILL, ofServer(home))
	case "both":
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == home || m.Server == mirror })
	case "mirror":
		f.signalAll(syscall.SIGKILL, ofServer(mirror))
	case "home":
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == home && m.Kind == local.KindWorker })
	case "stop":
		pause := time.Duration(f.rng.IntN(5000)) * time.Millisecond
		f.signalAll(syscall.SIGSTOP, ofServer(home))
		undo = func() { <-time.After(pause); f.signalAll(syscall.SIGCONT, ofServer(home)) }
	default:
		f.t.Fatalf("unknown fault %q", kind)
	}
	what := fmt.Sprintf("round %d: %s (home %s, mirror %s)", n, kind, home, mirror)
	f.awaitKilled()
	before := f.records(vm)
	undo()
	f.healAll()
	since := began
	if kind == "stop" || kind == "mirror" { // of these it need not be lost
		since = time.Time{}
	}
	after := f.inStep(what, since)
	if !after.GetStartedAt().AsTime().After(began) {
		f.t.Logf("%s: it was not lost", what)
		return
	}
	now := f.records(after)
	last, first := before[len(before)-1], now[0]
	f.t.Logf("%s: record %d was the last, %d on %s the first", what, last, first, after.GetHome())
	if first != last+1 && first != last+2 { // one may be on the disk that nobody was told of
		f.t.Fatalf("%s: record %d was seen, the next life of the VM goes on with %d", what, last, first)
	}
}
