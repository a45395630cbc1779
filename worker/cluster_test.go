package worker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/tests/setting"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
	"github.com/cellvisor/cellvisor/wire"
)

// These tests run real worker processes with real KVM guests; the test plays serve.

const workerDirVariable = "CELLVISOR_TEST_WORKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(workerDirVariable); dir != "" {
		if err := Run(dir, zerolog.New(os.Stderr).With().Timestamp().Logger()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	setting.Plain()
	os.Exit(m.Run())
}

// part is one worker process as its serve sees it.
type part struct {
	t     *testing.T
	dir   string
	cmd   *exec.Cmd
	conn  net.Conn
	ready wire.WorkerReady
	vcpus []ident.VCPU // that begin there
	ended chan wire.WorkerEnded
	stats chan wire.WorkerStats
	maps  chan wire.WorkerPageMap

	protected chan wire.WorkerProtected
	restored  chan wire.WorkerRestored
	handed    chan wire.WorkerHanded
	wished    chan wire.WorkerWish
	killed    bool
}

// testVM is a VM whose parts are processes of this test's.
type testVM struct {
	t      *testing.T
	parts  []*part
	pauses uint64 // the number of the last pause, or of its end
}

// startVM starts a VM of one part for each entry of vcpus: the number of vCPUs there. Part 0 is home.
func startVM(t *testing.T, builtin, args string, memory ident.Bytes, vcpus ...int) *testVM {
	t.Helper()
	return startVMWith(t, nil, builtin, args, memory, vcpus...)
}

func startVMWith(t *testing.T, options map[string]string, builtin, args string, memory ident.Bytes, vcpus ...int) *testVM {
	t.Helper()
	vmmtest.RequireKVM(t)
	total := 0
	for _, n := range vcpus {
		total += n
	}
	v := &testVM{t: t}
	next := 0
	for i, n := range vcpus {
		spec := testSpec(i, total, builtin, args, memory)
		spec.Options = options
		for range n {
			spec.LocalVCPUs = append(spec.LocalVCPUs, ident.VCPU(next))
			next++
		}
		v.parts = append(v.parts, startPart(t, spec))
	}
	t.Cleanup(v.stop)
	members := wire.WorkerMembers{Epoch: 1, Fresh: true}
	for i, p := range v.parts {
		members.Members = append(members.Members, wire.WorkerMember{Part: ident.Part(i), Server: ident.ServerID(i + 1), Addr: p.ready.PageAddr, Level: p.ready.Level})
	}
	v.send(wire.ToWorker{Lease: &wire.WorkerLease{UntilBootMicros: bootMicros() + 600*ident.Second}})
	v.send(wire.ToWorker{Members: &members})
	return v
}

func testSpec(part, vcpus int, builtin, args string, memory ident.Bytes) wire.WorkerSpec {
	spec := wire.WorkerSpec{
		ClusterID: "test", Server: ident.ServerID(part + 1), ServerName: ident.ServerName(fmt.Sprintf("s-%d", part+1)), VM: 7, Name: "guest",
		Part: ident.Part(part), VCPUs: vcpus, MemoryBytes: memory, Builtin: builtin, Args: args, ListenHost: "127.0.0.1", Secret: "00112233",
	}
	if filepath.IsAbs(builtin) { // a payload in a file
		spec.Builtin, spec.PayloadPath = "", builtin
	}
	return spec
}

func startPart(t *testing.T, spec wire.WorkerSpec) *part {
	t.Helper()
	dir, err := os.MkdirTemp("", "cvw") // short: a Unix socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, wire.WorkerSpecFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &part{t: t, dir: dir, vcpus: spec.LocalVCPUs, ended: make(chan wire.WorkerEnded, 4), stats: make(chan wire.WorkerStats, 1000), maps: make(chan wire.WorkerPageMap, 100),
		protected: make(chan wire.WorkerProtected, 100), restored: make(chan wire.WorkerRestored, 1), handed: make(chan wire.WorkerHanded, 1000), wished: make(chan wire.WorkerWish, 1000)}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), workerDirVariable+"="+dir)
	log, err := os.Create(filepath.Join(dir, wire.WorkerLogFile))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stderr = log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.connect()
	return p
}

// connect waits for the worker's socket and its greeting.
func (p *part) connect() {
	p.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		conn, err := net.Dial("unix", filepath.Join(p.dir, wire.WorkerCtlSocket))
		if err == nil {
			p.conn = conn
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("worker does not listen: %v\n%s", err, p.log())
		}
		<-time.After(2 * time.Millisecond)
	}
	r := bufio.NewReader(p.conn)
	var m wire.FromWorker
	if err := wire.ReadJSON(r, &m, wire.JSONLimit); err != nil {
		p.t.Fatalf("worker's greeting: %v\n%s", err, p.log())
	}
	if m.Ready == nil {
		p.t.Fatalf("worker's greeting is %+v\n%s", m, p.log())
	}
	p.ready = *m.Ready
	go p.read(r)
}

func (p *part) read(r *bufio.Reader) {
	for {
		var m wire.FromWorker
		if err := wire.ReadJSON(r, &m, wire.JSONLimit); err != nil {
			return
		}
		switch {
		case m.Ended != nil:
			p.ended <- *m.Ended
		case m.Protected != nil:
			p.protected <- *m.Protected
		case m.Restored != nil:
			p.restored <- *m.Restored
		case m.Handed != nil:
			p.handed <- *m.Handed
		case m.Wish != nil:
			p.wished <- *m.Wish
		case m.PageMap != nil:
			p.maps <- *m.PageMap
		case m.Stats != nil:
			select {
			case p.stats <- *m.Stats:
			default:
			}
		}
	}
}

func (p *part) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, wire.WorkerLogFile))
	return string(b)
}

func (v *testVM) send(m wire.ToWorker) {
	v.t.Helper()
	for _, p := range v.parts {
		if p.killed {
			continue
		}
		if err := wire.WriteJSON(p.conn, m); err != nil {
			v.t.Fatalf("%v\n%s", err, p.log())
		}
	}
}

// wait returns how the VM ended.
func (v *testVM) wait(within time.Duration) wire.WorkerEnded {
	v.t.Helper()
	ended := make(chan wire.WorkerEnded, len(v.parts))
	for _, p := range v.parts {
		go func() { ended <- <-p.ended }()
	}
	select {
	case e := <-ended:
		return e
	case <-time.After(within):
		v.t.Fatalf("VM did not end in %v; console:\n%s\n%s", within, v.console(), v.logs())
	}
	panic("unreachable")
}

func (v *testVM) logs() string {
	var b strings.Builder
	for i, p := range v.parts {
		fmt.Fprintf(&b, "part %d:\n%s", i, p.log())
	}
	return b.String()
}

func (v *testVM) console() string {
	b, _ := os.ReadFile(filepath.Join(v.parts[0].dir, wire.WorkerConsoleFile))
	return string(b)
}

func (v *testVM) output() []string {
	b, _ := os.ReadFile(filepath.Join(v.parts[0].dir, wire.WorkerOutputFile))
	return strings.Fields(string(b))
}

// stop ends the workers and checks that they end.
func (v *testVM) stop() {
	for i, p := range v.parts {
		if p.killed {
			continue
		}
		_ = wire.WriteJSON(p.conn, wire.ToWorker{Stop: &wire.WorkerStop{Reason: "test is over"}})
		done := make(chan error, 1)
		go func() { done <- p.cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				v.t.Errorf("part %d ended: %v\n%s", i, err, p.log())
			}
		case <-time.After(time.Minute):
			v.t.Errorf("part %d does not stop\n%s", i, p.log())
			_ = p.cmd.Process.Kill()
			<-done
		}
		p.conn.Close()
	}
}

// mustExit waits for a good end.
func (v *testVM) mustExit(within time.Duration) {
	v.t.Helper()
	if e := v.wait(within); e.State != "exited" || e.ExitStatus != 0 {
		v.t.Fatalf("VM ended %q, status %d: %s\n%s\nconsole:\n%s\n%s", e.State, e.ExitStatus, e.Reason, e.Registers, v.console(), v.logs())
	}
}

func TestCountOnOnePart(t *testing.T) {
	v := startVM(t, "count", "200 2000", 16*ident.MiB, 1)
	v.mustExit(time.Minute)
	checkCount(t, v, 200)
}

func TestCountFromAnotherPartThanHome(t *testing.T) {
	v := startVM(t, "count", "200 2000", 16*ident.MiB, 1, 1)
	v.mustExit(time.Minute)
	checkCount(t, v, 200)
}

func checkCount(t *testing.T, v *testVM, n int) {
	t.Helper()
	out := v.output()
	if len(out) != n {
		t.Fatalf("%d records, want %d", len(out), n)
	}
	for i, s := range out {
		if s != fmt.Sprint(i) {
			t.Fatalf("record %d is %s", i, s)
		}
	}
}

func TestLockOverThreeParts(t *testing.T) {
	v := startVM(t, "lock", "2000", 16*ident.MiB, 2, 1, 1)
	v.mustExit(2 * time.Minute)
	t.Log(v.console())
}

func TestWalkOverTwoParts(t *testing.T) {
	v := startVM(t, "walk", "64", 96*ident.MiB, 1, 1)
	v.mustExit(3 * time.Minute)
	t.Log(v.console())
}

func TestLitmusOverTwoParts(t *testing.T) {
	v := startVM(t, "litmus", "5000", 32*ident.MiB, 2, 2)
	v.mustExit(3 * time.Minute)
	t.Log(v.console())
}
