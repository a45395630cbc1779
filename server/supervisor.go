package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// How long the supervisor is patient with a worker.
const (
	stopGrace    = 1500 * time.Millisecond // from Stop to SIGKILL
	adoptGrace   = 5 * time.Second         // for a worker's Ready when serve starts
	connectGrace = 30 * time.Second        // for the socket of a worker that was just started
	writeGrace   = 2 * time.Second         // for one message to a worker
	lastWords    = time.Second             // from the end of a process until all that it said has been heard
	endGrace     = 20 * time.Millisecond   // between the end of a connection and that of its process
	redialPause  = 5 * time.Millisecond
)

// supervisor starts, adopts, talks to and ends the worker processes of this server.
//
//	StartWorker --> preparing --> started --> connected --(Ready)--> serving --> gone
//	                    \            \            ^  |                  ^
//	                     \            \           |  v                  |
//	                      \            \--------> dialing <-- adopted --+
//	                       \--> gone (PID 0)
//
// None of the methods that the loop calls blocks: each worker has goroutines of its own, and what they learn comes back as events.
//
// Lock order: supervisor.mu before worker.mu.
type supervisor struct {
	dir        string   // <data>/workers
	command    []string // run as `command... worker --dir DIR`
	listenHost string
	jail       *wire.WorkerJail // nil: workers are not confined
	noPIDNS    atomic.Bool      // the kernel has refused to make PID namespaces for them
	groups     *jail.Groups     // nil: what they take is not bounded
	mayDial    func(vm ident.VMID, addr string) bool
	diskOf     func(vm ident.VMID, name string) (wire.WorkerDisk, bool)
	seal       bool                                                                     // page traffic is encrypted
	idleSleep  bool                                                                     // see wire.WorkerSpec
	scrub      ident.Micros                                                             // see wire.WorkerSpec
	leaseStep  ident.Micros                                                             // workers are told of no renewal that brings less
	slow       int                                                                      // workers may be silent for so many times longer than usual
	comeUp     int                                                                      // ticks of silence until a worker has to have said something
	prepare    func(ctx context.Context, start monitor.StartWorker) (guestFiles, error) // brings the payload here
	report     func(monitor.Event)                                                      // blocks until the loop takes it or has ended
	log        zerolog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	counts supervisorCounts

	mu      sync.Mutex
	workers map[ident.VMID]*worker // protected by mu
	lease   monitor.Lease          // protected by mu
	rule    memoryRule             // set before the first worker

	images images
}

type supervisorCounts struct {
	started, adopted, gone, killed, redials, fenced, failedStarts, refusedDials atomic.Uint64
}

func newSupervisor(dir string, command []string, listenHost string, log zerolog.Logger) (*supervisor, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create directory of workers: %w", err)
	}
	s := &supervisor{dir: dir, command: command, listenHost: listenHost, log: log, slow: 1, comeUp: comeUpTicks, workers: make(map[ident.VMID]*worker)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close lets go of all workers, which live on, and waits for the supervisor's goroutines.
func (s *supervisor) Close() {
	s.cancel()
	s.tasks.Wait()
}

func (s *supervisor) start(f func()) {
	s.tasks.Add(1)
	go func() {
		defer s.tasks.Done()
		f()
	}()
}

// workerDir is the directory of a VM's worker here.
func (s *supervisor) workerDir(vm ident.VMID, created ident.Epoch) string {
	return filepath.Join(s.dir, fmt.Sprintf("%d-%d", vm, created))
}

// diskDir is where this server keeps its copies of guest disks.
func (s *supervisor) diskDir() string { return filepath.Join(filepath.Dir(s.dir), "disks") }

// startWorker carries out the action. A second one for the same VM is ignored.
func (s *supervisor) startWorker(a monitor.StartWorker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.workers[a.Spec.VM] != nil || s.ctx.Err() != nil {
		return
	}
	w := s.add(a.Spec.VM, a.Spec.Incarnation, s.workerDir(a.Spec.VM, a.Created))
	s.start(func() { s.run(w, a) })
}

// add requires mu.
func (s *supervisor) add(vm ident.VMID, inc ident.Incarnation, dir string) *worker {
	w := &worker{vm: vm, incarnation: inc, dir: dir, wake: make(chan struct{}, 1), exited: make(chan struct{}), done: make(chan struct{}), dials: make(chan struct{}, maxDials)}
	w.ctx, w.cancel = context.WithCancel(s.ctx)
	if s.lease.Incarnation == inc {
		w.lease = &wire.WorkerLease{UntilBootMicros: s.lease.Until}
	}
	s.workers[vm] = w
	return w
}

func (s *supervisor) sendMembers(a monitor.SendMembers) {
	if w := s.worker(a.VM); w != nil {
		w.post(func() { w.members = &a.Members })
	}
}

func (s *supervisor) sendProtect(a monitor.SendProtect) {
	if w := s.worker(a.VM); w != nil {
		w.post(func() { w.protect = &a.Protect })
	}
}

func (s *supervisor) sendSwitch(a monitor.SendSwitch) {
	if w := s.worker(a.VM); w != nil {
		w.post(func() { w.swtch = &wire.WorkerSwitch{Seq: a.Seq} })
	}
}

func (s *supervisor) sendPause(a monitor.SendPause) {
	if w := s.worker(a.VM); w != nil {
		w.post(func() { w.pause = &a.Pause })
	}
}

func (s *supervisor) sendHand(a monitor.SendHand) {
	if w := s.worker(a.VM); w != nil {
		w.post(func() { w.hand = &a.Hand })
	}
}

// stopWorker asks a worker to end and kills it when it does not.
func (s *supervisor) stopWorker(a monitor.StopWorker) {
	w := s.worker(a.VM)
	if w == nil {
		return
	}
	first := false
	w.post(func() {
		first = w.stop == nil
		w.stop = &wire.WorkerStop{Reason: a.Reason, Final: a.Final}
	})
	if !first {
		return
	}
	if w.process() == nil {
		w.cancel() // it is still being prepared
	}
	s.start(func() {
		select {
		case <-w.done:
		case <-s.ctx.Done():
		case <-time.After(stopGrace):
			s.log.Warn().Uint64("vm", uint64(w.vm)).Msg("worker does not stop: killing it")
			s.kill(w)
		}
	})
}

func (s *supervisor) kill(w *worker) {
	s.counts.killed.Add(1)
	w.killedFor("it did not stop, or is of a time before its server was admitted anew")
	w.cancel()
	if p := w.process(); p != nil {
		if err := p.signal(unix.SIGKILL); err != nil {
			s.log.Error().Err(err).Msg("cannot kill a worker")
		}
	}
}

// killWorkers ends every worker process with an incarnation up to the given one, those that only /proc knows included, and reports when
// none is left.
func (s *supervisor) killWorkers(upTo ident.Incarnation) {
	s.start(func() {
		for s.ctx.Err() == nil {
			left, err := s.killOnce(upTo)
			if err != nil {
				s.log.Error().Err(err).Msg("cannot make sure that all old workers are gone: trying again")
			} else if left == 0 {
				s.report(monitor.WorkersKilled{UpTo: upTo})
				return
			}
			select {
			case <-s.ctx.Done():
			case <-time.After(redialPause):
			}
		}
	})
}

// killOnce kills what it finds, waits for it, and returns how many it found.
func (s *supervisor) killOnce(upTo ident.Incarnation) (found int, err error) {
	s.mu.Lock()
	var known []*worker
	for _, w := range s.workers {
		if w.incarnation <= upTo {
			known = append(known, w)
		}
	}
	s.mu.Unlock()
	for _, w := range known {
		s.kill(w)
	}
	for _, w := range known {
		select {
		case <-w.done:
		case <-s.ctx.Done():
		}
	}
	strays, err := s.ownProcesses()
	if err != nil {
		return 0, err
	}
	for _, p := range strays {
		if inc := readSpec(p.dir).Incarnation; inc > upTo {
			p.Close()
			continue
		}
		found++
		s.counts.killed.Add(1)
		if err := p.signal(unix.SIGKILL); err == nil {
			_ = p.wait(s.ctx)
		}
		p.Close()
	}
	return found + len(known), nil
}

// ownProcess is a worker process of this server with a handle on it.
type ownProcess struct {
	*process
	dir string
}

// ownProcesses finds the worker processes of this data directory in /proc. The caller closes the handles.
func (s *supervisor) ownProcesses() ([]ownProcess, error) {
	all, err := findWorkers()
	if err != nil {
		return nil, fmt.Errorf("look for workers: %w", err)
	}
	var own []ownProcess
	for _, f := range all {
		if filepath.Dir(f.dir) != s.dir {
			continue
		}
		p, err := openProcess(f.pid, 0)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p.gone() || !stillWorker(f) { // the PID may have passed to another process before the handle was taken
			p.Close()
			continue
		}
		own = append(own, ownProcess{process: p, dir: f.dir})
	}
	return own, nil
}

// removeFiles deletes what is kept of a removed VM.
func (s *supervisor) removeFiles(vm ident.VMID) {
	w := s.worker(vm)
	s.start(func() {
		if w != nil {
			select {
			case <-w.done:
			case <-s.ctx.Done():
				return
			}
		}
		dirs, _ := filepath.Glob(filepath.Join(s.dir, strconv.FormatUint(uint64(vm), 10)+"-*"))
		for _, d := range dirs {
			if err := os.RemoveAll(d); err != nil {
				s.log.Warn().Err(err).Msg("cannot remove the files of a removed VM")
			}
		}
	})
}

// keepOnly deletes the directories of VMs that keep does not know: they were removed while this server was away.
func (s *supervisor) keepOnly(keep func(ident.VMID) bool) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), "-")
		vm, err := strconv.ParseUint(id, 10, 64)
		if err == nil && !keep(ident.VMID(vm)) {
			s.removeFiles(ident.VMID(vm))
		}
	}
}

// worker returns the worker of a VM, or nil.
func (s *supervisor) worker(vm ident.VMID) *worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workers[vm]
}

// waitGone returns when no worker of the VM runs here.
func (s *supervisor) waitGone(ctx context.Context, vm ident.VMID) error {
	w := s.worker(vm)
	if w == nil {
		return nil
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish forgets a worker and reports its end, after all that it said: one that is ready after it has gone would never go.
func (s *supervisor) finish(w *worker, pid int, reason string) {
	close(w.exited)
	w.talks.Wait()
	s.mu.Lock()
	delete(s.workers, w.vm)
	s.mu.Unlock()
	s.counts.gone.Add(1)
	reason = w.endReason(reason)
	if s.leaveGroup(w.dir) {
		reason += ": it wanted more memory than its control group may have"
	}
	w.cancel()
	close(w.done)
	s.log.Info().Uint64("vm", uint64(w.vm)).Int("pid", pid).Str("reason", reason).Msg("worker ended")
	s.report(monitor.WorkerGone{VM: w.vm, PID: pid, Reason: reason})
}

// running counts the workers.
func (s *supervisor) running() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.workers)
}

// all returns the workers, by VM.
func (s *supervisor) all() []*worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.workers), func(a, b *worker) int { return cmp.Compare(a.vm, b.vm) })
}
