package server

import (
	"sync/atomic"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// snapshot is what the loop publishes: how the cluster is as far as this server has applied it. Everything in it is read-only.
type snapshot struct {
	state    *cells.State
	status   monitor.Status
	counters monitor.Counters
	events   *eventLog
	next     chan struct{} // closed when a newer snapshot is there
}

// leased tells whether this server's contact with a quorum is recent enough to act on at the given time.
func (s *snapshot) leased(now ident.Micros) bool { return s.status.Quorum && now < s.status.LeaseUntil }

// acting tells whether this server is in the view.
func (s *snapshot) acting() bool { return s.status.Phase == monitor.PhaseActing }

// self returns what the cluster knows about this server, or nil.
func (s *snapshot) self() *cells.Server { return s.state.Server(s.status.Server) }

// eventLog is a run of replicated events. A snapshot has the whole of it; a newer one shares its array.
type eventLog struct {
	events []cells.Event // by rising Seq
}

// since returns up to limit events with sequence numbers of at least seq.
func (l *eventLog) since(seq uint64, limit int) []cells.Event {
	lo, hi := 0, len(l.events)
	for lo < hi {
		if mid := (lo + hi) / 2; l.events[mid].Seq < seq {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return l.events[lo:min(lo+limit, len(l.events))]
}

func (l *eventLog) lastSeq() uint64 {
	if n := len(l.events); n > 0 {
		return l.events[n-1].Seq
	}
	return 0
}

// plus returns the log with more events behind it, without changing what readers of l see, and without those that are too old.
func (l *eventLog) plus(more []cells.Event) *eventLog {
	if len(more) == 0 {
		return l
	}
	all := append(l.events, more...) // readers of l never look beyond its length
	if len(all) > 2*cells.MaxEvents {
		all = append([]cells.Event(nil), all[len(all)-cells.MaxEvents:]...)
	}
	return &eventLog{events: all}
}

// board is where the loop publishes and everyone else reads.
type board struct {
	current atomic.Pointer[snapshot]
}

// now returns the newest snapshot. It never blocks.
func (b *board) now() *snapshot { return b.current.Load() }

// publish replaces the snapshot and wakes those who wait for a change. Only the loop calls it.
func (b *board) publish(s *snapshot) {
	s.next = make(chan struct{})
	if old := b.current.Swap(s); old != nil {
		close(old.next)
	}
}
