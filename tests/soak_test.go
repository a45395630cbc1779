package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// A soak: VMs of all kinds on three cells of two servers that lend each other memory and promise more than they have, and whatever an operator may do to them,
// several things at once, in any order: moves, spreads, pauses, protection, resets, cordons, drains, balancing. Then the same with kills. Every command
// ends, with success or with a reason; every guest that ends by itself has counted right; a VM is lost or fails only after a process was killed, and says so; and once
// all is undone nothing is in between any more: no VM waits, no operation goes on, no process and no loan is left over. SOAK_SECONDS, SOAK_SEED and SOAK_KILLS choose;
// SOAK_FAULTS names other faults than kills, and has more kinds of VMs made.

const (
	soakSeconds = 4 // by default; `make soak` takes ten minutes
	soakKills   = 5 // of a hundred acts
	soakVMs     = 12
	soakAtOnce  = 4
	soakSettle  = 2 * time.Minute
	soakLinger  = 15 * time.Second // at most, for guests that have nearly ended
)

type soak struct {
	chaos
	made, ended int

	faults []string    // kinds; nil: kill alone
	net    *namespaces // if the servers live in some
	disks  int
	saves  int // protected by mu

	mu     sync.Mutex
	ending map[string]bool // by command, or by what was killed: it need not end by itself
	kills  int
	done   map[string]int // commands by verb that succeeded
	asked  map[string]int // and that were given
}

func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	seconds, seed := envNumber(t, "SOAK_SECONDS", soakSeconds), envNumber(t, "SOAK_SEED", uint64(time.Now().UnixNano()))
	kills := envNumber(t, "SOAK_KILLS", soakKills)
	faults, sched := os.Getenv("SOAK_FAULTS"), os.Getenv("SOAK_SCHED")
	t.Logf("replay: SOAK_SEED=%d SOAK_SECONDS=%d SOAK_KILLS=%d SOAK_FAULTS=%s SOAK_SCHED=%s SOAK_PAYLOAD=%s go test -run TestSoak ./tests",
		seed, seconds, kills, faults, sched, soakPayload)
	s := &soak{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(seed, 21))}, ending: map[string]bool{}, done: map[string]int{}, asked: map[string]int{}}
	s.startWith(local.Shape{Cells: 3, PerCell: 2, Slots: 2, Sched: config.Sched(sched), Memory: 192 * ident.MiB, Lend: true, Overcommit: 2, LogLevel: serverLogLevel()})
	s.widen(faults)
	s.command("balance", "mode", "auto")
	var wg sync.WaitGroup
	free := make(chan struct{}, soakAtOnce)
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end) && !t.Failed(); {
		free <- struct{}{}
		act := s.pick(int(kills))
		wg.Go(func() { act(); <-free })
		s.pass(time.Duration(s.rng.IntN(200)) * time.Millisecond)
		s.look()
	}
	wg.Wait()
	s.settle(time.Duration(seconds) * time.Second / 2)
	s.complaints()
	var verbs []string
	for v := range s.asked {
		verbs = append(verbs, fmt.Sprintf("%s %d of %d", v, s.done[v], s.asked[v]))
	}
	slices.Sort(verbs)
	t.Logf("%d VMs, %d of them ended by themselves with right sums; %d kills; done of what was asked: %s", s.made, s.ended, s.kills, strings.Join(verbs, ", "))
}

// pick chooses what to do next. All chance is drawn here, so that a seed repeats as much as can be repeated.
func (s *soak) pick(kills int) func() {
	server := fmt.Sprintf("%c-%d", 'a'+s.rng.IntN(3), 1+s.rng.IntN(2))
	cell, other, vcpu := string(rune('a'+s.rng.IntN(3))), string(rune('a'+s.rng.IntN(3))), fmt.Sprint(s.rng.IntN(2))
	n, pause := s.rng.IntN(1000), time.Duration(s.rng.IntN(1500))*time.Millisecond
	if s.rng.IntN(100) < kills {
		if s.faults != nil {
			return s.fault(s.faults[s.rng.IntN(len(s.faults))])
		}
		return func() { s.kill(server, n) }
	}
	vms := s.running()
	if len(vms) < soakVMs && s.rng.IntN(3) == 0 || len(vms) == 0 {
		return s.create()
	}
	vm := vms[s.rng.IntN(len(vms))]
	acts := []func(){
		func() { s.command("vm", "migrate", vm, "--to", server) },
		func() { s.command("vm", "migrate", vm, "--to", cell) },
		func() { s.command("vm", "migrate", vm, "--vcpu", vcpu, "--to", server) },
		func() { s.command("vm", "spread", vm) },
		func() { s.command("vm", "spread", vm, "--over", cell+","+other) },
		func() { s.command("vm", "gather", vm, "--to", cell) },
		func() { s.command("vm", "protect", vm, []string{"none", "replica", "replica"}[n%3]) },
		func() { s.command("vm", "pause", vm); s.pass(pause); s.command("vm", "resume", vm) },
		func() { s.command("vm", "reset", vm) },
		func() { s.expect(vm); s.command("vm", "stop", vm) },
		func() {
			s.command("server", "cordon", server)
			s.pass(pause)
			s.command("server", "uncordon", server)
		},
		func() {
			s.command("cell", "drain", cell, "--yes", "--deadline", "20s")
			s.command("cell", "restore", cell)
		},
		func() { s.command("balance", "apply", "--yes") },
		func() { s.command("balance", "mode", []string{"off", "suggest", "auto"}[n%3]) },
		func() { s.command("vm", "show", vm) },
	}
	if s.faults != nil {
		acts = append(acts, func() { s.saveAndRestore(vm) }, func() {
			s.command("server", "drain", server, "--yes", "--deadline", "10s")
			s.command("server", "restore", server)
		})
	}
	return acts[n%len(acts)]
}

// create makes a VM of some kind, all of which end by themselves some time.
func (s *soak) create() func() {
	name := fmt.Sprintf("vm-%d", s.made)
	s.made++
	args := []string{"vm", "run", name}
	memory := []string{"16MiB", "48MiB"}[s.rng.IntN(2)]
	kinds := 5
	if s.faults != nil {
		kinds = 9
	}
	switch s.rng.IntN(kinds) {
	case 0:
		args = append(args, "--payload", "count", "--args", fmt.Sprint(100+s.rng.IntN(1500), " 100"), "--vcpus", "1")
	case 1:
		args = append(args, "--payload", "lock", "--args", fmt.Sprint(1+s.rng.IntN(400)), "--vcpus", "2", "--span", "a,b")
	case 2:
		args = append(args, "--payload", "lock", "--args", fmt.Sprint(1+s.rng.IntN(1_000_000), " spin"), "--vcpus", "2")
	case 3:
		args = append(args, "--payload", "dirty", "--args", fmt.Sprint("90 ", 1000+s.rng.IntN(20000), " ", 1+s.rng.IntN(12)), "--vcpus", fmt.Sprint(1+s.rng.IntN(2)))
	case 4:
		args = append(args, "--payload", "count", "--args", fmt.Sprint(100+s.rng.IntN(1500), " 100"), "--vcpus", "1", "--protect", "replica")
	default:
		args = append(args, s.wideKind()...)
	}
	args = append(args, "--memory", memory, "--weight", fmt.Sprint([]int{50, 100, 200}[s.rng.IntN(3)]))
	return func() {
		if !s.command(args...) {
			s.expect(name) // there may be no room
		}
	}
}

// expect notes that a VM may end otherwise than by itself.
func (s *soak) expect(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending[vm] = true
}

// command runs the program. It need not succeed, but must end.
func (s *soak) command(args ...string) bool {
	ctx, cancel := context.WithTimeout(s.t.Context(), soakSettle)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "--addr", s.session.Cluster.Addrs())...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err := cmd.Run()
	s.slow(strings.Join(args, " "), began)
	verb := strings.Join(args[:2], " ")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[verb]++
	if err == nil {
		s.done[verb]++
	}
	switch text := out.String(); {
	case ctx.Err() != nil && s.t.Context().Err() == nil:
		s.t.Errorf("%s has not ended within %v:\n%s", strings.Join(args, " "), soakSettle, text)
	case err != nil && strings.TrimSpace(text) == "":
		s.t.Errorf("%s: %v, and not a word why", strings.Join(args, " "), err)
	case strings.Contains(text, "panic:") || strings.Contains(text, "internal error"):
		s.t.Errorf("%s: %s", strings.Join(args, " "), text)
	}
	return err == nil
}

// kill ends processes of a server: one worker, all of them, its serve process, or everything; and starts it again.
func (s *soak) kill(server string, n int) {
	members := s.victims(server, n)
	for _, m := range members {
		_ = syscall.Kill(m.PID, syscall.SIGKILL)
	}
	if n%4 < 2 {
		return
	}
	s.pass(time.Duration(n) * time.Millisecond)
	s.startAgain(server)
}

// pass lets time pass: what happens meanwhile is the test.
func (s *soak) pass(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
	}
}

// running lists VMs that have not ended, by name.
func (s *soak) running() []string {
	var out []string
	for name, v := range s.all() {
		if !v.GetState().Ended() {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// all is vms for whom a cluster in between two leaders is no news.
func (s *soak) all() map[string]*api.VM {
	ctx, cancel := context.WithTimeout(s.t.Context(), faultPatience)
	defer cancel()
	for {
		vms, err := s.vms(ctx)
		if err == nil {
			return vms
		}
		if ctx.Err() != nil {
			s.t.Errorf("the cluster has not answered for %v: %v", faultPatience, err)
			return nil
		}
		s.pass(20 * time.Millisecond)
	}
}

// look judges the VMs that have ended, and removes them.
func (s *soak) look() {
	for name, v := range s.all() {
		if !v.GetState().Ended() {
			continue
		}
		if !s.judge(name, v) {
			continue
		}
		if err := s.remove(s.t.Context(), name); err != nil && status.Code(err) != codes.NotFound {
			s.t.Logf("removing VM %s: %v", name, err) // it comes again
		}
	}
}

// judge returns false if it cannot yet.
func (s *soak) judge(name string, v *api.VM) bool {
	s.mu.Lock()
	expected, kills := s.ending[name], s.kills
	s.mu.Unlock()
	what := fmt.Sprintf("VM %s (%s %s) is %s: %s", name, v.GetPayload(), v.GetArgs(), v.GetState().Word(), v.GetReason())
	switch v.GetState() {
	case api.VMState_VM_STATE_EXITED:
		if v.GetExitStatus() != 0 {
			s.t.Errorf("%s, with status %d", what, v.GetExitStatus())
		}
		if v.GetPayload() == "count" && v.GetRestarts() == 0 && !s.unbroken(name) {
			return false
		}
		s.ended++
	case api.VMState_VM_STATE_STOPPED:
		if !expected {
			s.t.Error(what)
		}
	default:
		if kills == 0 || v.GetReason() == "" {
			s.t.Errorf("%s; %d kills", what, kills)
		}
	}
	return true
}

// unbroken demands that the records of a count are 0, 1, 2, … It returns false if the server that keeps them is dead: they are there again when that is back.
func (s *soak) unbroken(vm string) bool {
	next := uint32(0)
	err := s.client.Output(s.t.Context(), vm, 0, false, func(_ uint64, record uint32) error {
		if record == 0 && strings.HasPrefix(vm, "again-") {
			next = 0 // it was reset before it was saved
		}
		if record != next {
			return fmt.Errorf("after record %d comes %d", int64(next)-1, record)
		}
		next++
		return nil
	})
	if status.Code(err) == codes.FailedPrecondition {
		s.t.Logf("output of VM %s: %v", vm, err)
		return false
	}
	if err != nil {
		s.t.Errorf("output of VM %s: %v", vm, err)
	}
	return true
}

// settle undoes what was done to the cluster, and demands that everything comes to rest.
func (s *soak) settle(linger time.Duration) {
	for _, server := range s.session.Cluster.Servers {
		s.startAgain(server.Name)
	}
	s.heal("a-1")
	s.rest("all servers take VMs", func(context.Context) error {
		if !s.command("server", "uncordon", "a-1", "a-2", "b-1", "b-2", "c-1", "c-2") || !s.command("balance", "mode", "off") {
			return errors.New("they do not")
		}
		return nil
	})
	for _, vm := range s.running() {
		s.command("vm", "resume", vm)
	}
	s.rest("operations end", s.operationsEnd)
	s.rest("VMs have ended or run, with all of their vCPUs", func(context.Context) error {
		for name, v := range s.all() {
			placed := 0
			for _, w := range v.GetWorkers() {
				placed += len(w.GetVcpus())
			}
			if !v.GetState().Ended() && (v.GetState() != api.VMState_VM_STATE_RUNNING || placed != int(v.GetVcpus())) {
				return fmt.Errorf("VM %s is %s, with %d of %d vCPUs in their places: %s", name, v.GetState().Word(), placed, v.GetVcpus(), v.GetReason())
			}
		}
		return nil
	})
	for end := time.Now().Add(min(soakLinger, linger)); time.Now().Before(end) && len(s.running()) > 0; s.pass(100 * time.Millisecond) {
		s.look()
	}
	for _, vm := range s.running() { // whose pages travel for a long time yet
		s.expect(vm)
		s.command("vm", "stop", vm)
	}
	s.rest("VMs end", func(context.Context) error {
		s.look()
		if left := s.running(); len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	s.rest("nothing is left of VMs", func(context.Context) error { return s.leftOver() })
	s.noDirectories()
}

// operationsEnd tells of an operation that has not ended.
func (s *soak) operationsEnd(ctx context.Context) error {
	return s.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		ops, err := svc.ListOperations(ctx, &api.ListOperationsRequest{})
		for _, op := range ops.GetOperations() {
			if op.GetState() == api.OperationState_OPERATION_STATE_RUNNING {
				return fmt.Errorf("operation %d, %s, goes on: %s", op.GetId(), op.GetSubject(), op.GetNote())
			}
		}
		return err
	})
}

// rest waits for something that comes to rest.
func (s *soak) rest(what string, ok func(context.Context) error) {
	s.t.Helper()
	defer s.slow(what, time.Now())
	s.until(soakSettle, what, ok)
}

// leftOver tells of processes of VMs and of those that lend them memory, and of memory that is still taken.
func (s *soak) leftOver() error {
	members, err := local.Find(s.dir)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Kind == local.KindWorker {
			return fmt.Errorf("process %d on %s, %s", m.PID, m.Server, m.Path)
		}
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), faultPatience)
	defer cancel()
	return s.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		r, err := svc.ListServers(ctx, &api.ListServersRequest{})
		for _, server := range r.GetServers() {
			if server.GetSlotsUsed() != 0 || server.GetMemoryUsedBytes() != 0 || server.GetState() != api.ServerState_SERVER_STATE_LIVE {
				return fmt.Errorf("server %s is %s, with %d slots and %d bytes used", server.GetName(), server.GetState().Word(), server.GetSlotsUsed(), server.GetMemoryUsedBytes())
			}
		}
		return err
	})
}
