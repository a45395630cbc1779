package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// proofPatience is how long the processes of a suspect are watched for their end: a killed worker with much memory takes some 100 ms.
const proofPatience = 2 * time.Second

// proof finds out whether servers on this host are dead. Two ways lead to it: the kernel says at once when a watched serve process ends, which is
// a hint; and the core asks for proof, which takes the end of the workers too.
type proof struct {
	clusterID string
	host      string // this server's HostID; "" if unknown
	self      ident.ServerID
	now       func() *snapshot
	hint      func(id ident.ServerID, source string)
	report    func(monitor.Event)
	log       zerolog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex
	watched  map[ident.ServerID]*watch  // protected by mu
	checking map[cells.Process]struct{} // protected by mu
}

// watch is a serve process that is being watched.
type watch struct {
	process cells.Process
	cancel  context.CancelFunc
}

func newProof(clusterID, host string, self ident.ServerID, s *Server) *proof {
	p := &proof{clusterID: clusterID, host: host, self: self, now: s.board.now, hint: s.hint, report: s.report, log: s.log,
		watched: map[ident.ServerID]*watch{}, checking: map[cells.Process]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close ends all watching.
func (p *proof) Close() {
	p.cancel()
	p.tasks.Wait()
}

func (p *proof) start(f func()) {
	p.tasks.Add(1)
	go func() {
		defer p.tasks.Done()
		f()
	}()
}

// visible tells whether this server can see the processes of another one.
func (p *proof) visible(hostID string, pr cells.Process) bool {
	return p.host != "" && hostID == p.host && pr.PID > 0 && pr.PID != os.Getpid()
}

// watchServers watches exactly the serve processes of the live servers on this host.
func (p *proof) watchServers(state *cells.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := map[ident.ServerID]cells.Process{}
	for i := range state.Servers {
		sv := &state.Servers[i]
		if sv.ID != p.self && sv.State == cells.ServerLive && p.visible(sv.HostID, sv.Process) {
			want[sv.ID] = sv.Process
		}
	}
	for id, w := range p.watched {
		if want[id] != w.process {
			w.cancel()
			delete(p.watched, id)
		}
	}
	for id, pr := range want {
		if p.watched[id] == nil {
			ctx, cancel := context.WithCancel(p.ctx)
			p.watched[id] = &watch{process: pr, cancel: cancel}
			p.start(func() { p.watchOne(ctx, id, pr) })
		}
	}
}

func (p *proof) watchOne(ctx context.Context, id ident.ServerID, pr cells.Process) {
	proc, err := openProcess(pr.PID, pr.StartTime)
	if err == nil {
		err = proc.wait(ctx)
		proc.Close()
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil && !errors.Is(err, errGone) {
		p.log.Warn().Err(err).Uint64("server", uint64(id)).Msg("cannot watch a server's process")
		return
	}
	p.hint(id, "process exit")
}

// check carries out SuspectCheck. Only one check of a process runs at a time.
func (p *proof) check(a monitor.SuspectCheck) {
	if !p.visible(a.HostID, a.Process) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, running := p.checking[a.Process]; running || p.ctx.Err() != nil {
		return
	}
	p.checking[a.Process] = struct{}{}
	p.start(func() {
		detail, err := p.verify(a)
		p.mu.Lock()
		delete(p.checking, a.Process)
		p.mu.Unlock()
		if err != nil {
			p.log.Debug().Err(err).Uint64("server", uint64(a.Server)).Msg("no proof that a server is gone")
			return
		}
		p.report(monitor.ProcessGone{Server: a.Server, Incarnation: a.Incarnation, Boot: a.Process.Boot, Detail: detail})
	})
}

// verify returns nil when the serve process and every worker process of the server are gone. The serve process comes first: once it is gone,
// nobody starts workers any more.
func (p *proof) verify(a monitor.SuspectCheck) (detail string, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, proofPatience)
	defer cancel()
	if err := awaitGone(ctx, a.Process.PID, a.Process.StartTime); err != nil {
		return "", fmt.Errorf("its serve process %d: %w", a.Process.PID, err)
	}
	workers := 0
	state := p.now().state
	for i := range state.VMs {
		for _, part := range state.VMs[i].Parts {
			if part.Server != a.Server || part.PID == 0 {
				continue
			}
			workers++
			if err := awaitGone(ctx, part.PID, part.StartTime); err != nil {
				return "", fmt.Errorf("its worker process %d: %w", part.PID, err)
			}
		}
	}
	// A worker may have been started that the registry, or this copy of it, does not know.
	strays, err := findWorkers()
	if err != nil {
		return "", err
	}
	for _, w := range strays {
		ours, err := p.belongs(w, a.Server)
		if err != nil {
			return "", err
		}
		if ours {
			workers++
			if err := awaitGone(ctx, w.pid, 0); err != nil {
				return "", fmt.Errorf("its worker process %d: %w", w.pid, err)
			}
		}
	}
	return fmt.Sprintf("process %d and its %d workers are gone", a.Process.PID, workers), nil
}

// belongs tells whether a worker process is the server's. One whose directory is there but cannot be read might be.
func (p *proof) belongs(w workerProcess, server ident.ServerID) (bool, error) {
	raw, err := os.ReadFile(filepath.Join(w.dir, wire.WorkerSpecFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	var spec wire.WorkerSpec
	if err == nil {
		err = json.Unmarshal(raw, &spec)
	}
	if err != nil {
		return false, fmt.Errorf("worker process %d may be one of its: %w", w.pid, err)
	}
	return spec.ClusterID == p.clusterID && spec.Server == server && !spec.Lends, nil // a lender acts on nobody's behalf: it only gives back what it was given
}

// awaitGone returns nil when the process is gone.
func awaitGone(ctx context.Context, pid int, start uint64) error {
	proc, err := openProcess(pid, start)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Close()
	return proc.wait(ctx)
}
