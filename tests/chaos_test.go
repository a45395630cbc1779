package tests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/tests/setting"
)

// Chaos: rounds of random faults against a cluster with VMs inside each cell and across cells. After each: only VMs that depended on the victim
// may have ended, everything answers, and all servers come back. CHAOS_ROUNDS and CHAOS_SEED choose how many and which.

const (
	chaosRounds   = 4 // by default; `make chaos` does a hundred
	healPatience  = 90 * time.Second
	faultPatience = 60 * time.Second
)

type chaos struct {
	t       *testing.T
	dir     string
	client  *api.Client
	rng     *rand.Rand
	slots   int           // of each server; 0: 8
	lease   time.Duration // of the servers; 0: the default
	cells   int           // 0: 3
	session *local.Session
	logged  map[string]int // length of each server's log at the round's beginning
}

// chaosVMs are always made to run before a round.
var chaosVMs = []*api.VMSpec{
	{Name: "in-a", Vcpus: 1, Span: []string{"a"}},
	{Name: "in-b", Vcpus: 1, Span: []string{"b"}},
	{Name: "in-c", Vcpus: 1, Span: []string{"c"}},
	{Name: "over-ab", Vcpus: 2, Span: []string{"a", "b"}},
	{Name: "over-bc", Vcpus: 4, Span: []string{"b", "c"}},
}

func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "CHAOS_ROUNDS", chaosRounds), envNumber(t, "CHAOS_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: CHAOS_SEED=%d CHAOS_ROUNDS=%d go test -run TestChaos ./tests", seed, rounds)
	c := &chaos{t: t, rng: rand.New(rand.NewPCG(seed, 1))}
	c.start()
	for round := range rounds {
		c.round(int(round))
		if t.Failed() {
			return
		}
	}
}

func envNumber(t *testing.T, name string, def uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, text)
	}
	return n
}

func needKVM(t *testing.T) {
	t.Helper()
	switch why := kvmMissing(); {
	case why == "":
	case os.Getenv("REQUIRE_KVM") == "1":
		t.Fatal("REQUIRE_KVM=1, but no guest can run here: ", why)
	default:
		t.Skip("no guest can run here: ", why)
	}
}

func (c *chaos) start() {
	c.startWith(local.Shape{Cells: cmp.Or(c.cells, 3), PerCell: 1, Slots: max(8, c.slots), Memory: 512 * ident.MiB, Lease: c.lease, LogLevel: serverLogLevel()})
}

// startWith starts a cluster, of which nothing is left after the test.
func (c *chaos) startWith(shape local.Shape) {
	t := c.t
	dir, err := os.MkdirTemp(setting.Dir(), "cvx-")
	if err != nil {
		t.Fatal(err)
	}
	if c.dir, err = local.Abs(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.finish)
	if c.session, err = local.Start(local.Options{Dir: c.dir, Exe: program, Shape: shape}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.session.WaitLive(ctx, func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	if c.client, err = api.Dial(ctx, c.session.Cluster.Addrs()); err != nil {
		t.Fatal(err)
	}
}

// finish takes the cluster down whatever state it is in, and demands that nothing is left.
func (c *chaos) finish() {
	if c.client != nil {
		c.client.Close()
	}
	if _, err := local.Down(c.dir); err != nil {
		c.t.Error(err)
	}
	left, err := local.Find(c.dir)
	if err != nil || len(left) > 0 {
		c.t.Errorf("left after down: %v, %v", left, err)
	}
	if c.t.Failed() {
		c.t.Logf("files are kept in %s", c.dir)
		return
	}
	_ = os.RemoveAll(c.dir)
}

// until waits for something, with a deadline.
func (c *chaos) until(patience time.Duration, what string, ok func(context.Context) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := ok(ctx)
		if err == nil {
			return
		}
		if last == nil || ctx.Err() == nil { // that time is up says nothing
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("%s: not within %v: %v", what, patience, last)
		}
	}
}

// vms returns all VMs by name.
func (c *chaos) vms(ctx context.Context) (map[string]*api.VM, error) {
	out := make(map[string]*api.VM)
	err := c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListVMs(ctx, &api.ListVMsRequest{})
		for _, v := range resp.GetVms() {
			out[v.GetName()] = v
		}
		return err
	})
	return out, err
}

// populate makes all VMs run; those that ended are forgotten first.
func (c *chaos) populate() {
	for _, spec := range chaosVMs {
		c.until(faultPatience, "starting VM "+spec.GetName(), func(ctx context.Context) error {
			vms, err := c.vms(ctx)
			if err != nil {
				return err
			}
			v := vms[spec.GetName()]
			switch {
			case v.GetState() == api.VMState_VM_STATE_RUNNING:
				return nil
			case v == nil:
				run := &api.VMSpec{Name: spec.GetName(), Vcpus: spec.GetVcpus(), Span: spec.GetSpan(), Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 100",
					MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
				if _, err := c.client.Run(ctx, run); err != nil {
					return err
				}
			case v.GetState().Ended():
				if err := c.remove(ctx, v.GetName()); err != nil {
					return err
				}
			}
			return fmt.Errorf("it is %s", v.GetState().Word())
		})
	}
}

func (c *chaos) remove(ctx context.Context, name string) error {
	return c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		_, err := svc.RemoveVM(ctx, &api.RemoveVMRequest{Name: name})
		return err
	})
}

// fault does something bad to a cell and returns what, and how to undo what does not undo itself.
func (c *chaos) fault(cell string) (what string, undo func()) {
	server := cell + "-1"
	members, err := local.Find(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	members = slices.DeleteFunc(members, func(m local.Member) bool { return m.Server != server })
	signal := func(sig syscall.Signal, wanted func(local.Member) bool) {
		for _, m := range members {
			if wanted(m) {
				_ = syscall.Kill(m.PID, sig)
			}
		}
		for _, m := range members {
			if sig == syscall.SIGKILL && wanted(m) {
				c.until(faultPatience, "a killed process ends", func(context.Context) error {
					if m.Alive() {
						return fmt.Errorf("process %d is there", m.PID)
					}
					return nil
				})
			}
		}
	}
	all := func(local.Member) bool { return true }
	serve := func(m local.Member) bool { return m.Kind == local.KindServe }
	pause := time.Duration(c.rng.IntN(3500)) * time.Millisecond
	switch c.rng.IntN(5) {
	case 0:
		signal(syscall.SIGKILL, all)
		return "kill -9 of all of " + server, func() {}
	case 1:
		signal(syscall.SIGKILL, serve)
		return "kill -9 of the serve process of " + server, func() {}
	case 2:
		signal(syscall.SIGKILL, func(m local.Member) bool { return m.Kind == local.KindWorker })
		return "kill -9 of all workers of " + server, func() {}
	case 3:
		signal(syscall.SIGSTOP, all)
		return fmt.Sprintf("SIGSTOP of all of %s for %v", server, pause), func() { <-time.After(pause); signal(syscall.SIGCONT, all) }
	default:
		signal(syscall.SIGSTOP, serve)
		return fmt.Sprintf("SIGSTOP of the serve process of %s for %v", server, pause), func() { <-time.After(pause); signal(syscall.SIGCONT, serve) }
	}
}

func (c *chaos) round(n int) {
	t := c.t
	c.populate()
	before, err := c.vms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.noteLogs()
	cell := string(rune('a' + c.rng.IntN(3)))
	what, undo := c.fault(cell)
	t.Logf("round %d: %s", n, what)
	healed := make(chan struct{})
	go func() { undo(); close(healed) }()
	c.until(faultPatience, what+": the cluster answers", func(ctx context.Context) error { _, err := c.vms(ctx); return err })
	<-healed
	c.heal(cell + "-1")
	c.until(faultPatience, what+": bystanders run on", func(ctx context.Context) error {
		now, err := c.vms(ctx)
		if err != nil {
			return err
		}
		for name, v := range before {
			if !slices.Contains(v.GetCells(), cell) && now[name].GetId() == v.GetId() && now[name].GetState() != api.VMState_VM_STATE_RUNNING {
				if late := c.starved(v); late != "" {
					t.Logf("%s: VM %s is %s, but the host starved its server: %s", what, name, now[name].GetState().Word(), late)
					delete(before, name)
					continue
				}
				t.Fatalf("%s: VM %s does not depend on cell %s, but is %s: %s", what, name, cell, now[name].GetState().Word(), now[name].GetReason())
			}
			if err := settled(now[name]); err != nil {
				return err
			}
		}
		return nil
	})
	for name, v := range before {
		if !slices.Contains(v.GetCells(), cell) {
			c.grows(what, name)
		}
	}
}

// starved returns the line in which a server of the VM's, other than the victim, says that it was not run for longer than its lease. Such a server
// is rightly excluded: the fault is the host's.
func (c *chaos) starved(v *api.VM) string {
	for _, w := range v.GetWorkers() {
		raw, err := os.ReadFile(c.session.Cluster.Server(w.GetServer()).Log)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(raw[min(c.logged[w.GetServer()], len(raw)):]), "\n") {
			m := stallPattern.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			if late, err := strconv.ParseFloat(m[1], 64); err == nil && late > 1000 {
				return line
			}
		}
	}
	return ""
}

// stallPattern finds how late a server was, in milliseconds, in its log.
var stallPattern = regexp.MustCompile(`(?:not run in time|took long).*(?:late|took)=([0-9.]+)`)

// noteLogs notes how long the logs are now.
func (c *chaos) noteLogs() {
	c.logged = make(map[string]int)
	for _, s := range c.session.Cluster.Servers {
		if st, err := os.Stat(s.Log); err == nil {
			c.logged[s.Name] = int(st.Size())
		}
	}
}

// settled tells whether what the cluster believes of a VM is so: it has ended, or it runs and all of its processes exist.
func settled(v *api.VM) error {
	switch {
	case v.GetState().Ended():
		return nil
	case v.GetState() != api.VMState_VM_STATE_RUNNING:
		return fmt.Errorf("VM %s is %s", v.GetName(), v.GetState().Word())
	}
	for _, w := range v.GetWorkers() {
		if !(local.Process{PID: int(w.GetPid()), StartTicks: w.GetPidStartTicks()}).Alive() {
			return fmt.Errorf("VM %s counts as running, but its worker %d on %s is gone", v.GetName(), w.GetPid(), w.GetServer())
		}
	}
	return nil
}

// heal starts the server again if its process is gone, and waits until all are live.
func (c *chaos) heal(server string) {
	members, err := local.Find(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	if !slices.ContainsFunc(members, func(m local.Member) bool { return m.Server == server && m.Kind == local.KindServe }) {
		if _, err := local.StartServer(c.dir, server, program); err != nil && !strings.Contains(err.Error(), "runs already") {
			c.t.Fatal(err)
		}
	}
	// Its own word counts: the others may still take it for what it was before.
	c.until(healPatience, "all servers are live again", func(ctx context.Context) error {
		own, err := api.Dial(ctx, c.session.Cluster.Server(server).API)
		if err != nil {
			return err
		}
		defer own.Close()
		st, err := own.API().Status(ctx, &api.StatusRequest{})
		if err == nil && (st.GetServersLive() != st.GetServersTotal() || !st.GetQuorum() || st.GetServerState() != api.ServerState_SERVER_STATE_LIVE) {
			err = fmt.Errorf("%d of %d live, quorum %v, it is %s", st.GetServersLive(), st.GetServersTotal(), st.GetQuorum(), st.GetServerState().Word())
		}
		return err
	})
}

// grows demands that a VM's output is 0, 1, 2, … and gets longer.
func (c *chaos) grows(what, vm string) {
	first := -1
	c.until(faultPatience, what+": output of VM "+vm, func(ctx context.Context) error {
		n := 0
		err := c.client.Output(ctx, vm, 0, false, func(at uint64, record uint32) error {
			if uint64(record) != at {
				return fmt.Errorf("record %d is %d", at, record)
			}
			n++
			return nil
		})
		if err == nil && first < 0 {
			first = n
		}
		if err == nil && n <= first {
			err = errors.New("it does not grow")
		}
		return err
	})
}
