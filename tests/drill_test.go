package tests

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cellvisor/cellvisor/drills"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/tests/setting"
)

// drillEnv gives commands a cluster directory of their own, which is taken down at the end.
func drillEnv(t *testing.T) (dir string, env []string) {
	t.Helper()
	needKVM(t)
	dir, err := os.MkdirTemp(setting.Dir(), "cvd-")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = local.Abs(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, derr := local.Down(dir)
		if derr != nil {
			t.Error(derr)
		}
		_ = os.RemoveAll(dir)
	})
	path := filepath.Dir(program) + string(os.PathListSeparator) + os.Getenv("PATH")
	return dir, append(os.Environ(), "CELLVISOR_DIR="+dir, "CELLVISOR_ADDR=", "NO_COLOR=1", "PATH="+path, "TMPDIR="+setting.Dir())
}

// The guide works by copy and paste: what stands in its code blocks runs, line by line, and stops at the first error.
func TestFirstDrillGuide(t *testing.T) {
	_, env := drillEnv(t)
	text, err := os.ReadFile("../docs/drills.md")
	if err != nil {
		t.Fatal(err)
	}
	_, guide, _ := strings.Cut(string(text), "## Your first drill")
	guide, _, _ = strings.Cut(guide, "\n## ")
	script := "set -eu\n"
	for rest := guide; ; {
		var block string
		var ok bool
		if _, rest, ok = strings.Cut(rest, "```sh\n"); !ok {
			break
		}
		block, rest, _ = strings.Cut(rest, "```")
		script += block
	}
	if !strings.Contains(script, "drill run first.star") {
		t.Fatalf("the guide runs no drill:\n%s", script)
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir, cmd.Env = t.TempDir(), env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"VM web: untouched", "quorum kept", "drill first: passed", "healing: ok"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	for _, name := range []string{"first.html", "first.xml"} {
		if st, err := os.Stat(filepath.Join(cmd.Dir, name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every ready drill passes on a real cluster of the shape that it asks for.
func TestReadyDrills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a drill")
	}
	_, env := drillEnv(t)
	for _, name := range drills.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of a drill is waiting
			run := exec.Command(program, "drill", "run", name, "--up", "--patience", "4")
			run.Env = env
			if out, err := run.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// A drill that breaks two cells, then lies in wait.
const breaksTwo = `
"""Breaks two cells and sleeps."""
cells = 4
max_cells = 2
def drill():
    vm("mine", payload = "idle", span = ["a"])
    kill("b")
    stop_process("c")
    log("broken now")
    sleep("10m")
`

// However the runner ends, what it broke is made good: by itself when it is interrupted, by `drill heal` when it is killed.
func TestDrillIsHealed(t *testing.T) {
	dir, env := drillEnv(t)
	cellvisor := func(args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := cellvisor("up", "--detach", "--drills", "allow", "--cells", "4"); err != nil {
		t.Fatal(out)
	}
	file := filepath.Join(t.TempDir(), "two.star")
	if err := os.WriteFile(file, []byte(breaksTwo), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		run := exec.Command(program, "drill", "run", file, "--patience", "4")
		run.Env = env
		steps, err := run.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(steps)
		for lines.Scan() && !strings.Contains(lines.Text(), "broken now") {
		}
		if err := run.Process.Signal(how); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, steps)
		if err := run.Wait(); err == nil {
			t.Errorf("%v: the drill passed", how)
		}
		if how == syscall.SIGKILL {
			if out, err := cellvisor("drill", "run", "blink"); err == nil || !strings.Contains(out, "drill heal") {
				t.Errorf("a drill began on a cluster that was not healed: %v\n%s", err, out)
			}
			if out, err := cellvisor("drill", "heal"); err != nil {
				t.Fatalf("heal: %v\n%s", err, out)
			}
		}
		if out, err := cellvisor("server", "ls"); err != nil || strings.Count(out, " live ") != 4 {
			t.Errorf("%v: not all servers are live: %v\n%s", how, err, out)
		}
		if out, err := cellvisor("vm", "ls", "-o", "name"); err != nil || strings.Contains(out, "mine") {
			t.Errorf("%v: the drill's VM is left: %v\n%s", how, err, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "drill-journal.json")); !os.IsNotExist(err) {
			t.Errorf("%v: the journal: %v", how, err)
		}
	}
}

// On a real cluster, too, a wrong expectation shows what happened instead.
func TestWrongDrillFails(t *testing.T) {
	_, env := drillEnv(t)
	file := filepath.Join(t.TempDir(), "wrong.star")
	src := "def drill():\n    p = vm('p', payload = 'idle', span = ['b'])\n    kill('b')\n    expect(dead('b'), within = '1m')\n    expect(running(p), name = 'p survives')\n"
	if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	run := exec.Command(program, "drill", "run", file, "--up", "--quiet")
	run.Env = env
	out, err := run.CombinedOutput()
	if run.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"drill wrong: failed", "p survives", "at wrong.star:5", "instead: VM p is lost (cell b lost in epoch", "healing: ok"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the report lacks %q:\n%s", want, out)
		}
	}
}
