package tui

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/tests/terminal"
	"github.com/cellvisor/cellvisor/tui/fake"
	"github.com/cellvisor/cellvisor/tui/feed"
)

// consoleEnv makes the test binary show the console of a small fake cluster instead of running tests: a real process for a real terminal.
// Its value is where the process may be told to lose the cluster: it does while that file exists.
const consoleEnv = "CELLVISOR_TUI_TEST_CONSOLE"

// busyEnv gives that cluster 200 VMs, all of which change with an event ten times a second.
const busyEnv = "CELLVISOR_TUI_TEST_BUSY"

func showConsole(switchFile string) int {
	state := fake.Small()
	if os.Getenv(busyEnv) != "" {
		state = fake.Large(200)
	}
	server := fake.Start(state)
	defer server.Stop()
	client, conn, err := server.Dial("")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	if os.Getenv(busyEnv) != "" {
		go func() {
			for at := range time.Tick(feed.MinInterval) {
				server.Change(func(s *fake.State) {
					s.Event("vm.running", "", "", "vm-0001", at.String())
					for _, vm := range s.VMs {
						vm.State = vm.State%6 + 1
					}
				})
			}
		}()
	}
	go func() {
		pulled := false
		for range time.Tick(20 * time.Millisecond) {
			_, err := os.Stat(switchFile)
			if pulled == (err == nil) {
				continue
			}
			pulled = err == nil
			server.Change(func(s *fake.State) {
				s.RefuseAll = nil
				if err == nil {
					s.RefuseAll = status.Error(codes.Unavailable, "the plug was pulled")
				}
			})
		}
	}()
	if err := Run(context.Background(), Options{Client: client, Interval: feed.MinInterval}); err != nil {
		fmt.Fprintln(os.Stderr, "console:", err)
		return 1
	}
	return 0
}

// session is a console in a terminal of tmux.
type session struct {
	*terminal.Terminal
	t    *testing.T
	plug string
}

func newSession(t *testing.T, env string) *session {
	t.Helper()
	dir := t.TempDir()
	s := &session{t: t, plug: filepath.Join(dir, "plug")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell stays behind, so that the state in which the console leaves the terminal can be looked at.
	line := fmt.Sprintf("echo before; %s %s=%s '%s'; echo status $?; exec cat", env, consoleEnv, s.plug, self)
	s.Terminal, err = terminal.Start(dir, 100, 30, nil, line)
	if errors.Is(err, terminal.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *session) tmux(args ...string) string {
	s.t.Helper()
	out, err := s.Tmux(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// process is the console's own process.
func (s *session) process() string {
	s.t.Helper()
	shell := strings.TrimSpace(s.tmux("list-panes", "-F", "#{pane_pid}"))
	out, err := exec.Command("ps", "-o", "pid=", "--ppid", shell).Output()
	if err != nil {
		s.t.Fatalf("no child of %s: %v", shell, err)
	}
	return strings.TrimSpace(string(out))
}

// cpuTicks is the CPU time that the process has used, in hundredths of a second (fields 14 and 15 of /proc/PID/stat).
func (s *session) cpuTicks() int {
	s.t.Helper()
	stat, err := os.ReadFile("/proc/" + s.process() + "/stat")
	if err != nil {
		s.t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		s.t.Fatal(err)
	}
	return user + system
}

func (s *session) keys(keys ...string) {
	s.t.Helper()
	if err := s.Keys(keys...); err != nil {
		s.t.Fatal(err)
	}
}

// wants waits until all texts are on the terminal.
func (s *session) wants(texts ...string) string {
	s.t.Helper()
	screen, err := s.AwaitText(time.Minute, texts...)
	if err != nil {
		s.t.Fatal(err)
	}
	return screen
}

// left checks that the terminal is as it was before: the main screen, a visible cursor, no mouse reports.
func (s *session) left(exit string) {
	s.t.Helper()
	screen := s.wants("before", exit)
	if strings.Contains(screen, "Cells and servers") {
		s.t.Errorf("remains on the terminal:\n%s", screen)
	}
	if got := strings.TrimSpace(s.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}")); got != "0 1 0" {
		s.t.Errorf("alternate screen, cursor, mouse are %q", got)
	}
}

func TestSession(t *testing.T) {
	s := newSession(t, "env")
	s.wants("Cells and servers (9)", "VMs (6)", "$ cellvisor status", "▶ running")
	s.keys("j", "j", "Enter")
	s.wants("overview › VM lock", "48101", "$ cellvisor vm show lock")
	s.keys("c")
	s.wants("round 2000", "following")
	s.keys("Escape")
	s.wants("Parts (3)")
	s.keys(":", "vm show ti", "Tab", "Enter")
	s.wants("VM lock › VM tick")
	s.keys("s")
	s.wants("Stop VM tick?", "$ cellvisor vm stop tick")
	s.keys("y")
	s.wants("vm stop tick: stopped", "■ stopped")
	s.tmux("resize-window", "-x", "200", "-y", "50")
	s.wants("via a-1")
	s.tmux("resize-window", "-x", "80", "-y", "24")
	s.keys("1")
	s.wants("servers 5/6 live", "Cells and servers (9)")
	s.keys("/", "state:run", "Enter")
	s.wants("VMs (1 of 6) /state:run")

	if err := os.WriteFile(s.plug, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.wants("CLUSTER LOST", "the plug was pulled", "lock")
	if err := os.Remove(s.plug); err != nil {
		t.Fatal(err)
	}
	s.keys("r")
	s.wants("$ cellvisor status", "servers 5/6 live", "2cells")
	s.keys("q")
	s.left("status 0")
}

func TestSessionEndsBySignal(t *testing.T) {
	s := newSession(t, "env")
	s.wants("Cells and servers (9)")
	if err := exec.Command("kill", "-TERM", s.process()).Run(); err != nil {
		t.Fatal(err)
	}
	s.left("status 0")
}

func TestSessionsColours(t *testing.T) {
	for _, c := range []struct {
		env     string
		colours bool
	}{{"NO_COLOR=1 CLICOLOR_FORCE=1", false}, {"TERM=dumb", false}, {"CI=true CLICOLOR=0", true}} {
		s := newSession(t, "env "+c.env)
		s.wants("Cells and servers (9)")
		if out := s.tmux("capture-pane", "-p", "-e"); strings.Contains(out, "\x1b[3") != c.colours {
			t.Errorf("%s: colours should be there: %v\n%q", c.env, c.colours, out)
		}
	}
}

// TestSessionOfABusyCluster measures the whole process, the fake cluster in it included, before 200 VMs that all change ten times a
// second. On a machine of its own it takes about a twentieth of a core, most of it the cluster's; the bound leaves room for a busy one.
func TestSessionOfABusyCluster(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures time")
	}
	s := newSession(t, "env "+busyEnv+"=1")
	s.tmux("resize-window", "-x", "200", "-y", "60")
	s.wants("VMs (200)")
	// How long does it take to use up a fifth of a second?
	const budgetTicks = 20
	before, began := s.cpuTicks(), time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	used := 0
	for used < budgetTicks && time.Since(began) < time.Minute {
		<-tick.C
		used = s.cpuTicks() - before
	}
	percent := float64(used) / time.Since(began).Seconds()
	t.Logf("%.1f%% of a core", percent)
	if percent > 15 {
		t.Errorf("200 VMs at ten updates a second cost %.1f%% of a core", percent)
	}

	// A key is answered while all that goes on.
	s.keys("4")
	s.wants("overview › VMs")
	asked := time.Now()
	s.keys("G")
	s.wants("› vm-0199")
	t.Logf("a key was answered within %v, the time of tmux included", time.Since(asked))
}
