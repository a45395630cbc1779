package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/trust"
)

// alive tells whether the worker's process runs.
func alive(w *api.Worker) bool {
	p, err := openProcess(int(w.Pid), w.PidStartTicks)
	if err != nil {
		return false
	}
	defer p.Close()
	return !p.gone()
}

// A serve process that comes back within its lease goes on as the same incarnation, with the same workers.
func TestRestartKeepsTheWorkers(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	a, b := c.servers[0], c.servers[1]
	if _, err := a.run("web", "", 2, "a", "b"); err != nil {
		t.Fatal(err)
	}
	before := b.wait("web", api.WaitVMRequest_UNTIL_STARTED)
	a.stop()
	a.start()
	eventually(t, "a-1 goes on", func() bool { st := a.status(); return st != nil && st.Quorum && st.ServersLive == 3 })
	vm, err := a.client.GetVM(a.ctx(), &api.GetVMRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if vm.Vm.State != api.VMState_VM_STATE_RUNNING || vm.Vm.Workers[0].Pid != before.Workers[0].Pid || !alive(vm.Vm.Workers[0]) {
		t.Errorf("before: %v\nafter: %v", before, vm.Vm)
	}
	if _, err := a.client.StopVM(a.ctx(), &api.StopVMRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
}

// A server whose lease lapsed is excluded; the VMs that depended on it are lost and no others; it comes back as new, and what is left of
// its old incarnation is gone before.
func TestLostServerComesBackAsNew(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	a, b := c.servers[0], c.servers[1]
	if _, err := a.run("dependant", "", 2, "a", "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.run("bystander", "", 2, "b", "c"); err != nil {
		t.Fatal(err)
	}
	b.wait("bystander", api.WaitVMRequest_UNTIL_STARTED)
	vm := b.wait("dependant", api.WaitVMRequest_UNTIL_STARTED)
	old := vm.Workers[0]
	a.stop()
	began := time.Now()
	lost := b.wait("dependant", api.WaitVMRequest_UNTIL_ENDED)
	t.Logf("lost after %v: %s", time.Since(began), lost.Reason)
	if lost.State != api.VMState_VM_STATE_LOST || !strings.Contains(lost.Reason, "cell a") || !lost.Workers[0].Lost || lost.Workers[1].Lost {
		t.Errorf("dependant: %v", lost)
	}
	eventually(t, "the surviving worker of the lost VM goes", func() bool { return !alive(lost.Workers[1]) })
	if r, err := b.client.GetVM(b.ctx(), &api.GetVMRequest{Name: "bystander"}); err != nil || r.Vm.State != api.VMState_VM_STATE_RUNNING {
		t.Errorf("bystander: %v %v", r, err)
	}
	if !alive(old) {
		t.Fatal("a worker should survive its serve")
	}
	a.start()
	c.awaitLive(3, c.servers...)
	if alive(old) {
		t.Error("the server was admitted anew although a worker of its old incarnation still runs")
	}
	r, err := b.client.ListServers(b.ctx(), &api.ListServersRequest{})
	if err != nil || r.Servers[0].Incarnation <= r.Servers[1].Incarnation {
		t.Errorf("servers %v %v", r, err)
	}
}

func TestServerJoins(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	dir := filepath.Dir(c.servers[0].cfg.DataDir)
	peer := config.Peer{Name: "d-1", Cell: "d", Role: config.RoleServer, Peer: freeAddr(t), Gossip: freeAddr(t)}
	d := &testServer{t: t, cfg: testConfig(dir, peer)}
	for _, s := range c.servers {
		d.cfg.Join = append(d.cfg.Join, s.cfg.Listen.Peer)
	}
	d.start()
	c.servers = append(c.servers, d)
	c.awaitLive(4, c.servers...)
	if _, err := d.run("web", "", 1, "d"); err != nil {
		t.Fatal(err)
	}
	if vm := d.wait("web", api.WaitVMRequest_UNTIL_STARTED); vm.Home != "d-1" || vm.State != api.VMState_VM_STATE_RUNNING {
		t.Errorf("got %v", vm)
	}
	d.stop()
	d.start() // from its own disk now
	c.awaitLive(4, c.servers...)
}

func TestStopServerTakesItsWorkers(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	a, b := c.servers[0], c.servers[1]
	if _, err := a.run("web", "", 1, "a"); err != nil {
		t.Fatal(err)
	}
	vm := b.wait("web", api.WaitVMRequest_UNTIL_STARTED)
	if _, err := a.client.StopServer(a.ctx(), &api.StopServerRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-a.done:
		a.done <- err
		if err != nil {
			t.Errorf("stopped with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it does not stop")
	}
	if alive(vm.Workers[0]) {
		t.Error("a worker is left")
	}
}

// runAlone runs a server that is expected to refuse to start.
func runAlone(t *testing.T, cfg *config.Server) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return RunWith(ctx, cfg, Options{SkipProbe: true, WorkerCommand: []string{"/bin/false"}})
}

func TestRefusesToStart(t *testing.T) {
	c := newCluster(t, 1)
	c.awaitLive(1, c.servers...)
	running := c.servers[0].cfg
	fresh := func() *config.Server {
		cfg := *running
		dir, err := os.MkdirTemp("", "cv")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		cfg.DataDir = dir
		cfg.Listen = config.Listen{Peer: freeAddr(t), Gossip: freeAddr(t), Pages: "127.0.0.1", APIUnix: filepath.Join(dir, "api.sock"), APITCP: freeAddr(t)}
		return &cfg
	}

	used := fresh()
	used.Listen.APITCP = ""
	used.DataDir = running.DataDir
	if err := runAlone(t, used); !errors.Is(err, disk.ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("data directory in use: %v", err)
	}
	socket := fresh()
	socket.Listen.APITCP = ""
	socket.Listen.APIUnix = running.Listen.APIUnix
	if err := runAlone(t, socket); err == nil || !strings.Contains(err.Error(), "in use by another server") {
		t.Errorf("API socket in use: %v", err)
	}
	authority, err := trust.Create(filepath.Join(t.TempDir(), "tls"), running.ClusterID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	keys := config.TLS(issued(t, authority, trust.RoleServer, string(running.Name)))
	for _, what := range []string{"peer", "gossip", "api"} {
		cfg := fresh()
		cfg.TLS = keys
		addr := map[string]*string{"peer": &cfg.Listen.Peer, "gossip": &cfg.Listen.Gossip, "api": &cfg.Listen.APITCP}[what]
		l, err := net.Listen("tcp", *addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := runAlone(t, cfg); err == nil || !strings.Contains(err.Error(), *addr) {
			t.Errorf("%s address in use: %v", what, err)
		}
		l.Close()
	}
	if err := runAlone(t, fresh()); err == nil || !strings.Contains(err.Error(), "without a certificate") {
		t.Errorf("API on TCP without a certificate: %v", err)
	}
	other := fresh()
	other.TLS = config.TLS(issued(t, authority, trust.RoleServer, "z-9"))
	if err := runAlone(t, other); err == nil || !strings.Contains(err.Error(), "is that of server z-9") {
		t.Errorf("another server's certificate: %v", err)
	}

	c.servers[0].stop()
	moved := *running
	moved.ClusterID = strings.Repeat("d2", 16)
	if err := runAlone(t, &moved); !errors.Is(err, disk.ErrOtherCluster) {
		t.Errorf("data directory of another cluster: %v", err)
	}
	db := filepath.Join(running.DataDir, "raft.db")
	if err := os.Truncate(db, 5000); err != nil {
		t.Fatal(err)
	}
	if err := runAlone(t, running); !errors.Is(err, disk.ErrCorrupt) {
		t.Errorf("damaged log: %v", err)
	}
}

// When the disk is full a server stops with a clear error, takes its workers along, and loses nothing that was agreed.
func TestFullDiskStopsTheServer(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	a, b := c.servers[0], c.servers[1]
	a.stop()
	c.awaitLive(2, b, c.servers[2])
	keep := filepath.Join(t.TempDir(), "data")
	if err := os.Rename(a.cfg.DataDir, keep); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(a.cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", a.cfg.DataDir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	defer func() { _ = unix.Unmount(a.cfg.DataDir, unix.MNT_DETACH) }()
	if err := os.CopyFS(a.cfg.DataDir, os.DirFS(keep)); err != nil {
		t.Fatal(err)
	}
	a.start()
	c.awaitLive(3, c.servers...)
	if _, err := b.run("web", "", 1, "a"); err != nil {
		t.Fatal(err)
	}
	vm := b.wait("web", api.WaitVMRequest_UNTIL_STARTED)
	filler, err := os.Create(filepath.Join(a.cfg.DataDir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	_ = filler.Close()
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for i := range ident.ServerID(2000) {
		if _, err := b.run("x", strings.Repeat("long ", 200), 1, "c"); err != nil {
			t.Logf("run %d: %v", i, err)
		}
		_, _ = b.client.RemoveVM(b.ctx(), &api.RemoveVMRequest{Name: "x", Force: true})
		select {
		case err = <-a.done:
		default:
			continue
		}
		break
	}
	a.done <- context.Canceled // for the clean-up
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "raft.db") {
		t.Errorf("it stopped with %v", err)
	}
	if alive(vm.Workers[0]) {
		t.Error("a worker is left behind")
	}
}
