// Package tests drives the real program: real serve and worker processes on the loopback interface and, where /dev/kvm opens, real guests. Each
// script in testdata/script has a cluster directory of its own and leaves no process behind.
//
// CELLVISOR_BIN names a program to test instead of building one. REQUIRE_KVM=1 turns skipping for want of KVM into a failure. LONG_SCRIPTS=1 runs the
// scripts that take a minute, too.
package tests

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/tests/setting"
)

// program is the binary under test.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	setting.Plain()
	os.Exit(withProgram(m.Run))
}

// withProgram builds the program, or links to the one that is named, so that scripts find it as cellvisor, and runs f.
func withProgram(f func() int) int {
	dir, err := os.MkdirTemp("", "cvbin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "cellvisor")
	if named := os.Getenv("CELLVISOR_BIN"); named != "" {
		if named, err = filepath.Abs(named); err == nil {
			err = os.Symlink(named, program)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return f()
	}
	build := exec.Command("go", "build", "-o", program, "github.com/cellvisor/cellvisor/cmd/cellvisor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the program: %v\n%s", err, out)
		return 1
	}
	return f()
}

// kvmMissing says why no guest can run here, "" if one can.
func kvmMissing() string {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Sprintf("/dev/kvm: %v", err)
	}
	unix.Close(fd)
	return ""
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Cmds:                commands,
		Setup:               setup,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(cond string) (bool, error) {
			if cond == "kvm" { // where it is required, scripts run, and fail by what is missing
				return kvmMissing() == "" || os.Getenv("REQUIRE_KVM") == "1", nil
			}
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			if cond == "long" {
				return os.Getenv("LONG_SCRIPTS") == "1", nil
			}
			if cond == "borrow" {
				return os.Getenv("BORROW_SCRIPT") == "1", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// setup gives a script a short cluster directory (Unix socket paths are bounded) in $CELLVISOR_DIR and $D, the program in $PATH, and takes care
// that nothing outlives it.
func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp(setting.Dir(), "cve-")
	if err != nil {
		return err
	}
	if dir, err = local.Abs(dir); err != nil {
		return err
	}
	env.Setenv("D", dir)
	env.Setenv("CELLVISOR_DIR", dir)
	env.Setenv("PATH", filepath.Dir(program)+string(os.PathListSeparator)+os.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	bad, err := filepath.Abs("../payload/bad/images")
	if err != nil {
		return err
	}
	env.Setenv("BAD", bad)
	env.Setenv("REQUIRE_KVM", os.Getenv("REQUIRE_KVM"))
	env.Setenv("NO_COLOR", "1")
	env.Setenv("TMPDIR", os.TempDir())
	env.Defer(func() {
		_, derr := local.Down(dir)
		if derr != nil {
			env.T().Log("taking the cluster down: ", derr)
		}
		keepLogs(env, dir)
		_ = os.RemoveAll(dir)
	})
	return nil
}

// keepLogs shows the ends of the servers' logs when a script failed.
func keepLogs(env *testscript.Env, dir string) {
	t, ok := env.T().(interface{ Failed() bool })
	if !ok || !t.Failed() {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	workers, _ := filepath.Glob(filepath.Join(dir, "*", "workers", "*", "worker.log"))
	for _, path := range append(logs, workers...) {
		env.T().Log(strings.TrimPrefix(path, dir), ":\n", local.Tail(path, 15))
	}
}
