package tests

import (
	"bufio"
	"context"
	"encoding/json"
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
	state := "up"
	if off {
		state = "down"
	}
	if err := ipCommand("-n", n.hub(), "link", "set", fmt.Sprintf("p%d", i), state); err != nil {
		n.t.Fatal(err)
	}
}

// deafen keeps what one server sends to another from leaving, or lets it out again; the other direction stays.
func (n *namespaces) deafen(from, to int, off bool) {
	n.t.Helper()
	op := "del"
	if off {
		op = "add"
	}
	if err := n.in(from, "route", op, "blackhole", n.addr(to)+"/32"); err != nil {
		n.t.Fatal(err)
	}
}

// cutCluster is a cluster whose servers live in namespaces, with a protected VM whose home is the last server.
type cutCluster struct {
	failover
	net *namespaces
}

// startCut lays out a cluster as usual, gives its servers addresses in the namespaces, and starts them there.
func startCut(t *testing.T, cells int) *cutCluster {
	c := &cutCluster{failover: failover{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(1, 4)), cells: cells}, took: map[string][]time.Duration{}}, net: newNamespaces(t, cells)}
	c.start()
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
			return c.net.addr(owner[port]) + ":" + port
		})
		now = strings.ReplaceAll(now, `"127.0.0.1"`, fmt.Sprintf("%q", c.net.addr(i)))
		if err := errors.Join(os.WriteFile(s.Config, []byte(now), 0o600), os.RemoveAll(s.DataDir), os.Mkdir(s.DataDir, 0o700)); err != nil {
			t.Fatal(err)
		}
		c.startIn(i)
	}
	c.client = nil
	c.until(time.Minute, "servers answer", func(ctx context.Context) (err error) {
		c.client, err = api.Dial(ctx, c.session.Cluster.Addrs())
		return err
	})
	for _, s := range servers {
		c.heal(s.Name)
	}
	return c
}

// startIn starts a server in its namespace.
func (c *cutCluster) startIn(i int) {
	c.t.Helper()
	wrapper := filepath.Join(c.dir, fmt.Sprintf("in-%d", i))
	script := fmt.Sprintf("#!/bin/sh\nexec ip netns exec %s %s \"$@\"\n", c.net.name(i), program)
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
		c.t.Fatal(err)
	}
	if _, err := local.StartServer(c.dir, c.session.Cluster.Servers[i].Name, wrapper); err != nil {
		c.t.Fatal(err)
	}
}

// logged returns a number from the last line of a VM's worker logs of a server that has all the words; ok is false if there is none.
func (c *cutCluster) logged(server, field string, words ...string) (found int64, ok bool) {
	files, _ := filepath.Glob(filepath.Join(c.dir, server, "workers", "*", "worker.log"))
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			all := true
			for _, w := range words {
				all = all && strings.Contains(lines.Text(), w)
			}
			var line map[string]any
			if !all || json.Unmarshal(lines.Bytes(), &line) != nil {
				continue
			}
			if v, is := line[field].(float64); is {
				found, ok = int64(v), true
			}
		}
	}
	return found, ok
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

// The cluster splits; the side of the VM's home has no quorum.
func TestNetworkCut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	c := startCut(t, 3)
	spec := &api.VMSpec{Name: failoverVM, Vcpus: 1, Span: []string{"c"}, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 1000",
		MemoryBytes: uint64(64 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "replica"}
	c.until(faultPatience, "creating the VM", func(ctx context.Context) error { _, err := c.client.Run(ctx, spec, nil); return err })
	c.reader = newReader(t.Context(), c.client, failoverVM)
	for _, kind := range []string{"split", "one way"} {
		vm := c.awaitSafe("before the cut: " + kind)
		home := c.index(vm.GetHome())
		c.reader.await(t, "before the cut", c.reader.count()+100)
		cut := func(off bool) {
			if kind == "split" {
				c.net.cut(home, off)
				return
			}
			for i := range c.net.n {
				if i != home {
					c.net.deafen(home, i, off) // it hears the others, they do not hear it
				}
			}
		}
		recoveries := vm.GetRecoveries()
		cut(true)
		c.until(recoverPatience, kind+": the VM goes on elsewhere", func(ctx context.Context) error {
			now, err := c.vm(ctx)
			if err == nil && (now.GetRecoveries() == recoveries || now.GetHome() == vm.GetHome()) {
				err = fmt.Errorf("its home is %s, after %d recoveries", now.GetHome(), now.GetRecoveries())
			}
			vm = now
			return err
		})
		c.reader.await(t, kind+": output goes on", c.reader.count()+200)
		var stopped, until, started int64
		c.until(faultPatience, kind+": both sides have logged what they did", func(context.Context) error {
			var ok, ok2 bool
			from := c.session.Cluster.Servers[home].Name
			if stopped, ok = c.logged(from, "at_us", "fence", `"on":true`); !ok {
				return fmt.Errorf("%s has not stopped its guest", from)
			}
			until, _ = c.logged(from, "lease_until_us", "fence", `"on":true`)
			if started, ok2 = c.logged(vm.GetHome(), "at_us", "goes back to the last checkpoint"); !ok2 {
				return fmt.Errorf("%s has not taken over", vm.GetHome())
			}
			return nil
		})
		t.Logf("%s: the lease of %s ended %d us, its guest stopped %d us before %s began to start it", kind, c.session.Cluster.Servers[home].Name,
			started-until, started-stopped, vm.GetHome())
		if until >= started || stopped >= started {
			t.Errorf("%s: the guest ran on two sides: lease until %d, stopped at %d, started at %d", kind, until, stopped, started)
		}
		cut(false)
		c.heal(c.session.Cluster.Servers[home].Name)
		c.awaitSafe("after the cut: " + kind)
		c.check(kind)
	}
}
