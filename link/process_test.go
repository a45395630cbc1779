package link

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/wire"
)

// withProcess connects a plane, part 0, to part 1 in a process of its own.
func withProcess(t *testing.T, change func(cfg *PagesConfig)) (*Pages, *recorder, *exec.Cmd) {
	r := newRecorder()
	cfg := testConfig(0, r)
	if change != nil {
		change(&cfg)
	}
	p, err := ListenPages(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	cmd, addr := startRole(t, "pages "+p.Addr())
	if err := p.SetMembers(1, []wire.WorkerMember{{Part: 0, Server: 100, Addr: p.Addr()}, {Part: 1, Server: 101, Addr: addr}}); err != nil {
		t.Fatal(err)
	}
	r.waitFor(t, 0, "up", 1)
	return p, r, cmd
}

// The kernel closes a killed process's sockets: its peers must know at once, and a vCPU that waits must go on.
func TestKilledProcessIsNoticedAtOnce(t *testing.T) {
	p, r, cmd := withProcess(t, nil)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() { // all its threads: it cannot answer any more
		t.Fatalf("not stopped: %v, %v", status, err)
	}
	asked := p.Ask(1, 1, wire.DeviceConsole, nil)
	if asked == nil {
		t.Fatal("not connected")
	}
	at := len(r.all())
	start := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := asked.Answer(time.Now().Add(testPatience)); err == nil || time.Since(start) > testPatience/2 {
		t.Errorf("the request ended after %v with %v", time.Since(start), err)
	}
	r.waitFor(t, at, "down", 1)
	t.Logf("noticed after %v", time.Since(start))
}

func TestStoppedProcessIsSilent(t *testing.T) {
	_, r, cmd := withProcess(t, func(cfg *PagesConfig) { cfg.SilentAfter = 100 * time.Millisecond })
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	at := r.waitFor(t, 0, "silent", 1)
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.waitFor(t, at, "up", 1)
}
