package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// worker is one worker process as the supervisor knows it.
type worker struct {
	vm          ident.VMID
	incarnation ident.Incarnation
	dir         string
	dials       chan struct{}   // holds a token for each connection that is being made for it
	ctx         context.Context // ends with the supervisor, or when the worker is to be killed
	cancel      context.CancelFunc
	wake        chan struct{}  // there is something to send
	turns       atomic.Bool    // it can be told of slices to come
	exited      chan struct{}  // closed when the process is gone; what it said before may still have to be heard
	talks       sync.WaitGroup // its conversation, which ends soon after that
	done        chan struct{}  // closed when that has been heard, too

	mu      sync.Mutex
	proc    *process                            // protected by mu; nil before the start
	lease   *wire.WorkerLease                   // protected by mu; these four: what the worker is to know, the newest only
	members *wire.WorkerMembers                 // protected by mu
	protect *wire.WorkerProtect                 // protected by mu
	swtch   *wire.WorkerSwitch                  // protected by mu
	pause   *wire.WorkerPause                   // protected by mu
	hand    *wire.WorkerHand                    // protected by mu
	stop    *wire.WorkerStop                    // protected by mu
	faults  *wire.WorkerFaults                  // protected by mu
	sent    sentMarks                           // protected by mu; what this connection has carried
	heard   uint64                              // protected by mu; messages
	hearing bool                                // protected by mu; one is being taken in, which waits while the loop is busy
	stats   *wire.WorkerStats                   // protected by mu
	statsAt ident.Micros                        // protected by mu; when they came
	asked   *wire.WorkerMapAsk                  // protected by mu; the newest question only
	maps    map[uint64]chan *wire.WorkerPageMap // protected by mu; who waits for an answer, by token
	typed   typing
	peers   *wire.WorkerPeers   // protected by mu
	guest   ofGuest             // protected by mu
	lenders *wire.WorkerLenders // protected by mu
	killed  string              // protected by mu; why this server killed it, if it did
	again   bool                // protected by mu; its first process did not come up
}

// killedFor notes why this server kills the worker: its exit status will only tell that somebody did.
func (w *worker) killedFor(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.killed == "" {
		w.killed = why
	}
}

// endReason is how the worker ended: exit, with why this server killed it.
func (w *worker) endReason(exit string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.killed == "" {
		return exit
	}
	return exit + " by its server: " + w.killed
}

type sentMarks struct {
	lease   *wire.WorkerLease
	members *wire.WorkerMembers
	protect *wire.WorkerProtect
	swtch   *wire.WorkerSwitch
	hand    *wire.WorkerHand
	pause   *wire.WorkerPause
	stop    *wire.WorkerStop
	faults  *wire.WorkerFaults
	asked   *wire.WorkerMapAsk
	typed   uint64 // number
	peers   *wire.WorkerPeers
	memory  *wire.WorkerMemory
	lenders *wire.WorkerLenders
}

// post changes what the worker is to know and wakes the sender.
func (w *worker) post(change func()) {
	w.mu.Lock()
	change()
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) process() *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.proc
}

func (w *worker) counters() *wire.WorkerStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// run prepares, starts and accompanies one worker until its process is gone.
func (s *supervisor) run(w *worker, a monitor.StartWorker) {
	cmd, release, err := s.prepareAndLaunch(w, a)
	defer release()
	if err != nil {
		s.counts.failedStarts.Add(1)
		if s.ctx.Err() == nil {
			s.finish(w, 0, err.Error())
		} else {
			close(w.done)
		}
		return
	}
	s.counts.started.Add(1)
	p := w.process()
	defer p.Close()
	s.attend(w, p, nil)
	if p.wait(s.ctx) != nil {
		close(w.done) // serve ends, the worker goes on
		return
	}
	werr := cmd.Wait()
	if s.startAgain(w, p.pid) {
		w.talks.Wait() // which soon finds that it is gone
		s.run(w, a)
		return
	}
	s.finish(w, p.pid, exitReason(cmd.ProcessState, werr, w.dir))
}

// launch writes the spec and starts the process, which inherits the shared files.
func (s *supervisor) launch(w *worker, a monitor.StartWorker, files guestFiles, shared []*os.File) (*exec.Cmd, error) {
	spec := a.Spec
	spec.ListenHost, spec.IdleSleep, spec.DiskDir, spec.ScrubMicros = s.listenHost, s.idleSleep, s.diskDir(), s.scrub
	spec.Memory = s.firstMemory(w, spec.MemoryBytes)
	s.secure(&spec)
	if files.payload != "" {
		spec.PayloadPath = files.payload
	}
	spec.SavedPath = files.saved
	if spec.Linux != nil {
		l := *spec.Linux
		l.InitrdPath = files.initrd
		spec.Linux = &l
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("create the worker's directory: %w", err)
	}
	if err := writeSpec(w.dir, &spec); err != nil {
		return nil, err
	}
	if err := s.giveDir(w.dir); err != nil {
		return nil, err
	}
	if w.ctx.Err() != nil {
		return nil, errors.New("stopped before its worker was started")
	}
	cmd, p, err := s.spawn("worker", w.dir, groupLimits(&spec), shared...) // without the lock, which the loop wants, too: on a busy host this takes a while
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proc = p
	if w.ctx.Err() != nil { // a kill has seen the process, or is made good here
		if w.killed == "" {
			w.killed = "it was stopped while it was being started"
		}
		_ = p.signal(unix.SIGKILL)
	}
	return cmd, nil
}

// spawn starts the process of a worker's directory, which is to outlive this one, in a control group if there are any. what it is people are told if that fails.
func (s *supervisor) spawn(what, dir string, limits jail.Limits, inherits ...*os.File) (*exec.Cmd, *process, error) {
	// A session of its own: a signal to the terminal's or the launcher's group must not reach it, and it survives this process.
	attr := &syscall.SysProcAttr{Setsid: true}
	if s.groups != nil {
		group, err := s.groups.Make(filepath.Base(dir), limits)
		if err != nil {
			return nil, nil, err
		}
		defer group.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(group.Fd())
	}
	log, err := os.OpenFile(filepath.Join(dir, wire.WorkerLogFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("create the %s's log: %w", what, err)
	}
	defer log.Close()
	args := append(append(append([]string{}, s.command[1:]...), workerCommand...), dir)
	cmd, err := s.begin(func() *exec.Cmd {
		cmd, own := exec.Command(s.command[0], args...), *attr
		cmd.Dir = dir
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, inherits
		cmd.SysProcAttr = &own
		return cmd
	})
	if err != nil {
		return nil, nil, fmt.Errorf("start the %s: %w", what, err)
	}
	p, err := openProcess(cmd.Process.Pid, 0) // our own child, not waited for: its PID cannot have been reused
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, nil, fmt.Errorf("watch the %s: %w", what, err)
	}
	return cmd, p, nil
}

func writeSpec(dir string, spec *wire.WorkerSpec) error {
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("write the worker's spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, wire.WorkerSpecFile), raw, 0o600); err != nil {
		return fmt.Errorf("write the worker's spec: %w", err)
	}
	return nil
}

// readSpec returns the spec in a worker's directory, and an empty one, which is of no incarnation, if it cannot be read.
func readSpec(dir string) wire.WorkerSpec {
	var spec wire.WorkerSpec
	raw, err := os.ReadFile(filepath.Join(dir, wire.WorkerSpecFile))
	if err != nil || json.Unmarshal(raw, &spec) != nil {
		return wire.WorkerSpec{}
	}
	return spec
}

// stillWorker tells whether the PID still belongs to this worker.
func stillWorker(f workerProcess) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", f.pid))
	return err == nil && strings.HasSuffix(string(raw), strings.Join(append(workerCommand, f.dir, ""), "\x00"))
}

// adopt finds the workers that an earlier serve left, connects to them, and reports those that answer. One that does not is killed.
func (s *supervisor) adopt() {
	own, err := s.ownProcesses()
	if err != nil {
		s.log.Error().Err(err).Msg("cannot look for workers of an earlier run")
	}
	own = slices.DeleteFunc(own, func(p ownProcess) bool { // see lenderProcess
		lends := readSpec(p.dir).Lends
		if lends {
			p.Close()
		}
		return lends
	})
	results := make([]*adopted, len(own))
	var all sync.WaitGroup
	for i, p := range own {
		all.Add(1)
		s.start(func() {
			defer all.Done()
			results[i] = s.adoptOne(p)
		})
	}
	all.Wait()
	var alive []monitor.AdoptedWorker
	for _, r := range results {
		if r != nil {
			alive = append(alive, monitor.AdoptedWorker{Incarnation: r.w.incarnation, Ready: *r.ready})
		}
	}
	s.report(monitor.Adopted{Workers: alive})
	for _, r := range results { // only now: what they say must come after the adoption
		if r != nil {
			s.attend(r.w, r.w.process(), r.conn)
			s.start(func() { s.accompany(r.w) })
		}
	}
}

// adopted is a worker that answered.
type adopted struct {
	w     *worker
	ready *wire.WorkerReady
	conn  net.Conn
}

// accompany waits for the end of a worker that is not our child.
func (s *supervisor) accompany(w *worker) {
	p := w.process()
	defer p.Close()
	if p.wait(s.ctx) != nil {
		close(w.done) // serve ends, the worker goes on
		return
	}
	s.finish(w, p.pid, "its process ended")
}

func (s *supervisor) adoptOne(p ownProcess) *adopted {
	spec := readSpec(p.dir)
	ctx, cancel := context.WithTimeout(s.ctx, adoptGrace)
	defer cancel()
	var ready *wire.WorkerReady
	conn, err := dialWorker(ctx, p.process, p.dir)
	if err == nil {
		ready, err = awaitReady(conn, adoptGrace)
		if err == nil && ready.VM != spec.VM {
			err = fmt.Errorf("the worker says it is of VM %d, its directory is of VM %d", ready.VM, spec.VM)
		}
	}
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		s.log.Warn().Err(err).Str("dir", p.dir).Int("pid", p.pid).Msg("worker of an earlier run does not answer: killing it")
		s.counts.killed.Add(1)
		if err := p.signal(unix.SIGKILL); err == nil {
			_ = p.wait(s.ctx)
		}
		p.Close()
		return nil
	}
	s.counts.adopted.Add(1)
	s.mu.Lock()
	w := s.add(spec.VM, spec.Incarnation, p.dir)
	w.proc, w.guest = p.process, ofGuest{bytes: spec.MemoryBytes, limit: spec.Memory}
	w.turns.Store(ready != nil && ready.Turns)
	s.mu.Unlock()
	return &adopted{w: w, ready: ready, conn: conn}
}

// dialWorker connects to a worker's socket, again and again until it listens, the process is gone, or the context ends.
func dialWorker(ctx context.Context, p *process, dir string) (net.Conn, error) {
	return dialSocket(ctx, p, dir, wire.WorkerCtlSocket)
}

// dialSocket is dialWorker for any socket in a worker's directory.
func dialSocket(ctx context.Context, p *process, dir, name string) (net.Conn, error) {
	// Through a descriptor of the directory: a socket's path has 107 bytes at most, a data directory may be deeper.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the worker's directory: %w", err)
	}
	defer unix.Close(fd)
	path := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		if p.gone() {
			return nil, errGone
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the worker: %w", err)
		case <-time.After(redialPause):
		}
	}
}

// awaitReady reads a connection up to the worker's Ready. A worker whose set-up failed says only that it ended.
func awaitReady(conn net.Conn, patience time.Duration) (*wire.WorkerReady, error) {
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for {
		var m wire.FromWorker
		if err := wire.ReadJSON(conn, &m, wire.JSONLimit); err != nil {
			return nil, err
		}
		switch {
		case m.Ready != nil:
			_ = conn.SetReadDeadline(time.Time{})
			return m.Ready, nil
		case m.Ended != nil:
			return nil, errors.New(m.Ended.Reason)
		}
	}
}
