package server

import (
	"context"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// loadReports is this server's place in the load tree: what its workers say of their vCPUs goes to its parent, and from the root to the registry. It has a
// loop of its own.
//
//	workers --stats--> reporter --LoadReport--> parent
//	children --LoadReport--> reporter --changes--> registry, at the root
type loadReports struct {
	s        *Server
	log      zerolog.Logger
	reporter *balancer.Reporter // the loop's
	view     balancer.ReportView
	last     map[ident.VMID]*wire.WorkerStats // the loop's: what the last sample was taken from

	inbox     chan balancer.LoadMessage
	done      chan struct{}
	proposing atomic.Bool
	sent      atomic.Uint64
	received  atomic.Uint64
	proposed  atomic.Uint64
}

const loadInbox = 256

func newLoadReports(s *Server) *loadReports {
	id := s.store.Identity().Server
	return &loadReports{s: s, log: s.log, reporter: balancer.NewReporter(id, bootMicros(), ""), last: map[ident.VMID]*wire.WorkerStats{},
		inbox: make(chan balancer.LoadMessage, loadInbox), done: make(chan struct{})}
}

// run is the loop.
func (l *loadReports) run(ctx context.Context) {
	defer close(l.done)
	sample := time.NewTicker(time.Duration(balancer.ReportGap) * time.Microsecond)
	defer sample.Stop()
	for {
		snap := l.s.board.now()
		l.follow(ctx, snap)
		select {
		case m := <-l.inbox:
			l.reporter.Receive(bootMicros(), m)
		case <-sample.C:
			l.reporter.Take(bootMicros(), l.sample())
		case <-snap.next:
		case <-ctx.Done():
			return
		}
		l.flush(ctx)
	}
}

// follow tells the reporter what has changed in the replicated state. A server outside the view has no place in the tree.
func (l *loadReports) follow(ctx context.Context, snap *snapshot) {
	v := balancer.ReportView{}
	if snap.acting() {
		v = monitor.LoadView(snap.state)
	}
	if !reflect.DeepEqual(v, l.view) {
		l.view = v
		l.reporter.SetView(bootMicros(), v)
		l.flush(ctx)
	}
}

// sample asks what the workers here last said.
func (l *loadReports) sample() balancer.Sample {
	var out balancer.Sample
	id := l.s.store.Identity().Server
	now := map[ident.VMID]*wire.WorkerStats{}
	for _, p := range l.view.Parts {
		if p.Server != id {
			continue
		}
		w := l.s.workers.worker(p.VM)
		if w == nil {
			continue
		}
		stats, before := w.counters(), l.last[p.VM]
		if stats == nil {
			continue
		}
		now[p.VM] = stats
		if before == nil || stats.At <= before.At || stats.IdleMicros < before.IdleMicros {
			continue
		}
		out.Parts = append(out.Parts, balancer.PartSample{VM: p.VM, IdlePermille: int((stats.IdleMicros - before.IdleMicros) * 1000 / (stats.At - before.At))})
	}
	l.last = now
	return out
}

// flush sends what the reporter wants sent, and has the registry changed.
func (l *loadReports) flush(ctx context.Context) {
	for _, m := range l.reporter.Messages() {
		l.sent.Add(1)
		l.s.peers.Send(m.Peer, wire.EnvelopeLoad, wire.AppendLoadReport(nil, m.Report))
	}
	for _, changes := range l.reporter.Proposals() {
		cmd := &cells.Loads{}
		for _, p := range changes {
			cmd.Parts = append(cmd.Parts, cells.PartIdle{VM: p.VM, Server: p.Server, VCPUs: p.Idle})
		}
		if l.proposing.CompareAndSwap(false, true) { // the reporter repeats what is not taken
			l.proposed.Add(1)
			go l.propose(ctx, cmd)
		}
	}
}

func (l *loadReports) propose(ctx context.Context, cmd *cells.Loads) {
	defer l.proposing.Store(false)
	ctx, cancel := context.WithTimeout(ctx, proposePatience)
	defer cancel()
	if err := l.s.propose(ctx, cells.Command{Loads: cmd}, nil); err != nil {
		l.log.Debug().Err(err).Msg("the load was not recorded")
	}
}

// receive takes another server's report.
func (l *loadReports) receive(e *wire.Envelope) error {
	m, err := wire.DecodeLoadReport(e.Body)
	if err != nil {
		return err
	}
	l.received.Add(1)
	select {
	case l.inbox <- balancer.LoadMessage{Peer: e.Sender, Epoch: e.Epoch, Report: m}:
	case <-l.done:
	default: // it comes again
	}
	return nil
}

// addStats adds the load tree's counters.
func (l *loadReports) addStats(out map[string]uint64) {
	out["loads.sent"] = l.sent.Load()
	out["loads.received"] = l.received.Load()
	out["loads.proposed"] = l.proposed.Load()
}
