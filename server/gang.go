package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/link/priority"
	"github.com/cellvisor/cellvisor/wire"
)

// gangs runs this server's gang scheduler: what it decides goes to the workers as datagrams and to other servers as envelopes. It has a loop of its
// own beside the monitor's, which waits for disks, on a thread of its own ahead of all vCPUs: these keep every CPU busy just when slices end.
//
//	board --View--> core --Order--> <worker>/run.sock
//	peers --Slice, Report--> core --GangSlice, GangReport--> peers
//	bell  --Note--> core
type gangs struct {
	core  *gang.Core // the loop's
	view  gang.View  // the loop's; what the core knows
	snap  *snapshot  // the loop's; what view was made of
	inbox chan gang.Event
	query chan chan gangStats
	rung  *os.File      // eventfd: the loop has something to look at
	done  chan struct{} // closed when the loop has ended

	self  ident.ServerID
	log   zerolog.Logger
	cpus  []uint16    // by slot; nil: threads are not bound
	peers *link.Peers // the loop's; set before run
	dir   int         // descriptor of the workers' directory: paths of sockets are short through it
	bell  int         // datagram socket: notes come in
	lines orderLines

	now        func() *snapshot
	turnMicros func() uint64 // of a CPU, that all vCPUs here have used to go from turn to turn
	turns      sliceLog
	failed     uint64 // orders that could not be delivered
	in         [wire.SliceDatagramLimit]byte
}

// gangStats are the counters of the core and the shell.
type gangStats struct {
	core   gang.Counters
	failed uint64
	busy   time.Duration // of a CPU, that the loop's thread used: to decide, and to tell workers
}

const (
	gangInbox   = 1024
	gangQueries = 16
)

// startGangs makes the sockets. The loop begins with run, and needs peers then.
func startGangs(s *Server) (*gangs, error) {
	id := s.store.Identity().Server
	g := &gangs{
		core:  gang.New(gang.Config{Self: id, Start: bootMicros(), Host: s.cfg.Sched == config.SchedHost, Distance: slotDistances("/sys", slotCPUs(s.cfg))}),
		inbox: make(chan gang.Event, gangInbox), query: make(chan chan gangStats, gangQueries), done: make(chan struct{}),
		self: id, log: s.log, cpus: slotCPUs(s.cfg), dir: -1, bell: -1, now: s.board.now,
	}
	g.turnMicros = s.workers.turnMicros
	g.lines.worker = func(vm ident.VMID) (dir string, turns bool) {
		if w := s.workers.worker(vm); w != nil {
			return filepath.Base(w.dir), w.turns.Load()
		}
		return "", false
	}
	err := g.listen(s.workers.dir)
	if err == nil {
		err = s.workers.openToWorkers(s.workers.bellPath())
	}
	if err != nil {
		g.close()
		return nil, fmt.Errorf("gang scheduler: %w", err)
	}
	return g, nil
}

func (g *gangs) listen(dir string) (err error) {
	if g.dir, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	path := filepath.Join(dir, wire.WorkersBell)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if g.bell, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return err
	}
	if err := unix.Bind(g.bell, &unix.SockaddrUnix{Name: g.path(wire.WorkersBell)}); err != nil {
		return err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err == nil {
		g.rung = os.NewFile(uintptr(fd), "eventfd")
	}
	return err
}

// path leads into the workers' directory.
func (g *gangs) path(name string) string { return "/proc/self/fd/" + strconv.Itoa(g.dir) + "/" + name }

// slotCPUs gives each slot a CPU. There is nothing to give if the server has more slots than CPUs: its slots are a figure then.
func slotCPUs(cfg *config.Server) []uint16 {
	var set unix.CPUSet
	if cfg.Sched == config.SchedHost || unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	var cpus []uint16
	for _, c := range cfg.CPUs {
		if !set.IsSet(c) {
			return nil
		}
		cpus = append(cpus, uint16(c))
	}
	for c := 0; len(cfg.CPUs) == 0 && c < len(set)*64; c++ {
		if set.IsSet(c) {
			cpus = append(cpus, uint16(c))
		}
	}
	if len(cpus) < cfg.Slots {
		return nil
	}
	return cpus[:cfg.Slots]
}

// run is the loop. It ends with ctx, and leaves the workers free.
func (g *gangs) run(ctx context.Context) {
	defer close(g.done)
	runtime.LockOSThread() // and never unlocked: the thread ends with it
	priority.First()
	go g.watch(ctx)
	for fd := int(g.rung.Fd()); ctx.Err() == nil; {
		g.follow(g.now())
		g.take()
		g.flush()
		g.sleep(fd)
	}
	g.core.Step(bootMicros(), gang.View{})
	g.flush()
}

// watch rings when the replicated state has changed, and when ctx ends.
func (g *gangs) watch(ctx context.Context) {
	for {
		select {
		case <-g.now().next:
			g.ring()
		case <-ctx.Done():
			g.ring()
			return
		}
	}
}

// ring makes the loop look at everything. Any goroutine may call it.
func (g *gangs) ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = g.rung.Write(one[:]) // a loop that has ended needs nothing
}

// sleep waits for a note of a worker, a ring, or the time of what is to be done next.
func (g *gangs) sleep(rung int) {
	var timeout *unix.Timespec
	if at, ok := g.core.NextDeadline(); ok {
		ts := unix.NsecToTimespec(max(0, int64(at-bootMicros())*1000))
		timeout = &ts
	}
	fds := []unix.PollFd{{Fd: int32(g.bell), Events: unix.POLLIN}, {Fd: int32(rung), Events: unix.POLLIN}}
	if n, err := unix.Ppoll(fds, timeout, nil); err == nil && n > 0 && fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(rung, count[:]) // whatever it was, look at everything
	}
}

// take steps the core with all that has come, and answers queries.
func (g *gangs) take() {
	for range gangInbox {
		select {
		case ev := <-g.inbox:
			g.core.Step(bootMicros(), ev)
			continue
		case q := <-g.query:
			g.core.Step(bootMicros(), gang.Tick{}) // so that all slices up to now are counted
			q <- gangStats{g.core.Counters(), g.failed, threadTime()}
			continue
		default:
		}
		n, _, err := unix.Recvfrom(g.bell, g.in[:], 0)
		if err != nil {
			break
		}
		if note, err := wire.DecodeSliceNote(g.in[:n]); err == nil {
			g.core.Step(bootMicros(), gang.Note{SliceNote: note})
		}
	}
	g.core.Step(bootMicros(), gang.Tick{})
}

// threadTime is the CPU time that the calling thread has used.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// follow tells the core what has changed in the replicated state.
func (g *gangs) follow(snap *snapshot) {
	before := g.snap
	if g.snap = snap; before != nil && before.state == snap.state && before.acting() == snap.acting() {
		return
	}
	v := gangView(snap)
	if !reflect.DeepEqual(v, g.view) {
		g.view = v
		g.core.Step(bootMicros(), v)
		here := func(vm ident.VMID) bool {
			return slices.ContainsFunc(v.VMs, func(x gang.VM) bool { return x.ID == vm })
		}
		g.turns.follow(bootMicros(), here)
		g.lines.follow(here)
	}
}

// gangView is what the scheduler needs of the replicated state. A server outside the view sees nobody, and leaves its workers alone.
func gangView(snap *snapshot) gang.View {
	st := snap.state
	v := gang.View{Epoch: st.View.Epoch}
	if !snap.acting() {
		return v
	}
	for _, m := range st.View.Live {
		if s := st.Server(m.Server); s != nil && s.Role != cells.RoleWitness {
			v.Servers = append(v.Servers, gang.Server{ID: s.ID, Slots: s.Slots})
			if s.HostSched {
				v.Host = append(v.Host, s.ID)
			}
		}
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if vm.State != cells.VMRunning {
			continue
		}
		out := gang.VM{ID: vm.ID, Weight: vm.Spec.Weight}
		for _, p := range vm.Parts {
			if !p.Gone && !p.Standby && len(p.VCPUs) > 0 {
				out.Parts = append(out.Parts, gang.Part{Server: p.Server, VCPUs: len(p.VCPUs)})
			}
		}
		if len(out.Parts) > 0 {
			v.VMs = append(v.VMs, out)
		}
	}
	return v
}

// flush delivers what the core wants.
func (g *gangs) flush() {
	for _, o := range g.core.Orders() {
		g.turns.order(bootMicros(), &o)
		g.give(o)
	}
	for _, m := range g.core.Messages() {
		var body []byte
		if m.Slice != nil {
			body = wire.AppendGangSlice(nil, m.Slice)
		} else {
			body = wire.AppendGangReport(nil, m.Report)
		}
		g.peers.Send(m.To, wire.EnvelopeGang, body)
	}
}

// receive takes a message of another server.
func (g *gangs) receive(e *wire.Envelope) error {
	slice, report, err := wire.DecodeGang(e.Body)
	switch {
	case err != nil:
		return err
	case slice != nil:
		g.report(gang.Slice{From: e.Sender, Epoch: e.Epoch, GangSlice: *slice})
	default:
		g.report(gang.Report{From: e.Sender, Epoch: e.Epoch, GangReport: *report})
	}
	return nil
}

// report hands an event to the loop, and drops it when the loop has ended.
func (g *gangs) report(ev gang.Event) {
	select {
	case g.inbox <- ev:
		g.ring()
	case <-g.done:
	}
}

// addStats adds the scheduler's counters.
func (g *gangs) addStats(out map[string]uint64) {
	q := make(chan gangStats, 1)
	select {
	case g.query <- q:
		g.ring()
	case <-g.done:
		return
	}
	var st gangStats
	select {
	case st = <-q:
	case <-g.done:
		return
	}
	addCounters(out, "gang.", st.core)
	out["gang.undelivered"] = st.failed
	out["gang.busy_micros"] = uint64(st.busy.Microseconds())
	out["gang.turn_micros"] = g.turnMicros()
	out["gang.start_skew.count"] = st.core.StartSkew.Count
	out["gang.start_skew.p50_us"] = uint64(st.core.StartSkew.Permille(500))
	out["gang.start_skew.p99_us"] = uint64(st.core.StartSkew.Permille(990))
}

func (g *gangs) close() {
	if g.bell >= 0 {
		_ = unix.Unlinkat(g.dir, wire.WorkersBell, 0)
	}
	if g.rung != nil {
		g.rung.Close()
	}
	g.lines.follow(func(ident.VMID) bool { return false })
	for _, fd := range []int{g.bell, g.dir} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
