package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/local"
)

// Drains that do not simply end well, as an operator sees them: deadlines, cancellation, watchers that leave. The only server that could take the VMs
// stands still meanwhile, so nothing moves.

// cli is one run of the program against the cluster.
type cli struct {
	cmd         *exec.Cmd
	out, errors words
}

// words is a buffer that may be read while a process writes to it.
type words struct {
	mu  sync.Mutex
	buf bytes.Buffer // protected by mu
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (c *chaos) command(args ...string) *cli {
	r := &cli{cmd: exec.Command(program, args...)}
	r.cmd.Env = append(os.Environ(), "CELLVISOR_DIR="+c.dir, "NO_COLOR=1")
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errors
	return r
}

func (r *cli) String() string {
	return fmt.Sprintf("cellvisor %s: exit code %d\nstdout: %sstderr: %s", strings.Join(r.cmd.Args[1:], " "), r.cmd.ProcessState.ExitCode(), &r.out, &r.errors)
}

// want runs it and demands an exit code, and on stdout or stderr what the pattern says.
func (c *chaos) want(code int, pattern string, args ...string) string {
	c.t.Helper()
	r := c.command(args...)
	if err := r.cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		c.t.Fatal(err)
	}
	if all := r.out.String() + r.errors.String(); r.cmd.ProcessState.ExitCode() != code || !regexp.MustCompile(pattern).MatchString(all) {
		c.t.Fatalf("want exit code %d and %q, got %s", code, pattern, r)
	}
	return r.out.String()
}

// interrupted starts it, waits until it watches an operation, sends SIGINT, and demands exit code 5.
func (c *chaos) interrupted(args ...string) {
	c.t.Helper()
	r := c.command(args...)
	if err := r.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.until(faultPatience, "it watches", func(context.Context) error {
		if !strings.Contains(r.errors.String(), "watching operation") {
			return fmt.Errorf("it says %q", &r.errors)
		}
		return nil
	})
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		c.t.Fatal(err)
	}
	if err := r.cmd.Wait(); r.cmd.ProcessState.ExitCode() != 5 || !strings.Contains(r.errors.String(), "only the watching ended") {
		c.t.Fatalf("interrupted: %v, %s", err, r)
	}
}

// lastOp returns the operation that was started last, and an error if it is not in the state that is wanted.
func (c *chaos) lastOp(state api.OperationState) (*api.Operation, error) {
	var last *api.Operation
	err := c.client.Call(c.t.Context(), func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListOperations(ctx, &api.ListOperationsRequest{})
		if ops := resp.GetOperations(); len(ops) > 0 {
			last = ops[len(ops)-1]
		}
		return err
	})
	if err == nil && last.GetState() != state {
		err = fmt.Errorf("the last operation is %s: %s", last.GetState().Word(), last.GetNote())
	}
	return last, err
}

func (c *chaos) running(ctx context.Context, want int) error {
	vms, err := c.vms(ctx)
	n := 0
	for _, v := range vms {
		if v.GetState() == api.VMState_VM_STATE_RUNNING {
			n++
		}
	}
	if err == nil && n != want {
		err = fmt.Errorf("%d VMs run, want %d", n, want)
	}
	return err
}

func TestDrainEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	c := &chaos{t: t, rng: rand.New(rand.NewPCG(1, 9)), lease: 40 * time.Second}
	c.start()
	for _, vm := range []string{"one", "two"} {
		c.want(0, "", "vm", "run", vm, "--payload", "count", "--args", "0 100", "--memory", "16MiB", "--span", "b")
	}
	c.want(0, "", "cell", "cordon", "a")
	freeze := func(sig syscall.Signal) {
		members, err := local.Find(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			if m.Server == "c-1" {
				_ = local.Signal(sig, m.Process)
			}
		}
	}
	freeze(syscall.SIGSTOP)
	t.Cleanup(func() { freeze(syscall.SIGCONT) })
	c.want(2, "must be none or at least 1s", "cell", "drain", "b", "--deadline", "0s")

	// The deadline passes: exit code 4, everything stays, and the undo is printed.
	c.want(4, `(?s)2 of 2 steps not done.*cellvisor cell restore b --return original`, "cell", "drain", "b", "--yes", "--deadline", "1s")
	c.until(faultPatience, "both run", func(ctx context.Context) error { return c.running(ctx, 2) })
	c.want(0, `"cordoned": true`, "cell", "ls", "-o", "json")
	op, err := c.lastOp(api.OperationState_OPERATION_STATE_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	c.want(4, "the deadline passed", "op", "watch", fmt.Sprint(op.GetId())) // exit code as for who started it
	c.want(0, "done", "cell", "restore", "b", "--return", "original")

	// Detached: exit code 5 and the number; whoever watches may leave; a second drain of the cell is refused while it goes on.
	id := strings.TrimSpace(c.want(5, `^\d+\n$`, "cell", "drain", "b", "--detach", "--yes", "-o", "name"))
	c.interrupted("op", "watch", id)
	c.want(3, "is still running", "cell", "drain", "b", "--yes")
	c.want(3, "still drains", "cell", "restore", "b")
	c.want(0, "state +running", "op", "show", id)
	c.want(0, "state +cancelled", "op", "cancel", id)
	c.want(1, "was cancelled", "op", "watch", id)
	c.want(3, "is cancelled already", "op", "cancel", id)
	c.want(0, "", "cell", "restore", "b")

	// Ctrl-C of the drain itself ends the watching only.
	c.interrupted("cell", "drain", "b", "--yes", "--deadline", "none")
	if op, err = c.lastOp(api.OperationState_OPERATION_STATE_RUNNING); err != nil {
		t.Fatal(err)
	}
	freeze(syscall.SIGCONT)
	c.want(0, "(?m)^state +done", "op", "watch", fmt.Sprint(op.GetId()))
	c.grows("after the drain", "one")
	c.want(0, "^yes", "cell", "safe-to-stop", "b")
	c.want(0, "done", "cell", "restore", "b", "--return", "original")
	c.want(3, "(?s)no.*vm one: 1 vCPUs and memory, devices on server b-1", "cell", "safe-to-stop", "b")

	// With --on-deadline stop what is left is stopped, and the drain is done.
	freeze(syscall.SIGSTOP)
	c.want(0, "(?m)^state +done", "cell", "drain", "b", "--yes", "--deadline", "1s", "--on-deadline", "stop")
	c.want(0, "was still being drained at its deadline", "vm", "show", "two")
	c.want(0, "^yes", "cell", "safe-to-stop", "b")
}
