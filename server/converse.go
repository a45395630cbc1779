package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// attend listens to a worker, and sees to it that it says something.
func (s *supervisor) attend(w *worker, p *process, conn net.Conn) {
	w.talks.Add(1)
	s.start(func() {
		defer w.talks.Done()
		s.converse(w, p, conn)
	})
	s.start(func() { s.attendSilence(w, p) })
}

// converse keeps a connection to a worker until its process is gone or the supervisor ends. conn is one whose Ready was read already, or
// nil. A connection that breaks is made anew: what the worker must know is sent again, what it had to say it repeats.
func (s *supervisor) converse(w *worker, p *process, conn net.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.start(func() { // the conversation ends with the process even when its socket does not
		select {
		case <-w.exited:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(lastWords):
			cancel()
		case <-ctx.Done():
		}
	})
	for {
		if conn == nil {
			if conn = s.connect(ctx, w, p); conn == nil {
				return
			}
		}
		err := s.exchange(ctx, w, conn)
		conn = nil
		select { // a worker that ends closes its connection first
		case <-ctx.Done():
			return
		case <-w.exited:
			return
		case <-time.After(endGrace):
		}
		s.counts.redials.Add(1)
		s.log.Warn().Err(err).Uint64("vm", uint64(w.vm)).Msg("connection to a worker broke: connecting again")
	}
}

// connect returns a connection, or nil if there will be none. A worker that never listens is killed: without a lease it does nothing anyway,
// and its VM waits for it.
func (s *supervisor) connect(ctx context.Context, w *worker, p *process) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, connectGrace)
	defer cancel()
	conn, err := dialWorker(ctx, p, w.dir)
	if err == nil {
		return conn
	}
	select {
	case <-w.done:
		return nil
	default:
	}
	if s.ctx.Err() == nil && !errors.Is(err, errGone) && !p.gone() {
		s.log.Error().Err(err).Uint64("vm", uint64(w.vm)).Int("pid", p.pid).Msg("worker cannot be reached: killing it")
		s.counts.killed.Add(1)
		w.killedFor(fmt.Sprintf("it could not be reached within %v", connectGrace))
		_ = p.signal(unix.SIGKILL)
	}
	return nil
}

// exchange sends and receives on one connection until it breaks or the context ends, and closes it.
func (s *supervisor) exchange(ctx context.Context, w *worker, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	w.post(func() { w.sent = sentMarks{} })
	s.start(func() {
		for {
			for _, m := range w.outgoing() {
				_ = conn.SetWriteDeadline(time.Now().Add(writeGrace))
				switch err := wire.WriteJSON(conn, &m); {
				case errors.Is(err, unix.EPIPE): // the worker has closed: what it said before that is still to be read, and then ends this
					return
				case err != nil:
					cancel()
					return
				}
			}
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		var m wire.FromWorker
		if err := wire.ReadJSON(conn, &m, wire.JSONLimit); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("closed by the worker")
			}
			return err
		}
		w.hears(true)
		s.hear(w, &m)
		w.hears(false)
	}
}

// hears notes that a message of the worker has come, or has been taken in.
func (w *worker) hears(now bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hearing = now
	if now {
		w.heard++
	}
}

// outgoing returns what the connection has not carried yet.
func (w *worker) outgoing() []wire.ToWorker {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []wire.ToWorker
	if w.lease != w.sent.lease {
		out = append(out, wire.ToWorker{Lease: w.lease})
	}
	if w.pause != w.sent.pause { // before the members: what is to stand still must not begin to run
		out = append(out, wire.ToWorker{Pause: w.pause})
	}
	if w.members != w.sent.members {
		out = append(out, wire.ToWorker{Members: w.members})
	}
	if w.protect != w.sent.protect {
		out = append(out, wire.ToWorker{Protect: w.protect})
	}
	if w.swtch != w.sent.swtch {
		out = append(out, wire.ToWorker{Switch: w.swtch})
	}
	if w.hand != w.sent.hand {
		out = append(out, wire.ToWorker{Hand: w.hand})
	}
	if w.faults != w.sent.faults {
		out = append(out, wire.ToWorker{Faults: w.faults})
	}
	if w.stop != w.sent.stop {
		out = append(out, wire.ToWorker{Stop: w.stop})
	}
	if w.asked != w.sent.asked {
		out = append(out, wire.ToWorker{PageMap: w.asked})
	}
	if m := w.typed.next; m != nil && m.Seq != w.sent.typed {
		out = append(out, wire.ToWorker{Typed: m})
		w.sent.typed = m.Seq
	}
	if w.peers != w.sent.peers {
		out = append(out, wire.ToWorker{Peers: w.peers})
	}
	if w.guest.limit != w.sent.memory {
		out = append(out, wire.ToWorker{Memory: w.guest.limit})
	}
	if w.lenders != w.sent.lenders {
		out = append(out, wire.ToWorker{Lenders: w.lenders})
	}
	w.sent = sentMarks{w.lease, w.members, w.protect, w.swtch, w.hand, w.pause, w.stop, w.faults, w.asked, w.sent.typed, w.peers, w.guest.limit, w.lenders}
	return out
}

// hear takes one message of a worker.
func (s *supervisor) hear(w *worker, m *wire.FromWorker) {
	switch {
	case m.Ready != nil:
		w.turns.Store(m.Ready.Turns)
		s.report(monitor.WorkerReady{Incarnation: w.incarnation, Ready: *m.Ready})
	case m.Ended != nil:
		s.report(monitor.WorkerEnded{VM: w.vm, Ended: *m.Ended})
	case m.Disks != nil:
		s.report(monitor.WorkerDisks{VM: w.vm, Disks: *m.Disks})
	case m.Hint != nil:
		s.report(monitor.WorkerHint{VM: w.vm, Hint: *m.Hint})
	case m.Protected != nil:
		s.report(monitor.WorkerProtected{VM: w.vm, Protected: *m.Protected})
	case m.Restored != nil:
		s.report(monitor.WorkerRestored{VM: w.vm, Restored: *m.Restored})
	case m.Handed != nil:
		s.report(monitor.WorkerHanded{VM: w.vm, Handed: *m.Handed})
	case m.Wish != nil:
		s.report(monitor.WorkerWished{VM: w.vm, Wish: *m.Wish})
	case m.Switched != nil:
		s.report(monitor.WorkerSwitched{VM: w.vm, Switched: *m.Switched})
	case m.Paused != nil:
		s.report(monitor.WorkerPaused{VM: w.vm, Seq: m.Paused.Seq})
	case m.Stalled != nil:
		s.report(monitor.WorkerStalled{VM: w.vm, Stalled: *m.Stalled})
	case m.Fenced != nil:
		if m.Fenced.On {
			s.counts.fenced.Add(1)
		}
		s.log.Info().Uint64("vm", uint64(w.vm)).Bool("fenced", m.Fenced.On).Msg("worker's lease")
	case m.Took != nil:
		w.hearTook(m.Took)
	case m.Dial != nil:
		s.dialFor(w, *m.Dial)
	case m.OpenDisk != nil:
		s.openFor(w, *m.OpenDisk)
	case m.Stats != nil:
		s.heardStats(w, m.Stats)
	case m.PageMap != nil:
		w.answered(m.PageMap)
	}
}
