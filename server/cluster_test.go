package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
)

// testCluster is a cluster of Server values in this process, with real disks, real sockets and fake workers.
type testCluster struct {
	t       testing.TB
	servers []*testServer
}

type testServer struct {
	t      testing.TB
	cfg    *config.Server
	conn   *grpc.ClientConn
	client api.CellvisorClient
	cancel context.CancelFunc
	done   chan error
}

// givenPorts are those that freeAddr has returned.
var givenPorts = map[int]bool{}

// freeAddr returns a loopback address that was free a moment ago, for TCP and UDP. Its port lies below the range from which the kernel gives connections
// theirs, and listeners that ask for any: one of those could take it before the server does.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(22000)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			continue
		}
		u.Close()
		if !givenPorts[port] {
			givenPorts[port] = true
			return addr
		}
	}
	t.Fatal("no free address")
	return ""
}

// newCluster configures n servers, each in a cell of its own, and starts them.
func newCluster(t testing.TB, n int) *testCluster {
	t.Helper()
	return newClusterWith(t, n, func(*config.Server) {})
}

// newClusterWith is newCluster with something changed in every server's configuration.
func newClusterWith(t testing.TB, n int, change func(*config.Server)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	dir, err := os.MkdirTemp("", "cv") // short: the API sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var initial []config.Peer
	for i := range n {
		cell := string(rune('a' + i))
		initial = append(initial, config.Peer{ID: ident.ServerID(i + 1), Name: ident.ServerName(cell + "-1"), Cell: ident.CellName(cell),
			Role: config.RoleServer, Voter: true, Peer: freeAddr(t), Gossip: freeAddr(t)})
	}
	for i := range n {
		s := &testServer{t: t, cfg: testConfig(dir, initial[i])}
		s.cfg.ID, s.cfg.Initial = initial[i].ID, initial
		change(s.cfg)
		c.servers = append(c.servers, s)
	}
	for _, s := range c.servers {
		s.start()
	}
	return c
}

func testConfig(dir string, p config.Peer) *config.Server {
	data := filepath.Join(dir, string(p.Name))
	return &config.Server{
		ClusterID: strings.Repeat("c1", 16), ClusterName: "test", Name: p.Name, Cell: p.Cell, Role: p.Role, DataDir: data,
		Slots: 4, MemoryBytes: ident.GiB, Secret: []byte("a secret of the test"),
		Listen: config.Listen{Peer: p.Peer, Gossip: p.Gossip, Pages: "127.0.0.1", APIUnix: filepath.Join(data, "api.sock")},
		Timing: config.DefaultTiming(),
	}
}

func (s *testServer) start() {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	log := zerolog.Nop()
	if os.Getenv("SERVER_TEST_LOG") != "" {
		log = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "05.000000"}).With().Timestamp().Logger()
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.done = make(chan error, 1)
	go func() {
		s.done <- RunWith(ctx, s.cfg, Options{Log: log, WorkerCommand: []string{self}, SkipProbe: true})
	}()
	s.conn, err = grpc.NewClient("unix://"+s.cfg.Listen.APIUnix, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.client = api.NewCellvisorClient(s.conn)
	conn := s.conn
	s.t.Cleanup(func() {
		s.stop()
		_ = conn.Close()
	})
}

// stop ends the server in good order; it may be called twice.
func (s *testServer) stop() {
	s.t.Helper()
	s.cancel()
	select {
	case err := <-s.done:
		s.done <- err
		if err != nil && !errors.Is(err, context.Canceled) {
			s.t.Errorf("server %s: %v", s.cfg.Name, err)
		}
	case <-time.After(patience):
		s.t.Errorf("server %s does not stop", s.cfg.Name)
	}
}

func (s *testServer) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

// status returns what the server says, or nil while it does not answer.
func (s *testServer) status() *api.StatusResponse {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := s.client.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return nil
	}
	return st
}

// awaitLive waits until every given server sees n live servers and holds a lease.
func (c *testCluster) awaitLive(n int, servers ...*testServer) {
	c.t.Helper()
	for _, s := range servers {
		eventually(c.t, fmt.Sprintf("%s sees %d live servers", s.cfg.Name, n), func() bool {
			st := s.status()
			return st != nil && int(st.ServersLive) == n && st.Quorum && st.ServerState == api.ServerState_SERVER_STATE_LIVE
		})
	}
}

// run creates a VM whose fake workers behave as args says.
func (s *testServer) run(name, args string, vcpus int, span ...string) (*api.VM, error) {
	stream, err := s.client.RunVM(s.ctx())
	if err != nil {
		return nil, err
	}
	err = stream.Send(&api.RunVMRequest{Part: &api.RunVMRequest_Spec{Spec: &api.VMSpec{Name: name, Args: args, Vcpus: uint32(vcpus),
		MemoryBytes: 64 << 20, Span: span, Payload: &api.VMSpec_Builtin{Builtin: "count"}}}})
	if err != nil {
		return nil, err
	}
	r, err := stream.CloseAndRecv()
	return r.GetVm(), err
}

// wait follows a VM until it is ended (or started), and returns it.
func (s *testServer) wait(name string, until api.WaitVMRequest_Until) *api.VM {
	s.t.Helper()
	stream, err := s.client.WaitVM(s.ctx(), &api.WaitVMRequest{Name: name, Until: until})
	if err != nil {
		s.t.Fatal(err)
	}
	var last *api.VM
	for {
		m, err := stream.Recv()
		if err != nil {
			if last == nil {
				s.t.Fatalf("wait for %s: %v", name, err)
			}
			return last
		}
		if m.Vm != nil {
			last = m.Vm
		}
	}
}

func TestClusterForms(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	vm, err := c.servers[1].run("web", "", 2, "a", "c")
	if err != nil {
		t.Fatal(err)
	}
	if vm.State != api.VMState_VM_STATE_STARTING || len(vm.Workers) != 2 {
		t.Errorf("created %v", vm)
	}
	vm = c.servers[0].wait("web", api.WaitVMRequest_UNTIL_STARTED)
	if vm.State != api.VMState_VM_STATE_RUNNING || vm.Workers[0].Pid == 0 || vm.Workers[1].Pid == 0 {
		t.Errorf("started %v", vm)
	}
	stopped, err := c.servers[1].client.StopVM(c.servers[1].ctx(), &api.StopVMRequest{Name: "web"})
	if err != nil || stopped.Vm.State != api.VMState_VM_STATE_STOPPED {
		t.Errorf("stop: %v %v", stopped, err)
	}
	for _, w := range vm.Workers {
		if err := awaitGone(c.servers[0].ctx(), int(w.Pid), w.PidStartTicks); err != nil {
			t.Errorf("worker %d after StopVM: %v", w.Pid, err)
		}
	}
	if _, err := c.servers[2].client.RemoveVM(c.servers[2].ctx(), &api.RemoveVMRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
}
