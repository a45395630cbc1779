package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
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
	"github.com/cellvisor/cellvisor/wire"
)

// gangs runs this server's gang scheduler: what it decides goes to the workers as datagrams and to other servers as envelopes. It has a loop of its
// own beside the monitor's, which waits for disks.
//
//	board --View--> core --Order--> <worker>/run.sock
//	peers --Slice, Report--> core --GangSlice, GangReport--> peers
//	bell  --Note--> core
type gangs struct {
	core  *gang.Core // the loop's
	view  gang.View  // the loop's; what the core knows
	inbox chan gang.Event
	query chan chan gangStats
	done  chan struct{} // closed when the loop has ended

	self  ident.ServerID
	log   zerolog.Logger
	cpus  []uint16      // by slot; nil: threads are not bound
	peers *link.Peers   // the loop's; set before run
	dir   int           // descriptor of the workers' directory: paths of sockets are short through it
	bell  *net.UnixConn // notes come in
	out   int           // datagram socket for orders

	vmDir  func(ident.VMID) string // the worker's directory, "" if there is none
	now    func() *snapshot
	turns  sliceLog
	failed uint64 // orders that could not be delivered
	busy   time.Duration
}

// gangStats are the counters of the core and the shell.
type gangStats struct {
	core   gang.Counters
	failed uint64
	busy   time.Duration
}

const gangInbox = 1024

// startGangs makes the sockets. The loop begins with run, and needs peers then.
func startGangs(s *Server) (*gangs, error) {
	id := s.store.Identity().Server
	g := &gangs{
		core:  gang.New(gang.Config{Self: id, Start: bootMicros(), Host: s.cfg.Sched == config.SchedHost, Distance: slotDistances("/sys", slotCPUs(s.cfg))}),
		inbox: make(chan gang.Event, gangInbox), query: make(chan chan gangStats), done: make(chan struct{}),
		self: id, log: s.log, cpus: slotCPUs(s.cfg), dir: -1, out: -1, now: s.board.now,
	}
	g.vmDir = func(vm ident.VMID) string {
		if w := s.workers.worker(vm); w != nil {
			return filepath.Base(w.dir)
		}
		return ""
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
	if g.out, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return err
	}
	path := filepath.Join(dir, wire.WorkersBell)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	g.bell, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: g.path(wire.WorkersBell), Net: "unixgram"})
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
	go g.listenToWorkers()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		snap := g.now()
		g.follow(snap)
		g.flush()
		wait := time.Hour
		if at, ok := g.core.NextDeadline(); ok {
			wait = max(0, time.Duration(at-bootMicros())*time.Microsecond)
		}
		timer.Reset(wait)
		select {
		case ev := <-g.inbox:
			g.step(ev)
		case <-timer.C:
			g.step(gang.Tick{})
		case <-snap.next:
		case q := <-g.query:
			q <- gangStats{g.core.Counters(), g.failed, g.busy}
		case <-ctx.Done():
			g.step(gang.View{})
			g.flush()
			return
		}
	}
}

// step steps the core with an event and all others that wait already.
func (g *gangs) step(ev gang.Event) {
	began := time.Now()
	g.core.Step(bootMicros(), ev)
	for range gangInbox {
		select {
		case ev := <-g.inbox:
			g.core.Step(bootMicros(), ev)
			continue
		default:
		}
		break
	}
	g.flush()
	g.busy += time.Since(began)
}

// follow tells the core what has changed in the replicated state.
func (g *gangs) follow(snap *snapshot) {
	v := gangView(snap)
	if !reflect.DeepEqual(v, g.view) {
		g.view = v
		g.core.Step(bootMicros(), v)
		g.turns.follow(bootMicros(), func(vm ident.VMID) bool {
			return slices.ContainsFunc(v.VMs, func(x gang.VM) bool { return x.ID == vm })
		})
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

// give sends a worker its order. One that is lost is repeated by the core; the worker is free by itself if none comes.
func (g *gangs) give(o gang.Order) {
	dir := g.vmDir(o.VM)
	if dir == "" {
		return
	}
	order := o.SliceOrder
	order.CPUs = nil
	for _, slot := range o.CPUs {
		if int(slot) < len(g.cpus) {
			order.CPUs = append(order.CPUs, g.cpus[slot])
		}
	}
	var buf [wire.SliceDatagramLimit]byte
	to := unix.SockaddrUnix{Name: g.path(filepath.Join(dir, wire.WorkerRunSocket))}
	if err := unix.Sendto(g.out, wire.AppendSliceOrder(buf[:0], &order), unix.MSG_DONTWAIT, &to); err != nil {
		g.failed++
		g.log.Debug().Err(err).Uint64("vm", uint64(o.VM)).Msg("an order about slices was not delivered")
	}
}

// listenToWorkers takes the workers' notes until the bell is closed.
func (g *gangs) listenToWorkers() {
	var buf [wire.SliceDatagramLimit]byte
	for {
		n, _, err := g.bell.ReadFromUnix(buf[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if note, derr := wire.DecodeSliceNote(buf[:n]); err == nil && derr == nil {
			g.report(gang.Note{SliceNote: note})
		}
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
	case <-g.done:
	}
}

// addStats adds the scheduler's counters.
func (g *gangs) addStats(out map[string]uint64) {
	q := make(chan gangStats, 1)
	select {
	case g.query <- q:
	case <-g.done:
		return
	}
	st := <-q
	addCounters(out, "gang.", st.core)
	out["gang.undelivered"] = st.failed
	out["gang.busy_micros"] = uint64(st.busy.Microseconds())
	out["gang.start_skew.count"] = st.core.StartSkew.Count
	out["gang.start_skew.p50_us"] = uint64(st.core.StartSkew.Permille(500))
	out["gang.start_skew.p99_us"] = uint64(st.core.StartSkew.Permille(990))
}

func (g *gangs) close() {
	if g.bell != nil {
		g.bell.Close()
		_ = unix.Unlinkat(g.dir, wire.WorkersBell, 0)
	}
	for _, fd := range []int{g.out, g.dir} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
