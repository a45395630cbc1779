package tests

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// Failover: a protected VM over two cells of three emits 1,000 records a second while its cells are killed at random moments, or stopped and
// continued, or lose a worker. After each round its output is 0, 1, 2, … without gap or repetition, and what a follower had seen is a prefix of
// it. FAILOVER_ROUNDS, FAILOVER_SEED and FAILOVER_FAULTS choose how many, which, and of what kind.

const (
	failoverRounds  = 6 // by default; `make failover` does a hundred
	failoverVM      = "p"
	recoverPatience = 60 * time.Second
	safePatience    = 40 * time.Second
)

// failover is a cluster with one protected VM and a reader that never leaves it.
type failover struct {
	chaos
	reader *reader

	payload, args string
	span          []string // nil: a, b
	vcpus         uint32   // 0: 2
	disks         []*api.Disk
	crashesFreely bool // the guest's crashes in a row do not end the VM

	kinds  []string
	took   map[string][]time.Duration // by kind of fault: from the fault to the first new record
	lost   int
	killed []local.Member // not known to be gone yet
	hits   map[string]int // by stage of a recovery that a second fault struck

	protect string // as asked for; "" is replica
	pulse   *pulse
	began   time.Time                  // when the first round began
	gaps    map[string][]time.Duration // by kind of fault: the longest time without a record
}

func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "FAILOVER_ROUNDS", failoverRounds), envNumber(t, "FAILOVER_SEED", uint64(time.Now().UnixNano()))
	kinds := "cell,cell,cell,stop,blink,twice,both,midstop,midserve,midstopserve,home,member,standby,serve,hang"
	if s := os.Getenv("FAILOVER_FAULTS"); s != "" {
		kinds = s
	}
	t.Logf("replay: FAILOVER_SEED=%d FAILOVER_ROUNDS=%d FAILOVER_FAULTS=%s go test -run TestFailover ./tests", seed, rounds, kinds)
	f := newFailover(t, rand.New(rand.NewPCG(seed, 2)), kinds)
	f.payload, f.args = "count", "0 1000"
	f.play(rounds)
}

func newFailover(t *testing.T, rng *rand.Rand, kinds string) *failover {
	return &failover{chaos: chaos{t: t, rng: rng}, kinds: strings.Split(kinds, ","), took: make(map[string][]time.Duration), gaps: map[string][]time.Duration{},
		hits: make(map[string]int), began: time.Now()}
}

// play starts the cluster and the VM, lets faults strike round after round, and reports.
func (f *failover) play(rounds uint64) {
	f.start()
	f.run()
	f.pulse = newPulse()
	defer f.pulse.end()
	for round := range rounds {
		f.round(int(round))
		if f.t.Failed() {
			return
		}
	}
	f.report()
}

// With two replicas the VM survives the loss of two cells, together or one at any moment of the recovery from the other: it is never lost.
func TestFailoverTwoReplicas(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "FAILOVER_ROUNDS", 2), envNumber(t, "FAILOVER_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: FAILOVER_SEED=%d FAILOVER_ROUNDS=%d go test -run TestFailoverTwoReplicas ./tests", seed, rounds)
	f := newFailover(t, rand.New(rand.NewPCG(seed, 5)), "pair,midkill,midkill,midstop,midserve")
	f.cells, f.protect = 5, "replica:2"
	f.play(rounds)
}

func (f *failover) anyServer() string {
	return f.session.Cluster.Servers[f.rng.IntN(len(f.session.Cluster.Servers))].Name
}

// pair kills a cell that the VM depends on and, at once or a little later, another one: as often as not the one that went on with it.
func (f *failover) pair(vm *api.VM) string {
	first := vm.GetHome()
	if f.rng.IntN(3) == 0 {
		first = f.anyServer()
	}
	f.signalAll(syscall.SIGKILL, ofServer(first))
	delay := time.Duration(0)
	if f.rng.IntN(3) > 0 {
		delay = time.Duration(f.rng.IntN(1500)) * time.Millisecond
	}
	<-time.After(delay)
	second := first
	if ctx, cancel := context.WithTimeout(f.t.Context(), time.Second); f.rng.IntN(2) == 0 {
		if now, err := f.vm(ctx); err == nil {
			second = now.GetHome()
		}
		cancel()
	} else {
		cancel()
	}
	for second == first {
		second = f.anyServer()
	}
	f.signalAll(syscall.SIGKILL, ofServer(second))
	return fmt.Sprintf("kill -9 of %s, and of %s after %v", first, second, delay)
}

// run makes the protected VM and its reader.
func (f *failover) run() {
	f.create()
	f.reader = newReader(f.t.Context(), f.client, failoverVM)
	f.awaitSafe("at first")
}

// create makes the protected VM.
func (f *failover) create() {
	spec := &api.VMSpec{Name: failoverVM, Vcpus: cmp.Or(f.vcpus, 2), Span: f.span, Payload: &api.VMSpec_Builtin{Builtin: cmp.Or(f.payload, "count")}, Args: cmp.Or(f.args, "0 1000"), Disks: f.disks,
		MemoryBytes: uint64(64 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: cmp.Or(f.protect, "replica")}
	if spec.Span == nil {
		spec.Span = []string{"a", "b"}
	}
	if f.crashesFreely {
		spec.CrashLimit = new(uint32)
	}
	f.until(faultPatience, "creating the VM", func(ctx context.Context) error { _, err := f.client.Run(ctx, spec); return err })
}

func (f *failover) vm(ctx context.Context) (*api.VM, error) {
	vms, err := f.vms(ctx)
	if err == nil && vms[failoverVM] == nil {
		err = fmt.Errorf("there is no VM %s", failoverVM)
	}
	return vms[failoverVM], err
}

// awaitSafe waits until the VM survives the next loss, and returns it.
func (f *failover) awaitSafe(what string) *api.VM {
	f.t.Helper()
	vm := f.safeOrLost(what, time.Now())
	if vm == nil {
		f.t.Fatalf("%s: the VM is lost", what)
	}
	return vm
}

// safeOrLost is awaitSafe of a VM that may rightly be lost, by what happened since began: then it returns nil.
func (f *failover) safeOrLost(what string, began time.Time) (vm *api.VM) {
	f.t.Helper()
	f.until(safePatience, what+": protection is safe", func(ctx context.Context) (err error) {
		if vm, err = f.vm(ctx); err != nil {
			return err
		}
		if vm.GetState().Ended() {
			f.rightlyLost(what, vm, began)
			vm = nil
			return nil
		}
		if vm.GetProtection() != "safe" {
			return fmt.Errorf("VM %s is %s, protection %s", vm.GetName(), vm.GetState().Word(), vm.GetProtection())
		}
		return nil
	})
	return vm
}

// signalAll signals processes of the cluster that match, and returns how many.
func (f *failover) signalAll(sig syscall.Signal, match func(local.Member) bool) int {
	members, err := local.Find(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	members = slices.DeleteFunc(members, func(m local.Member) bool { return !match(m) })
	for _, m := range members {
		_ = syscall.Kill(m.PID, sig)
	}
	if sig == syscall.SIGKILL {
		f.killed = append(f.killed, members...)
	}
	return len(members)
}

func ofServer(server string) func(local.Member) bool {
	return func(m local.Member) bool { return m.Server == server }
}

// workerOf returns the server of a random worker of the kind that is asked for: home, member, standby.
func (f *failover) workerOf(vm *api.VM, kind string) string {
	var found []string
	for _, w := range vm.GetWorkers() {
		role := "member"
		switch {
		case w.GetServer() == vm.GetHome():
			role = "home"
		case len(w.GetVcpus()) == 0:
			role = "standby"
		}
		if role == kind {
			found = append(found, w.GetServer())
		}
	}
	if len(found) == 0 && kind == "member" {
		return vm.GetHome() // it has gathered there
	}
	if len(found) == 0 {
		f.t.Fatalf("VM %s has no %s: %v", vm.GetName(), kind, vm.GetWorkers())
	}
	return found[f.rng.IntN(len(found))]
}

// strike does something bad and returns what. undo makes good what does not heal by starting servers again; fatal: the VM may be lost by it.
func (f *failover) strike(kind string, vm *api.VM) (what string, undo func(), fatal bool) {
	server := f.anyServer()
	undo = func() {}
	switch kind {
	case "cell":
		f.signalAll(syscall.SIGKILL, ofServer(server))
		return "kill -9 of " + server, undo, false
	case "stop":
		pause := time.Duration(f.rng.IntN(5000)) * time.Millisecond
		f.signalAll(syscall.SIGSTOP, ofServer(server))
		until := time.Now().Add(pause)
		return fmt.Sprintf("SIGSTOP of %s for %v", server, pause), func() {
			<-time.After(time.Until(until))
			f.signalAll(syscall.SIGCONT, ofServer(server))
		}, false
	case "blink":
		what, undo = f.blink(server, "", 2500*time.Millisecond)
		return what, undo, false
	case "mirror":
		return f.mirror(vm), undo, false
	case "both":
		what, undo = f.both(vm)
		return what, undo, false
	case "midkill", "midstop", "midserve", "midstopserve":
		what, undo = f.duringRecovery(strings.TrimPrefix(kind, "mid"), vm)
		return what, undo, kind == "midkill" && f.protect == ""
	case "twice": // a cell, and a worker of another while the VM recovers
		f.signalAll(syscall.SIGKILL, ofServer(server))
		delay := f.upTo([]time.Duration{15 * time.Millisecond, 300 * time.Millisecond}[f.rng.IntN(2)])
		<-time.After(delay)
		other := server
		for other == server {
			other = f.anyServer()
		}
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == other && m.Kind == local.KindWorker })
		return fmt.Sprintf("kill -9 of %s, and of the worker on %s after %v", server, other, delay), undo, true
	case "pair":
		return f.pair(vm), undo, false
	case "hang": // one worker stands still: its server kills it after a while
		server = f.workerOf(vm, []string{"home", "member", "standby"}[f.rng.IntN(3)])
		f.signalAll(syscall.SIGSTOP, func(m local.Member) bool { return m.Server == server && m.Kind == local.KindWorker })
		return "SIGSTOP of the worker on " + server, undo, false
	case "serve": // its workers go on
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == server && m.Kind == local.KindServe })
		return "kill -9 of the serve process of " + server, undo, false
	default: // home, member, standby: one worker
		server = f.workerOf(vm, kind)
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == server && m.Kind == local.KindWorker })
		return fmt.Sprintf("kill -9 of the %s worker on %s", kind, server), undo, false
	}
}

func (f *failover) round(n int) {
	vm := f.awaitSafe(fmt.Sprintf("before round %d", n))
	f.reader.await(f.t, "before the fault", f.reader.count()+50)
	<-time.After(time.Duration(f.rng.IntN(300)) * time.Millisecond)
	kind := f.kinds[f.rng.IntN(len(f.kinds))]
	before, recoveries, began := f.reader.count(), vm.GetRecoveries(), time.Now()
	what, undo, fatal := f.strike(kind, vm)
	what = fmt.Sprintf("round %d: %s (home %s)", n, what, vm.GetHome())
	if kind == "serve" {
		f.healAll()
	}
	if fatal {
		undo()
		if f.endedByIt() {
			f.again(what)
			return
		}
	}
	goesOn := f.goesOn(what, before+500, began)
	gap, first := f.reader.longestGap(began)
	undo()
	f.healAll()
	after := vm
	if goesOn {
		after = f.safeOrLost(what, began)
	}
	if !goesOn || after == nil {
		f.again(what)
		return
	}
	f.check(what)
	f.timeline(what, began, gap)
	f.t.Logf("%s: first new record after %v, longest gap %v, recoveries %d -> %d", what, first.Round(time.Millisecond), gap.Round(time.Millisecond),
		recoveries, after.GetRecoveries())
	f.took[kind], f.gaps[kind] = append(f.took[kind], first), append(f.gaps[kind], gap)
}

// endedByIt starts what was killed, and waits until a VM that may have lost more than it was protected against has either ended or goes on and
// is safe again.
func (f *failover) endedByIt() (ended bool) {
	f.healAll()
	since := 0
	f.until(safePatience, "two faults: the VM ends or goes on", func(ctx context.Context) error {
		vm, err := f.vm(ctx)
		if err != nil {
			return err
		}
		ended = vm.GetState().Ended()
		switch {
		case ended && vm.GetState() != api.VMState_VM_STATE_LOST:
			f.t.Fatalf("VM %s is %s: %s", vm.GetName(), vm.GetState().Word(), vm.GetReason())
		case vm.GetProtection() == "safe" && since > 0 && f.reader.count() > since+300:
			return nil
		case vm.GetProtection() == "safe" && since == 0:
			since = f.reader.count()
			fallthrough
		case !ended:
			return fmt.Errorf("it is %s, protection %s, with %d records", vm.GetState().Word(), vm.GetProtection(), f.reader.count())
		case vm.GetReason() == "":
			f.t.Fatalf("VM %s is %s without a reason", vm.GetName(), vm.GetState().Word())
		}
		f.t.Logf("VM %s is %s: %s", vm.GetName(), vm.GetState().Word(), vm.GetReason())
		return nil
	})
	return ended
}

// rightlyLost fails unless the VM is lost for a good reason: the view has excluded servers of more cells since began than the VM has replicas. A
// serve process that was not back before its lease lapsed counts: nobody can tell it from one that is gone.
func (f *failover) rightlyLost(what string, vm *api.VM, began time.Time) {
	f.t.Helper()
	dead := map[string]bool{}
	err := f.client.FollowEvents(f.t.Context(), 1, false, func(e *api.Event) error {
		if e.GetType() == "server.dead" && !e.GetTime().AsTime().Before(began.Add(-time.Millisecond)) {
			dead[e.GetCell()] = true
		}
		return nil
	})
	replicas := 1
	if f.protect == "replica:2" {
		replicas = 2
	}
	if err != nil || vm.GetState() != api.VMState_VM_STATE_LOST || vm.GetReason() == "" || len(dead) <= replicas {
		f.t.Fatalf("%s: VM %s is %s: %s; cells that lost servers: %v (%v)", what, vm.GetName(), vm.GetState().Word(), vm.GetReason(), dead, err)
	}
	f.t.Logf("%s: VM %s is lost, with cells %v: %s", what, vm.GetName(), dead, vm.GetReason())
}

// goesOn waits until the reader has n records; it returns false if the VM is rightly lost.
func (f *failover) goesOn(what string, n int, began time.Time) (on bool) {
	f.t.Helper()
	f.until(recoverPatience, fmt.Sprintf("%s: %d records", what, n), func(ctx context.Context) error {
		if err := f.reader.wrong(); err != nil {
			f.t.Fatalf("%s: %v", what, err)
		}
		if on = f.reader.count() >= n; on {
			return nil
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if vm, err := f.vm(short); err == nil && vm.GetState().Ended() {
			f.rightlyLost(what, vm, began)
			return nil
		}
		return fmt.Errorf("the follower has %d", f.reader.count())
	})
	return on
}

// again begins with a new VM after the old one was lost.
func (f *failover) again(what string) {
	f.t.Logf("%s: lost", what)
	f.lost++
	f.reader.close()
	f.healAll()
	f.until(faultPatience, "removing the lost VM", func(ctx context.Context) error { return f.remove(ctx, failoverVM) })
	for _, s := range f.session.Cluster.Servers {
		f.forgets(s.Name)
	}
	f.run()
}

// forgets waits until a server knows that the VM was removed.
func (f *failover) forgets(server string) {
	f.until(faultPatience, server+" forgets the lost VM", func(ctx context.Context) error {
		own, err := api.Dial(ctx, f.session.Cluster.Server(server).API)
		if err != nil {
			return err
		}
		defer own.Close()
		resp, err := own.API().ListVMs(ctx, &api.ListVMsRequest{})
		if err == nil && slices.ContainsFunc(resp.GetVms(), func(v *api.VM) bool { return v.GetName() == failoverVM }) {
			err = fmt.Errorf("it has VM %s", failoverVM)
		}
		return err
	})
}

// healAll starts what does not run, and waits until all are live.
func (f *failover) healAll() {
	f.awaitKilled()
	members, err := local.Find(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	servers := f.session.Cluster.Servers
	for _, s := range servers {
		if slices.ContainsFunc(members, func(m local.Member) bool { return m.Server == s.Name && m.Kind == local.KindServe }) {
			continue
		}
		if _, err := local.StartServer(f.dir, s.Name, program); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, s := range servers {
		f.heal(s.Name)
	}
}

func (f *failover) awaitKilled() {
	f.until(faultPatience, "killed processes end", func(context.Context) error {
		f.killed = slices.DeleteFunc(f.killed, func(m local.Member) bool { return !m.Process.Alive() })
		if len(f.killed) > 0 {
			return fmt.Errorf("%v are still there", f.killed)
		}
		return nil
	})
}

// check reads the whole output: it is 0, 1, 2, …, and has all that the reader saw before.
func (f *failover) check(what string) {
	f.t.Helper()
	seen := f.reader.count()
	n := 0
	f.until(faultPatience, what+": reading the output", func(ctx context.Context) error {
		n = 0
		return f.client.Output(ctx, failoverVM, 0, false, func(at uint64, record uint32) error {
			if uint64(record) != at || int(at) != n {
				f.t.Fatalf("%s: record %d is %d, %d was due", what, at, record, n)
			}
			n++
			return nil
		})
	})
	if n < seen {
		f.t.Fatalf("%s: the output has %d records, a reader had seen %d", what, n, seen)
	}
	if err := f.reader.wrong(); err != nil {
		f.t.Fatalf("%s: %v", what, err)
	}
}

func (f *failover) report() {
	var all []time.Duration
	for kind, took := range f.took {
		slices.Sort(took)
		f.t.Logf("%-12s %3d times: first new record after %v median, %v worst", kind, len(took), took[len(took)/2], took[len(took)-1])
		all = append(all, took...)
	}
	if len(all) > 0 {
		slices.Sort(all)
		f.t.Logf("all          %3d times: first new record after %v median, %v p99; %d VMs lost to two faults at once", len(all), all[len(all)/2],
			all[(99*len(all)-1)/100], f.lost)
	}
	campaigned(f.t, f.began, f.reader.count(), f.gaps)
	if len(f.hits) > 0 {
		f.t.Logf("second faults by the stage that they hit: %v", f.hits)
	}
}
