package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// Cuts of real networks: each server lives in a network namespace of its own, joined by a bridge in one more. A cut takes a server's port of the
// bridge down, or one direction away. The side without a quorum must stop its guests before the other side starts them again: all clocks are
// the host's, so their times can be compared.

// namespaces is the network of a test.
type namespaces struct {
	t      *testing.T
	prefix string
	n      int
}

func ipCommand(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (n *namespaces) name(i int) string { return fmt.Sprintf("%s-%d", n.prefix, i) }
func (n *namespaces) hub() string       { return n.prefix + "-hub" }
func (n *namespaces) addr(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }
func (n *namespaces) in(i int, a ...string) error {
	return ipCommand(append([]string{"-n", n.name(i)}, a...)...)
}

// newNamespaces makes count namespaces that reach each other, or skips the test where that is not allowed.
func newNamespaces(t *testing.T, count int) *namespaces {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need the program ip (iproute2)")
	}
	n := &namespaces{t: t, prefix: fmt.Sprintf("cvt%d", os.Getpid()), n: count}
	t.Cleanup(n.remove)
	if err := ipCommand("netns", "add", n.hub()); err != nil {
		t.Skip("no network namespace can be made here: ", err)
	}
	if err := ipCommand("-n", n.hub(), "link", "add", "br0", "type", "bridge"); err != nil {
		t.Skip("no bridge can be made here: ", err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(ipCommand("-n", n.hub(), "link", "set", "br0", "up"))
	for i := range count {
		port := fmt.Sprintf("p%d", i)
		must(ipCommand("netns", "add", n.name(i)))
		must(ipCommand("link", "add", "eth0", "netns", n.name(i), "type", "veth", "peer", "name", port, "netns", n.hub()))
		must(ipCommand("-n", n.hub(), "link", "set", port, "master", "br0", "up"))
		must(n.in(i, "addr", "add", n.addr(i)+"/24", "dev", "eth0"))
		must(n.in(i, "link", "set", "eth0", "up"))
		must(n.in(i, "link", "set", "lo", "up"))
	}
	return n
}

func (n *namespaces) remove() {
	for i := range n.n {
		_ = ipCommand("netns", "del", n.name(i))
	}
	_ = ipCommand("netns", "del", n.hub())
}

// cut takes a server off the network, or lets it on again.
func (n *namespaces) cut(i int, off bool) {
	n.t.Helper()
	if err := n.setPort(i, off); err != nil {
		n.t.Fatal(err)
	}
}

func (n *namespaces) setPort(i int, off bool) error {
	state := "up"
	if off {
		state = "down"
	}
	return ipCommand("-n", n.hub(), "link", "set", fmt.Sprintf("p%d", i), state)
}

// deafen keeps what one server sends to another from leaving, or lets it out again; the other direction stays.
func (n *namespaces) deafen(from, to int, off bool) {
	n.t.Helper()
	if err := n.setRoute(from, to, off); err != nil {
		n.t.Fatal(err)
	}
}

func (n *namespaces) setRoute(from, to int, off bool) error {
	return n.in(from, "route", addOrDel(off), "blackhole", n.addr(to)+"/32")
}

func addOrDel(add bool) string {
	if add {
		return "add"
	}
	return "del"
}

// silence takes away what one server's workers send to another's; what serve processes say to each other passes: they listen on ports below those that
// the kernel gives to workers and to whoever connects.
func (n *namespaces) silence(from, to int, off bool) {
	n.t.Helper()
	if err := n.setRule(from, to, off); err != nil {
		n.t.Fatal(err)
	}
}

func (n *namespaces) setRule(from, to int, off bool) error {
	const given = "32768-60999" // net.ipv4.ip_local_port_range of a new namespace
	return n.in(from, "rule", addOrDel(off), "to", n.addr(to)+"/32", "ipproto", "tcp", "sport", given, "dport", given, "blackhole")
}

// cutCluster is a cluster whose servers live in namespaces, with a protected VM.
type cutCluster struct {
	failover
	net *namespaces
}

// startCut lays out a cluster as usual, gives its servers addresses in the namespaces, and starts them there.
func startCut(t *testing.T, cells int) *cutCluster {
	seed := envNumber(t, "NETCUT_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: NETCUT_SEED=%d go test -run %s ./tests", seed, t.Name())
	c := &cutCluster{failover: *newFailover(t, rand.New(rand.NewPCG(seed, 4)), ""), net: newNamespaces(t, cells)}
	c.cells = cells
	c.start()
	c.net.house(&c.chaos)
	return c
}

// house begins a cluster that was just started anew, with its servers in the namespaces.
func (n *namespaces) house(c *chaos) {
	t := c.t
	c.client.Close()
	if _, err := local.Down(c.dir); err != nil {
		t.Fatal(err)
	}
	loopback := regexp.MustCompile(`127\.0\.0\.1:(\d+)`)
	owner := map[string]int{} // of a port
	servers := c.session.Cluster.Servers
	for i, s := range servers {
		text, err := os.ReadFile(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		before, _, _ := strings.Cut(string(text), "initial")
		for _, m := range loopback.FindAllStringSubmatch(before, -1) {
			owner[m[1]] = i
		}
	}
	for i, s := range servers {
		text, err := os.ReadFile(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		now := loopback.ReplaceAllStringFunc(string(text), func(a string) string {
			_, port, _ := strings.Cut(a, ":")
			return n.addr(owner[port]) + ":" + port
		})
		now = strings.ReplaceAll(now, `"127.0.0.1"`, fmt.Sprintf("%q", n.addr(i)))
		if err := errors.Join(os.WriteFile(s.Config, []byte(now), 0o600), os.RemoveAll(s.DataDir), os.Mkdir(s.DataDir, 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := n.startIn(c, i); err != nil {
			t.Fatal(err)
		}
	}
	c.client = nil
	c.until(time.Minute, "servers answer", func(ctx context.Context) (err error) {
		c.client, err = api.Dial(ctx, c.session.Cluster.Addrs())
		return err
	})
	for _, s := range servers {
		c.heal(s.Name)
	}
}

// startIn starts a server in its namespace.
func (n *namespaces) startIn(c *chaos, i int) error {
	wrapper := filepath.Join(c.dir, fmt.Sprintf("in-%d", i))
	script := fmt.Sprintf("#!/bin/sh\nexec ip netns exec %s %s \"$@\"\n", n.name(i), program)
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
		return err
	}
	_, err := local.StartServer(c.dir, c.session.Cluster.Servers[i].Name, wrapper)
	return err
}

// askOthers asks the cluster from now on by its other servers: one that is about to be cut off would tell what it last knew.
func (c *cutCluster) askOthers(than int) {
	c.t.Helper()
	var addrs []string
	for i, s := range c.session.Cluster.Servers {
		if i != than {
			addrs = append(addrs, s.API)
		}
	}
	client, err := api.Dial(c.t.Context(), strings.Join(addrs, ","))
	if err != nil {
		c.t.Fatal(err)
	}
	former := c.client
	c.client = client
	c.reader.through(client)
	former.Close()
}

func (c *cutCluster) index(server string) int {
	for i, s := range c.session.Cluster.Servers {
		if s.Name == server {
			return i
		}
	}
	c.t.Fatalf("no server %s", server)
	return 0
}

// The cluster splits round after round: the VM's home, or its standby, is cut off from all others, in both directions or only in what it sends, or
// only its workers are. The VM keeps a journal on a mirrored disk, and its output, seen and on the disk, must stay unbroken. When the home loses its
// quorum its guest must stop before the others start it. NETCUT_ROUNDS and NETCUT_CUTS choose how many cuts, and of what kind.
func TestNetworkCut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	c := startCut(t, 3)
	c.payload, c.args, c.disks = "journal", "0 1000 64", []*api.Disk{{Name: "journal", SizeBytes: 4 << 20, Mirrors: 1}}
	c.span, c.vcpus = []string{"c"}, 1
	c.run()
	inTurn := []string{"split home", "workers", "one way home"}
	kinds := inTurn
	if given := os.Getenv("NETCUT_CUTS"); given != "" {
		kinds = strings.Split(given, ",")
	} else if os.Getenv("NETCUT_ROUNDS") != "" {
		kinds = append(kinds, "split standby", "one way standby", "split home", "one way home")
	}
	for round := range int(envNumber(t, "NETCUT_ROUNDS", uint64(len(kinds)))) {
		kind := kinds[round%len(kinds)]
		if round >= len(kinds) {
			kind = kinds[c.rng.IntN(len(kinds))]
		}
		c.cutRound(fmt.Sprintf("round %d: %s", round, kind), kind)
		if t.Failed() {
			return
		}
	}
	c.report()
}

// cutWhom tells which server a cut isolates.
func (c *cutCluster) cutWhom(kind string, vm *api.VM) int {
	if strings.HasSuffix(kind, "standby") || kind == "workers" && c.rng.IntN(2) == 0 {
		return c.index(c.workerOf(vm, "standby"))
	}
	return c.index(vm.GetHome())
}

// sever makes or ends a cut.
func (c *cutCluster) sever(kind string, whom int, off bool) {
	if strings.HasPrefix(kind, "split") {
		c.net.cut(whom, off)
		return
	}
	for i := range c.net.n {
		switch {
		case i == whom:
		case kind == "workers":
			c.net.silence(whom, i, off)
			c.net.silence(i, whom, off)
		default:
			c.net.deafen(whom, i, off) // it hears the others, they do not hear it
		}
	}
}

func (c *cutCluster) cutRound(what, kind string) {
	vm := c.awaitSafe(what)
	whom := c.cutWhom(kind, vm)
	name := c.session.Cluster.Servers[whom].Name
	c.askOthers(whom)
	c.reader.await(c.t, what, c.reader.count()+100)
	<-time.After(c.upTo(200 * time.Millisecond))
	began, before, l := time.Now(), c.reader.count(), c.followLogs()
	c.sever(kind, whom, true)
	if name == vm.GetHome() && kind != "workers" {
		c.until(recoverPatience, what+": the VM goes on elsewhere", func(ctx context.Context) error {
			now, err := c.vm(ctx)
			if err == nil && (now.GetRecoveries() == vm.GetRecoveries() || now.GetHome() == vm.GetHome()) {
				err = fmt.Errorf("its home is %s, after %d recoveries", now.GetHome(), now.GetRecoveries())
			}
			return err
		})
	}
	c.reader.await(c.t, what+": output goes on", before+700)
	gap, first := c.reader.longestGap(began)
	if name == vm.GetHome() && kind != "workers" {
		c.stoppedFirst(what, l, name)
	}
	c.sever(kind, whom, false)
	c.heal(name)
	after := c.awaitSafe(what + ": after the cut")
	c.check(what)
	c.t.Logf("%s of %s (home %s): first new record after %v, longest gap %v, recoveries %d -> %d", what, name, vm.GetHome(), first.Round(time.Millisecond),
		gap.Round(time.Millisecond), vm.GetRecoveries(), after.GetRecoveries())
	c.took[kind], c.gaps[kind] = append(c.took[kind], first), append(c.gaps[kind], gap)
}

// stoppedFirst demands that the guest had stopped at its former home, whose lease had lapsed, before another server began to start it. All servers' clocks
// are the host's.
func (c *cutCluster) stoppedFirst(what string, l *logs, from string) {
	c.t.Helper()
	var stopped, until, started int64
	var to string
	c.until(faultPatience, what+": both sides have logged what they did", func(context.Context) error {
		l.poll()
		var ok bool
		if stopped, ok = l.number(from, "at_us", "fence", `"on":true`); !ok {
			return fmt.Errorf("%s has not stopped its guest", from)
		}
		until, _ = l.number(from, "lease_until_us", "fence", `"on":true`)
		if to, _ = l.first(logRemap); to == "" {
			return errors.New("no server has taken over")
		}
		started, _ = l.number(to, "at_us", logRemap)
		return nil
	})
	c.t.Logf("%s: the lease of %s ended %d us, its guest stopped %d us before %s began to start it", what, from, started-until, started-stopped, to)
	if until >= started || stopped >= started {
		c.t.Errorf("%s: the guest ran on two sides: lease until %d, stopped at %d, started at %d", what, until, stopped, started)
	}
}

// Only the workers' connections between two cells are cut, all serve processes hear each other. A VM over both waits for pages that do not come. Nobody
// may wait for ever: a protected VM goes on with what is left, any other ends and says why.
func TestPagePlaneCut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	c := startCut(t, 3)
	c.payload, c.args, c.span, c.vcpus = "count", "0 1000", []string{"a", "b"}, 2
	c.run()
	lone := &api.VMSpec{Name: "lone", Vcpus: 2, Span: []string{"a", "b"}, Payload: &api.VMSpec_Builtin{Builtin: "lock"}, Args: "2000000000",
		MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
	c.until(faultPatience, "creating the other VM", func(ctx context.Context) error { _, err := c.client.Run(ctx, lone, nil); return err })
	c.until(faultPatience, "the other VM runs", func(ctx context.Context) error {
		vms, err := c.vms(ctx)
		if err == nil && vms["lone"].GetState() != api.VMState_VM_STATE_RUNNING {
			err = fmt.Errorf("it is %s", vms["lone"].GetState().Word())
		}
		return err
	})
	c.awaitSafe("before the cut")
	c.reader.await(t, "before the cut", c.reader.count()+100)
	a, b := c.index("a-1"), c.index("b-1")
	began, before := time.Now(), c.reader.count()
	for _, off := range []bool{true, false} {
		c.net.silence(a, b, off)
		c.net.silence(b, a, off)
		if !off {
			break
		}
		c.reader.await(t, "page plane cut: output goes on", before+700)
		gap, _ := c.reader.longestGap(began)
		c.until(safePatience, "page plane cut: the other VM ends", func(ctx context.Context) error {
			vms, err := c.vms(ctx)
			if other := vms["lone"]; err == nil && (!other.GetState().Ended() || other.GetReason() == "") {
				err = fmt.Errorf("it is %s: %s", other.GetState().Word(), other.GetReason())
			} else if err == nil {
				t.Logf("after %v: VM lone is %s: %s", time.Since(began).Round(time.Millisecond), other.GetState().Word(), other.GetReason())
			}
			return err
		})
		t.Logf("VM %s: longest gap %v", failoverVM, gap.Round(time.Millisecond))
	}
	for _, s := range c.session.Cluster.Servers {
		c.heal(s.Name)
	}
	c.awaitSafe("after the cut")
	c.check("after the cut")
}
