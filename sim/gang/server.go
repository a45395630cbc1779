package gang

import (
	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/kernel"
	"github.com/cellvisor/cellvisor/wire"
)

// envelope is a message between servers.
type envelope struct {
	from    ident.ServerID
	epoch   ident.Epoch
	message gang.Message
}

// start begins a serve process: it knows the state, and adopts the workers.
func (s *server) start() {
	if s.dead {
		return
	}
	if s.pausing {
		s.w.At(s.w.Now()+10*ident.Millisecond, s.start)
		return
	}
	s.run++
	s.core = gang.New(gang.Config{Self: s.id, Start: s.w.Clock(s.node), Canary: s.w.canary})
	s.step(s.w.view())
}

// learnView is when the log's change arrives; a stopped process learns it when it goes on.
func (s *server) learnView() {
	switch {
	case s.dead || s.core == nil:
	case s.pausing:
		s.w.At(s.w.Now()+10*ident.Millisecond, s.learnView)
	default:
		s.step(s.w.view())
	}
}

// Receive implements kernel.Node.
func (s *server) Receive(_ ident.Micros, _ kernel.NodeID, msg any) {
	if s.core == nil {
		return
	}
	switch m := msg.(type) {
	case envelope:
		if m.message.Slice != nil {
			s.step(gang.Slice{From: m.from, Epoch: m.epoch, GangSlice: *m.message.Slice})
		} else {
			r := *m.message.Report
			r.Plans = r.Plans && !s.w.old
			s.step(gang.Report{From: m.from, Epoch: m.epoch, GangReport: r})
		}
	case wire.SliceNote:
		s.step(gang.Note{SliceNote: m})
	}
}

// Wake implements kernel.Node.
func (s *server) Wake(ident.Micros) {
	if s.core != nil {
		s.step(gang.Tick{})
	}
}

func (s *server) step(ev gang.Event) {
	w := s.w
	s.core.Step(w.Clock(s.node), ev)
	for _, o := range s.core.Orders() {
		k := s.workers[o.VM]
		if k == nil {
			continue
		}
		if w.Tracing {
			w.Tracef("server %d orders VM %d: mode %d on %v at %d, then %v, %d vCPUs have work", s.id, o.VM, o.Mode, o.CPUs, o.At, o.Next, k.busy)
		}
		k.arrival = max(k.arrival, w.Now()+w.Between(10, controlLag)) // datagrams of a socket stay in order
		w.At(k.arrival, func() { s.obey(k, o.SliceOrder) })
	}
	for _, m := range s.core.Messages() {
		w.Send(s.node, w.servers[m.To-1].node, envelope{s.id, w.epoch, m})
	}
	if at, ok := s.core.NextDeadline(); ok {
		w.WakeAt(s.node, at)
	} else {
		w.NoWake(s.node)
	}
}

// obey is the worker's side: an order counts from its time on, up to its end. It takes the place of those for later times.
func (s *server) obey(k *worker, o wire.SliceOrder) {
	if s.dead {
		return
	}
	w := s.w
	k.orders++
	mine := k.orders
	k.until = o.Until
	for len(k.pending) > 0 && k.pending[len(k.pending)-1].At >= o.At {
		k.pending = k.pending[:len(k.pending)-1]
	}
	k.pending = append(k.pending, wire.SliceTurn{Number: o.Number, Mode: o.Mode, At: o.At, CPUs: o.CPUs})
	k.pending = append(k.pending, o.Next...)
	s.carryOut(k)
	w.At(w.Now()+max(0, o.Until-w.Clock(s.node)), func() {
		if mine == k.orders {
			k.free()
		}
	})
}

// carryOut does what is due, and comes back for the rest.
func (s *server) carryOut(k *worker) {
	for !s.dead && len(k.pending) > 0 && k.pending[0].At <= s.w.Clock(s.node) {
		t := k.pending[0]
		k.pending = k.pending[1:]
		before := k.mode
		k.mode, k.slots = t.Mode, t.CPUs
		if before == wire.SliceFree && k.mode != wire.SliceFree {
			s.note(k)
		}
	}
	k.timers++
	if mine := k.timers; !s.dead && len(k.pending) > 0 {
		s.w.At(s.w.Now()+max(1, k.pending[0].At-s.w.Clock(s.node)), func() {
			if mine == k.timers {
				s.carryOut(k)
			}
		})
	}
}

func (k *worker) free() {
	k.orders++
	k.pending = nil
	k.mode, k.slots = wire.SliceFree, nil
}

// note rings the bell, if the worker is sliced at all.
func (s *server) note(k *worker) {
	if k.mode != wire.SliceFree && !s.dead {
		s.w.Send(s.node, s.node, wire.SliceNote{VM: k.vm.ID, Busy: k.busy})
	}
}
