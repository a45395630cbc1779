package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/trust"
	"github.com/cellvisor/cellvisor/vmm/probe"
)

// Version is the program's version, set by the linker.
var Version = "dev"

// Options are what a process may set beyond its configuration file.
type Options struct {
	Log           zerolog.Logger
	WorkerCommand []string // program and first arguments of a worker process; nil: this program
	SkipProbe     bool     // do not look whether this host can run VMs
	Tail          *logTail // the end of the log, for bundles; nil: there is none
}

// Server is one serve process.
type Server struct {
	cfg   *config.Server
	opt   Options
	log   zerolog.Logger
	boot  string // names this run of the process
	host  string
	unfit string // why this host cannot run VMs; "" if it can

	keys    *trust.Credentials // nil: all is on the loopback interface, and nobody proves who it is by a certificate
	store   *disk.Store
	core    *monitor.Core // owned by the loop
	peers   *link.Peers
	gossip  *gossip
	workers *supervisor
	proof   *proof
	audit   *auditor
	service *service
	gangs   *gangs
	loads   *loadReports
	lends   *lendings
	board   board
	faults  *faults
	metrics *metricsEndpoint
	turns   atomic.Uint64 // of the loop

	inbox     chan monitor.Event
	loopDone  chan struct{}
	proposals atomic.Uint64
	waiting   sync.Map // of proposals: uint64 -> chan monitor.Response
	joins     sync.Map // of join requests: uint64 -> chan []byte
	blobPins  blobPins
	count     counts
	stop      context.CancelCauseFunc
}

type counts struct {
	saves, saveMicros, longTurns, lateTurns, hints, blobFetches atomic.Uint64
}

// errAsked ends a server that StopServer asked to end.
var errAsked = errors.New("asked to stop")

// Run runs one serve process with the logging that its configuration asks for. It returns nil when ctx ended and everything was put in
// order; the workers live on.
func Run(ctx context.Context, cfg *config.Server) error {
	defer runtime.KeepAlive(settleRuntime())
	tail := &logTail{}
	return RunWith(ctx, cfg, Options{Log: newLogger(cfg, os.Stderr, tail), Tail: tail})
}

// RunWith is Run with options.
func RunWith(ctx context.Context, cfg *config.Server, opt Options) error {
	s := &Server{cfg: cfg, opt: opt, log: opt.Log.With().Str("server", string(cfg.Name)).Logger(), boot: randomHex(8), host: hostID(),
		inbox: make(chan monitor.Event, inboxEvents), loopDone: make(chan struct{})}
	s.faults = &faults{s: s}
	ctx, s.stop = context.WithCancelCause(ctx)
	defer s.stop(nil)
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) // what this process inherited is not for its workers
	if err := beNice(cfg.Nice); err != nil {
		s.log.Debug().Err(err).Msg("priority is left as it is")
	}
	if err := s.open(ctx); err != nil {
		close(s.loopDone) // nobody will take events
		s.close()
		return err
	}
	return s.run(ctx)
}

// open acquires everything that can be refused, before anything is told to the cluster. What it acquired, close gives back.
func (s *Server) open(ctx context.Context) (err error) {
	s.checkHost()
	if err := s.loadKeys(); err != nil {
		return err
	}
	known, err := s.openStore(ctx)
	if err != nil {
		return err
	}
	if s.workers, err = newSupervisor(filepath.Join(s.cfg.DataDir, "workers"), s.workerCommand(), s.cfg.Listen.Pages, s.log); err != nil {
		return err
	}
	s.workers.seal, s.workers.mayDial, s.workers.diskOf = s.cfg.PageEncryption, s.isPart, s.diskOf
	if err := s.planJail(); err != nil {
		return err
	}
	if err := s.planGroups(); err != nil {
		return err
	}
	s.workers.idleSleep = s.cfg.IdleCPUs == config.IdleSleep
	s.workers.scrub = ident.Micros(s.cfg.Scrub.Microseconds())
	s.workers.slow, s.workers.leaseStep = slowness(s.cfg.Timing), ident.Micros(s.cfg.Timing.LeaseLength.Microseconds())/leaseSteps
	s.workers.rule = memoryRule{on: s.cfg.Overcommit > 1, memory: s.cfg.MemoryBytes, file: s.cfg.PagingBytes, lend: s.cfg.Lend}
	s.workers.prepare, s.workers.report = s.prepareFiles, s.report
	stored, err := s.store.Load()
	if err != nil {
		return err
	}
	id := s.store.Identity()
	s.core, err = monitor.New(bootMicros(), monitor.Config{
		ClusterID: id.ClusterID, Server: id.Server, Info: s.info(), Initial: s.initial(), Stored: stored, Timing: s.timing(),
		Seed: randomSeed(), UnixMsAtZero: unixMsAtZero(),
	})
	if err != nil {
		return err
	}
	s.publish(nil)
	if err := s.openAudit(); err != nil {
		return err
	}
	s.proof = newProof(id.ClusterID, s.host, id.Server, s)
	if s.service, err = listenAPI(s); err != nil {
		return err
	}
	if s.gangs, err = startGangs(s); err != nil {
		return err
	}
	s.loads = newLoadReports(s)
	s.lends = newLendings(s)
	s.peers, err = link.ListenPeers(s.secured(link.PeersConfig{
		ClusterID: id.ClusterID, Self: id.Server, Secret: s.cfg.Secret, ListenAddr: s.cfg.Listen.Peer, Handler: peerHandler{s}, Stamp: s.stamp,
		Logf: func(format string, args ...any) { s.log.Debug().Msgf(format, args...) },
	}))
	if err != nil {
		return err
	}
	s.gangs.peers = s.peers
	if s.metrics, err = listenMetrics(s); err != nil {
		return err
	}
	s.peers.SetPeers(known)
	s.gossip, err = startGossip(s.cfg, id.Server, s.log, s.hint)
	return err
}

// run starts the loop and waits for the end.
func (s *Server) run(ctx context.Context) error {
	var tasks sync.WaitGroup
	loopCtx, stopLoop := context.WithCancel(context.Background()) // the loop outlasts those who wait for its answers
	defer stopLoop()
	var loopErr error
	tasks.Go(func() { newCaretaker(s).run(ctx) })
	tasks.Go(func() { s.lends.run(ctx) })
	tasks.Go(func() { s.audit.run(ctx, s) })
	tasks.Go(func() { s.loads.run(ctx) })
	tasks.Go(func() { s.gangs.run(ctx) })
	tasks.Add(3)
	go func() {
		defer tasks.Done()
		if loopErr = s.loop(loopCtx); loopErr != nil {
			s.stop(loopErr)
		}
	}()
	go func() {
		defer tasks.Done()
		s.workers.adopt()
	}()
	go func() {
		defer tasks.Done()
		s.attend(ctx)
	}()
	s.service.serve()
	s.log.Info().Uint64("id", uint64(s.store.Identity().Server)).Str("cell", string(s.cfg.Cell)).Str("peer", s.cfg.Listen.Peer).
		Str("api", s.cfg.Listen.APIUnix).Str("data", s.cfg.DataDir).Msg("serving")

	if s.metrics != nil {
		go s.metrics.serve(s)
	}
	notify("READY=1")
	if every := watchdogInterval(); every > 0 {
		go s.keepAlive(ctx, every)
	}

	<-ctx.Done()
	notify("STOPPING=1")
	cause := context.Cause(ctx)
	s.service.Close()
	if !errors.Is(cause, context.Canceled) { // it fails, or was asked to take its workers along
		s.killAllWorkers()
	}
	stopLoop()
	tasks.Wait()
	s.close()
	switch {
	case loopErr != nil:
		s.log.Error().Err(loopErr).Msg("the server stops")
		return loopErr
	case errors.Is(cause, errAsked):
		s.log.Info().Msg("stopped, and its workers")
	default:
		s.log.Info().Msg("stopped; workers go on as long as the lease lasts")
	}
	return nil
}

// killAllWorkers ends every worker and waits for it, within reason.
func (s *Server) killAllWorkers() {
	ctx, cancel := context.WithTimeout(context.Background(), proofPatience)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if left, err := s.workers.killOnce(^ident.Incarnation(0)); err != nil || left == 0 {
				return
			}
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.log.Error().Msg("workers were killed but have not ended yet")
	}
}

// close gives back what open acquired, in reverse order.
func (s *Server) close() {
	s.metrics.Close()
	if s.gossip != nil {
		s.gossip.Close()
	}
	if s.proof != nil {
		s.proof.Close()
	}
	if s.workers != nil {
		s.workers.Close()
	}
	if s.service != nil {
		s.service.Close()
	}
	if s.gangs != nil {
		s.gangs.close()
	}
	if s.peers != nil {
		if err := s.peers.Close(); err != nil {
			s.log.Debug().Err(err).Msg("close of the monitor plane")
		}
	}
	if s.audit != nil {
		if err := s.audit.log.Close(); err != nil {
			s.log.Error().Err(err).Msg("close of the audit log")
		}
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error().Err(err).Msg("close of the data directory")
		}
	}
}

// checkHost finds out whether this host can run VMs. A server that cannot still votes.
func (s *Server) checkHost() {
	if s.opt.SkipProbe || s.cfg.Role == config.RoleWitness {
		return
	}
	if err := probe.Err(probe.All(s.cfg.MemoryBytes)); err != nil {
		s.unfit = err.Error()
		s.log.Warn().Msg(s.unfit)
	}
}

// loadKeys reads this server's certificate, which must be its own.
func (s *Server) loadKeys() (err error) {
	if s.cfg.TLS == (config.TLS{}) {
		return nil
	}
	if s.keys, err = trust.Load(trust.Files(s.cfg.TLS)); err != nil {
		return err
	}
	want := trust.Identity{Cluster: s.cfg.ClusterID, Role: trust.RoleServer, Name: string(s.cfg.Name)}
	if is := s.keys.Identity(); is != want {
		return fmt.Errorf("certificate %s is that of %s of cluster %s; this is %s of cluster %s: `cellvisor ca issue %s --role server` makes the right one",
			s.cfg.TLS.Cert, is, is.Cluster, want, want.Cluster, want.Name)
	}
	return nil
}

func (s *Server) workerCommand() []string {
	if s.opt.WorkerCommand != nil {
		return s.opt.WorkerCommand
	}
	self, err := os.Executable()
	if err != nil {
		self = "/proc/self/exe"
	}
	return []string{self}
}

// stamp goes on every message to peers.
func (s *Server) stamp() (ident.Incarnation, ident.Epoch) {
	st := s.board.now().status
	return st.Incarnation, st.Epoch
}

// info is what this server says about itself.
func (s *Server) info() cells.ServerInfo {
	start, err := startTime(os.Getpid())
	if err != nil {
		s.log.Warn().Err(err).Msg("own start time is unknown: others cannot prove the end of this process")
	}
	info := cells.ServerInfo{
		Name: s.cfg.Name, Cell: s.cfg.Cell, Role: cells.Role(s.cfg.Role), HostID: s.host,
		Process: cells.Process{PID: os.Getpid(), StartTime: start, Boot: s.boot},
		Addrs:   cells.Addrs{Peer: s.cfg.Listen.Peer, API: s.apiAddr(), Gossip: s.cfg.Listen.Gossip},
		Slots:   s.cfg.Slots, MemoryBytes: s.cfg.MemoryBytes * ident.Bytes(max(1, s.cfg.Overcommit)), HostSched: s.cfg.Sched == config.SchedHost,
	}
	if s.cfg.Lend {
		info.PhysicalBytes = s.cfg.MemoryBytes
	}
	if s.unfit != "" {
		info.PhysicalBytes = 0
		info.Slots, info.MemoryBytes = 0, 0
	}
	return info
}

// apiAddr is where other servers reach this one's API. Without a TCP endpoint only those on this host do.
func (s *Server) apiAddr() string {
	if s.cfg.Listen.APITCP != "" {
		return s.cfg.Listen.APITCP
	}
	return "unix://" + s.cfg.Listen.APIUnix
}

// timing maps the configured periods. The margin of the lease is a tenth: so much may clocks differ in speed.
func (s *Server) timing() cells.Timing {
	t, c := cells.DefaultTiming(), s.cfg.Timing
	for _, m := range []struct {
		to   *ident.Micros
		from time.Duration
	}{
		{&t.LeaseLength, c.LeaseLength}, {&t.LeaseRenew, c.LeaseRenew}, {&t.Heartbeat, c.Heartbeat}, {&t.ElectionMin, c.ElectionMin},
		{&t.ElectionMax, 2 * c.ElectionMin}, {&t.LeaseMargin, c.LeaseLength / 10},
	} {
		if m.from > 0 {
			*m.to = ident.Micros(m.from.Microseconds())
		}
	}
	return t
}

// unixMsAtZero is the wall clock at the zero of CLOCK_BOOTTIME.
func unixMsAtZero() int64 { return time.Now().UnixMilli() - int64(bootMicros()/ident.Millisecond) }

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func randomSeed() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}
