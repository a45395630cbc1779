package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

const patience = time.Minute

// watcher collects what a supervisor reports.
type watcher struct {
	t      testing.TB
	events chan monitor.Event
}

// expect returns the next event of type E, passing over others.
func expect[E monitor.Event](w *watcher) E {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case ev := <-w.events:
			if e, ok := ev.(E); ok {
				return e
			}
		case <-deadline:
			var want E
			w.t.Fatalf("no %T within %v", want, patience)
		}
	}
}

func testSupervisor(t testing.TB, dir string) (*supervisor, *watcher) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSupervisor(dir, []string{self}, "127.0.0.1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, events: make(chan monitor.Event, 1000)}
	s.report = func(ev monitor.Event) {
		select {
		case w.events <- ev:
		case <-s.ctx.Done():
		}
	}
	s.prepare = func(context.Context, monitor.StartWorker) (guestFiles, error) { return guestFiles{}, nil }
	t.Cleanup(func() {
		_, _ = s.killOnce(^ident.Incarnation(0))
		s.Close()
	})
	return s, w
}

// eventually waits for something to become true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func fileHas(path, text string) func() bool {
	return func() bool {
		raw, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(raw), text)
	}
}

func TestWorkerLife(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.renew(monitor.Lease{Incarnation: 4, Until: 1234})
	s.startWorker(monitor.StartWorker{Spec: spec(9, 4, ""), Created: 5})
	s.startWorker(monitor.StartWorker{Spec: spec(9, 4, ""), Created: 5}) // ignored
	ready := expect[monitor.WorkerReady](w)
	if ready.Incarnation != 4 || ready.Ready.VM != 9 || ready.Ready.PID == os.Getpid() {
		t.Errorf("got %+v", ready)
	}
	dir := s.workerDir(9, 5)
	eventually(t, "the lease that was there before the worker reaches it", fileHas(filepath.Join(dir, "lease"), "1234"))
	s.renew(monitor.Lease{Incarnation: 4, Until: 5678})
	eventually(t, "a new lease reaches it", fileHas(filepath.Join(dir, "lease"), "5678"))
	s.renew(monitor.Lease{Incarnation: 5, Until: 9999}) // another incarnation's
	s.stopWorker(monitor.StopWorker{VM: 9, Reason: "enough"})
	s.stopWorker(monitor.StopWorker{VM: 9, Reason: "enough"})
	if gone := expect[monitor.WorkerGone](w); gone.VM != 9 || gone.PID != ready.Ready.PID || gone.Reason != "exit status 0" {
		t.Errorf("got %+v", gone)
	}
	if raw, _ := os.ReadFile(filepath.Join(dir, "lease")); strings.Contains(string(raw), "9999") {
		t.Error("the worker got the lease of another incarnation")
	}
	if err := s.waitGone(context.Background(), 9); err != nil || s.running() != 0 {
		t.Errorf("%v, %d workers left", err, s.running())
	}
	s.removeFiles(9)
	eventually(t, "the directory goes", func() bool { _, err := os.Stat(dir); return errors.Is(err, os.ErrNotExist) })
}

func TestWorkerFailures(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, "crash"), Created: 1})
	if gone := expect[monitor.WorkerGone](w); gone.PID == 0 || !strings.Contains(gone.Reason, "exit status 3: the machine is made of cheese") {
		t.Errorf("crash: %+v", gone)
	}
	s.prepare = func(context.Context, monitor.StartWorker) (guestFiles, error) {
		return guestFiles{}, errors.New("no such payload")
	}
	s.startWorker(monitor.StartWorker{Spec: spec(2, 1, ""), Created: 1})
	if gone := expect[monitor.WorkerGone](w); gone.VM != 2 || gone.PID != 0 || gone.Reason != "no such payload" {
		t.Errorf("payload: %+v", gone)
	}
	s.prepare = func(ctx context.Context, _ monitor.StartWorker) (guestFiles, error) {
		<-ctx.Done()
		return guestFiles{}, ctx.Err()
	}
	s.startWorker(monitor.StartWorker{Spec: spec(3, 1, ""), Created: 1})
	s.stopWorker(monitor.StopWorker{VM: 3})
	if gone := expect[monitor.WorkerGone](w); gone.VM != 3 || gone.PID != 0 {
		t.Errorf("stopped while its payload was fetched: %+v", gone)
	}
}

func TestKilledWorkerIsNoticed(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, ""), Created: 1})
	pid := expect[monitor.WorkerReady](w).Ready.PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if gone := expect[monitor.WorkerGone](w); gone.PID != pid || gone.Reason != "killed by signal 9 (killed)" {
		t.Errorf("got %+v", gone)
	}
}

// What a worker said comes before the word that it is gone, however long it takes to be heard: a worker that is ready after it has gone would never go.
func TestWordsOfAWorkerComeBeforeItsEnd(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	hears, gone := make(chan struct{}), make(chan struct{})
	s.report = func(ev monitor.Event) {
		switch ev.(type) {
		case monitor.WorkerReady:
			close(hears)
			select {
			case <-gone:
			case <-time.After(200 * time.Millisecond):
			}
		case monitor.WorkerGone:
			close(gone)
		}
		w.events <- ev
	}
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, ""), Created: 1})
	<-hears
	if err := s.worker(1).process().signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	first, second := <-w.events, <-w.events
	if _, ok := first.(monitor.WorkerReady); !ok {
		t.Errorf("first came %#v, then %#v", first, second)
	}
}

// One that hangs before it has said anything is ended, its log tells what it did, and another one comes up in its place.
func TestMuteWorkerIsStartedAgain(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.comeUp = 2
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, "mute"), Created: 1})
	expect[monitor.WorkerReady](w) // the second one's: the first says nothing
	if !fileHas(filepath.Join(s.worker(1).dir, wire.WorkerLogFile), "goroutine ")() {
		t.Error("its log does not tell what it did")
	}
	s.stopWorker(monitor.StopWorker{VM: 1})
	expect[monitor.WorkerGone](w)
}

// closing says when a connection is closed by its owner.
type closing struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// What a worker said before it closed is heard, although it cannot be told anything any more.
func TestLastWordsAreHeard(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	ours, theirs := socketPair(t)
	conn := &closing{Conn: ours, closed: make(chan struct{})}
	s.report = func(ev monitor.Event) {
		select { // the first is taken in slowly, while the other direction fails
		case <-conn.closed:
		case <-time.After(100 * time.Millisecond):
		}
		w.events <- ev
	}
	for _, m := range []wire.FromWorker{{Hint: &wire.WorkerHint{}}, {Ended: &wire.WorkerEnded{ExitStatus: 7}}} {
		if err := wire.WriteJSON(theirs, &m); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	worker := &worker{vm: 1, wake: make(chan struct{}, 1), lease: &wire.WorkerLease{}}
	if err := s.exchange(t.Context(), worker, conn); err == nil {
		t.Error("the connection did not end")
	}
	expect[monitor.WorkerHint](w)
	if e := expect[monitor.WorkerEnded](w); e.Ended.ExitStatus != 7 {
		t.Errorf("heard %+v", e)
	}
}

func socketPair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

func TestStubbornWorkerIsKilled(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, "stubborn"), Created: 1})
	expect[monitor.WorkerReady](w)
	began := time.Now()
	s.stopWorker(monitor.StopWorker{VM: 1})
	if gone := expect[monitor.WorkerGone](w); !strings.HasPrefix(gone.Reason, "killed by signal 9") {
		t.Errorf("got %+v", gone)
	}
	if took := time.Since(began); took < stopGrace {
		t.Errorf("killed after %v already", took)
	}
}

// A serve process ends; its successor finds the workers, and tells those of old incarnations from its own by what it is told to kill.
func TestAdoption(t *testing.T) {
	dir := t.TempDir()
	first, w := testSupervisor(t, dir)
	pids := map[ident.VMID]int{}
	for vm := ident.VMID(1); vm <= 3; vm++ {
		first.startWorker(monitor.StartWorker{Spec: spec(vm, ident.Incarnation(vm), ""), Created: 1})
	}
	for range 3 {
		r := expect[monitor.WorkerReady](w).Ready
		pids[r.VM] = r.PID
	}
	first.sendMembers(monitor.SendMembers{VM: 2, Members: wire.WorkerMembers{Epoch: 77}})
	first.startWorker(monitor.StartWorker{Spec: spec(4, 4, "deaf"), Created: 1})
	eventually(t, "the deaf one runs", func() bool {
		p := first.worker(4)
		return p != nil && p.process() != nil
	})
	// What the worker was told last must have arrived before the connection ends.
	eventually(t, "all workers run", func() bool { own, err := first.ownProcesses(); closeAll(own); return err == nil && len(own) == 4 })
	first.Close()

	second, w2 := testSupervisor(t, dir)
	second.adopt()
	adopted := expect[monitor.Adopted](w2)
	if len(adopted.Workers) != 3 {
		t.Fatalf("adopted %+v", adopted)
	}
	for _, a := range adopted.Workers {
		if a.Ready.PID != pids[a.Ready.VM] || a.Incarnation != ident.Incarnation(a.Ready.VM) {
			t.Errorf("adopted %+v, it was pid %d", a, pids[a.Ready.VM])
		}
	}
	second.killWorkers(2)
	killed := expect[monitor.WorkersKilled](w2)
	if killed.UpTo != 2 || second.worker(3) == nil || second.worker(1) != nil {
		t.Errorf("killed %+v, %d left", killed, second.running())
	}
	second.renew(monitor.Lease{Incarnation: 3, Until: 4242})
	eventually(t, "the adopted worker gets leases", fileHas(filepath.Join(second.workerDir(3, 1), "lease"), "4242"))
	second.stopWorker(monitor.StopWorker{VM: 3})
	if gone := expect[monitor.WorkerGone](w2); gone.VM != 3 {
		t.Errorf("got %+v", gone)
	}
	own, err := second.ownProcesses()
	closeAll(own)
	if err != nil || len(own) != 0 {
		t.Errorf("%d worker processes left, %v", len(own), err)
	}
}

func closeAll(own []ownProcess) {
	for _, p := range own {
		p.Close()
	}
}

// Workers that no supervisor knows, such as those that a killed serve was just starting, are found and killed too.
func TestKillFindsStrays(t *testing.T) {
	dir := t.TempDir()
	first, w := testSupervisor(t, dir)
	for vm := ident.VMID(1); vm <= 5; vm++ {
		first.startWorker(monitor.StartWorker{Spec: spec(vm, 1, ""), Created: 1})
		expect[monitor.WorkerReady](w)
	}
	first.Close()
	second, w2 := testSupervisor(t, dir)
	if err := os.Remove(filepath.Join(second.workerDir(3, 1), wire.WorkerSpecFile)); err != nil {
		t.Fatal(err)
	}
	second.killWorkers(1)
	expect[monitor.WorkersKilled](w2)
	own, err := second.ownProcesses()
	closeAll(own)
	if err != nil || len(own) != 0 {
		t.Errorf("%d left, %v", len(own), err)
	}
}

func TestKeepOnly(t *testing.T) {
	s, _ := testSupervisor(t, t.TempDir())
	for vm := ident.VMID(1); vm <= 3; vm++ {
		if err := os.Mkdir(s.workerDir(vm, 9), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.keepOnly(func(vm ident.VMID) bool { return vm == 2 })
	eventually(t, "only VM 2 is kept", func() bool {
		left, err := os.ReadDir(s.dir)
		return err == nil && len(left) == 1 && left[0].Name() == "2-9"
	})
}

// A worker is not told of renewals that bring little, and of all others.
func TestLeaseSteps(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.leaseStep = 10
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, ""), Created: 1})
	expect[monitor.WorkerReady](w)
	told := ""
	for _, until := range []ident.Micros{100, 109, 110, 115, 400} {
		s.renew(monitor.Lease{Incarnation: 1, Until: until})
		if until == 109 || until == 115 {
			continue
		}
		told += fmt.Sprintln(int64(until))
		eventually(t, "told", fileHas(filepath.Join(s.workerDir(1, 1), "lease"), told))
	}
}

// A connection that breaks is made again, and what the worker must know is sent again.
func TestReconnect(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, "hang-up"), Created: 1})
	expect[monitor.WorkerReady](w)
	s.renew(monitor.Lease{Incarnation: 1, Until: 31})
	lease := filepath.Join(s.workerDir(1, 1), "lease")
	eventually(t, "lease", fileHas(lease, "31\n"))
	s.sendMembers(monitor.SendMembers{VM: 1, Members: wire.WorkerMembers{Epoch: 8}})
	if r := expect[monitor.WorkerReady](w); r.Ready.Epoch != 8 {
		t.Errorf("got %+v", r)
	}
	eventually(t, "lease again", fileHas(lease, "31\n31\n"))
}

func TestProcessHandles(t *testing.T) {
	if _, err := openProcess(os.Getpid(), 1); !errors.Is(err, errGone) {
		t.Errorf("a process with another start time: %v", err)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if _, err := openProcess(pid, 0); !errors.Is(err, errGone) {
			t.Errorf("pid %d: %v", pid, err)
		}
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p, err := openProcess(os.Getpid(), start)
	if err != nil {
		t.Fatal(err)
	}
	if p.gone() {
		t.Error("this process is said to be gone")
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Add(1)
	go func() {
		defer all.Done()
		if err := p.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("wait: %v", err)
		}
	}()
	cancel()
	all.Wait()
	p.Close()
}

// Dead processes that nobody has waited for are gone, too: after a kill -9 of a whole cell the zombies may stay for long.
func TestZombieIsGone(t *testing.T) {
	s, w := testSupervisor(t, t.TempDir())
	s.startWorker(monitor.StartWorker{Spec: spec(1, 1, ""), Created: 1})
	r := expect[monitor.WorkerReady](w).Ready
	s.cancel() // the supervisor lets go without waiting for its child
	s.tasks.Wait()
	p, err := openProcess(r.PID, r.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if p.gone() {
		t.Error("a stopped process is not gone")
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID))
	if err != nil || !strings.Contains(string(raw), ") Z ") {
		t.Skipf("it is no zombie here: %s %v", raw, err)
	}
	if err := awaitGone(context.Background(), r.PID, r.StartTime); err != nil {
		t.Errorf("a zombie is gone: %v", err)
	}
	var status unix.WaitStatus
	_, _ = unix.Wait4(r.PID, &status, 0, nil)
}
