package tui

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/internal/fake"
)

// consoleEnv makes the test binary show the console of a small fake cluster instead of running tests: a real process for a real terminal.
// Its value is where the process may be told to lose the cluster: it does while that file exists.
const consoleEnv = "CELLVISOR_TUI_TEST_CONSOLE"

func showConsole(switchFile string) int {
	server := fake.Start(fake.Small())
	defer server.Stop()
	client, conn, err := server.Dial("")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			_, err := os.Stat(switchFile)
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
	t            *testing.T
	socket, plug string
}

func newSession(t *testing.T, env string) *session {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed")
	}
	dir := t.TempDir()
	s := &session{t: t, socket: filepath.Join(dir, "tmux"), plug: filepath.Join(dir, "plug")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell stays behind, so that the state in which the console leaves the terminal can be looked at.
	line := fmt.Sprintf("echo before; %s %s=%s '%s'; echo status $?; exec cat", env, consoleEnv, s.plug, self)
	s.tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", line)
	t.Cleanup(func() {
		_ = exec.Command("tmux", "-S", s.socket, "kill-server").Run()
	})
	return s
}

func (s *session) tmux(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-u", "-S", s.socket}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

func (s *session) keys(keys ...string) { s.tmux(append([]string{"send-keys"}, keys...)...) }

// wants waits until all texts are on the terminal.
func (s *session) wants(texts ...string) string {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		screen := s.tmux("capture-pane", "-p")
		missing := ""
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				missing = text
			}
		}
		if missing == "" {
			return screen
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("%q is not on the terminal:\n%s", missing, screen)
		}
	}
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
	s.wants("Parts (2)")
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
	s.wants("$ cellvisor status", "servers 5/6 live", "1 overview")
	s.keys("q")
	s.left("status 0")
}

func TestSessionEndsBySignal(t *testing.T) {
	s := newSession(t, "env")
	s.wants("Cells and servers (9)")
	child := strings.TrimSpace(s.tmux("list-panes", "-F", "#{pane_pid}"))
	out, err := exec.Command("ps", "-o", "pid=", "--ppid", child).Output()
	if err != nil {
		t.Fatalf("no child of %s: %v", child, err)
	}
	if err := exec.Command("kill", "-TERM", strings.TrimSpace(string(out))).Run(); err != nil {
		t.Fatal(err)
	}
	s.left("status 0")
}

func TestSessionWithoutColourOrUnicode(t *testing.T) {
	s := newSession(t, "env NO_COLOR=1")
	s.wants("Cells and servers (9)")
	if out := s.tmux("capture-pane", "-p", "-e"); strings.Contains(out, "\x1b[3") {
		t.Errorf("colours although NO_COLOR is set:\n%q", out)
	}
}
