package server

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
)

var metricName = regexp.MustCompile(`cellvisor_[a-z0-9_]+`)

// docs/metrics.md lists every metric and no other; so do the dashboard's expressions.
func TestMetricsAreDocumented(t *testing.T) {
	known := map[string]bool{}
	for _, m := range allMetrics() {
		known[m.name] = true
		if !strings.HasPrefix(m.name, "cellvisor_") || !strings.HasSuffix(m.help, ".") {
			t.Errorf("%s: %q", m.name, m.help)
		}
	}
	doc, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range allMetrics() {
		if !strings.Contains(string(doc), "`"+m.name+"`") || !strings.Contains(string(doc), m.help) {
			t.Errorf("%s (%s) is not in docs/metrics.md", m.name, m.help)
		}
	}
	board, err := os.ReadFile("../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(board) {
		t.Error("docs/grafana.json is no JSON")
	}
	for _, name := range metricName.FindAllString(string(doc)+string(board), -1) {
		if !known[name] {
			t.Errorf("there is no metric %s", name)
		}
	}
}

func TestMetricsEndpoint(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	s := c.servers[0]
	if _, err := s.run("one", "", 1, "a"); err != nil {
		t.Fatal(err)
	}
	s.wait("one", api.WaitVMRequest_UNTIL_STARTED)
	s.stop()
	s.cfg.Listen.Metrics = freeAddr(t)
	s.start()
	get := func() string {
		r, err := http.Get("http://" + s.cfg.Listen.Metrics + "/metrics")
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close()
		text, _ := io.ReadAll(r.Body)
		return string(text)
	}
	defer http.DefaultClient.CloseIdleConnections()
	for _, want := range []string{
		`cellvisor_servers{state="live"} 3`, `cellvisor_vms{state="running"} 1`, "cellvisor_quorum 1", `cellvisor_vm_remote_reads_total{vm="one"} 17`,
		`cellvisor_vm_checkpoint_lag_seconds{vm="one"} 0.004`, "cellvisor_workers_adopted_total 1", "go_goroutines",
	} {
		eventually(t, want, func() bool { return strings.Contains(get(), want) })
	}
	text := get()
	for _, m := range allMetrics() {
		if !strings.Contains(text, "# HELP "+m.name+" ") {
			t.Errorf("%s is not told", m.name)
		}
	}
}

// A service manager hears that the server is up, that it lives, and that it ends.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "300000")
	wants := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		for {
			_ = l.SetReadDeadline(time.Now().Add(time.Minute))
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if string(buf[:n]) == want {
				return
			}
		}
	}
	c := newCluster(t, 1)
	wants("READY=1")
	wants("WATCHDOG=1")
	wants("WATCHDOG=1")
	c.servers[0].stop()
	wants("STOPPING=1")
	t.Setenv("WATCHDOG_PID", "1")
	if every := watchdogInterval(); every != 0 {
		t.Errorf("another process's watchdog is fed every %v", every)
	}
	t.Setenv("NOTIFY_SOCKET", "@nobody-listens-here")
	notify("READY=1")
}

// What goes into a bundle: stacks, logs, nothing secret.
func TestDebugDump(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	s := c.servers[0]
	if _, err := s.run("one", "", 1, "b"); err != nil {
		t.Fatal(err)
	}
	s.wait("one", api.WaitVMRequest_UNTIL_STARTED)
	r, err := s.client.DebugDump(s.ctx(), &api.DebugDumpRequest{Server: "b-1"})
	if err != nil {
		t.Fatal(err)
	}
	if r.Server != "b-1" || !strings.Contains(r.Stacks, "server.(*Server).loop") {
		t.Errorf("server %q, stacks of %d bytes", r.Server, len(r.Stacks))
	}
	if _, has := r.WorkerLogs["one"]; !has {
		t.Errorf("logs of workers: %v", r.WorkerLogs)
	}
	if _, err := s.client.DebugDump(s.ctx(), &api.DebugDumpRequest{Server: "z-9"}); status.Code(err) != codes.NotFound {
		t.Errorf("dump of nobody: %v", err)
	}
}

// On a terminal logs are for people, elsewhere JSON; the tail is JSON, and bounded.
func TestLogsAndTheirTail(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	tail := &logTail{}
	log := newLogger(&config.Server{}, out, tail)
	log.Info().Str("a", "b").Msg("first")
	text, err := os.ReadFile(out.Name())
	if err != nil || !json.Valid(text) || !strings.Contains(tail.text(), `"message":"first"`) {
		t.Errorf("%q %v, tail %q", text, err, tail.text())
	}
	people := newLogger(&config.Server{Log: config.Log{Format: "text"}}, out, tail)
	people.Info().Msg("second")
	if text, _ = os.ReadFile(out.Name()); !strings.Contains(string(text), "INF second") {
		t.Errorf("%q", text)
	}
	long := zerolog.New(tail)
	for range 20_000 {
		long.Info().Str("x", strings.Repeat("y", 100)).Msg("last")
	}
	if n := len(tail.text()); n < logTailBytes || n > 2*logTailBytes {
		t.Errorf("the tail has %d bytes", n)
	}
	lines := bufio.NewScanner(strings.NewReader(tail.text()))
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	if !json.Valid([]byte(last)) {
		t.Errorf("last line %q", last)
	}
}
