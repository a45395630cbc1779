package server

import (
	"context"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

const (
	inboxEvents = 1024                    // events that wait for the loop; whoever sends one more waits
	batchEvents = 256                     // events that one turn takes before it writes to disk
	longTurn    = 300 * ident.Millisecond // worth a line in the log: the lease is five times that
)

// loop owns the core. It returns nil when ctx ends, and an error when the server must stop.
func (s *Server) loop(ctx context.Context) error {
	defer close(s.loopDone)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, ok := s.core.NextDeadline()
		if !ok {
			due = bootMicros() + ident.Micros(time.Hour.Microseconds())
		}
		timer.Reset(max(0, time.Duration(due-bootMicros())*time.Microsecond))
		began := ident.Micros(0)
		s.turns.Add(1)
		select {
		case ev := <-s.inbox:
			began = bootMicros()
			s.core.Step(began, ev)
			s.takeMore()
		case <-timer.C:
			began = bootMicros()
			s.core.Step(began, monitor.Tick{})
		case <-ctx.Done():
			return nil
		}
		if late := began - due; late > longTurn {
			s.count.lateTurns.Add(1)
			s.log.Warn().Dur("late", time.Duration(late)*time.Microsecond).Msg("this process was not run in time: it was stopped, or the host is overloaded")
		}
		if at, ok := s.core.NextDeadline(); ok && at <= bootMicros() { // a full inbox must not keep timers from firing
			s.core.Step(bootMicros(), monitor.Tick{})
		}
		if err := s.carryOut(); err != nil {
			return err
		}
		if took := bootMicros() - began; took > longTurn {
			s.count.longTurns.Add(1)
			s.log.Warn().Dur("took", time.Duration(took)*time.Microsecond).Msg("one turn of the loop took long: the disk is slow, or this process was stopped")
		}
	}
}

// takeMore feeds the core with what waits already, so that one write to disk serves it all.
func (s *Server) takeMore() {
	for range batchEvents {
		select {
		case ev := <-s.inbox:
			s.core.Step(bootMicros(), ev)
		default:
			return
		}
	}
}

// carryOut does what the core wants, in the order that it demands: disk, then messages, then everything else.
func (s *Server) carryOut() error {
	var fresh []cells.Event
	var responses []monitor.Response
	busy := false
	for s.core.HasReady() {
		rd := s.core.Ready()
		if rd.Persist != nil {
			began := bootMicros()
			if err := s.store.Save(rd.Persist); err != nil {
				return err
			}
			s.count.saves.Add(1)
			s.count.saveMicros.Add(uint64(bootMicros() - began))
		}
		for i := range rd.Messages {
			s.post(&rd.Messages[i])
		}
		for _, a := range rd.Actions {
			if f, ok := a.(monitor.Forgotten); ok {
				return fmt.Errorf("server %d was removed from the cluster (so says server %d): it can come back only as a new one, with an empty data directory", s.core.Status(0).Server, f.By)
			}
			s.act(a)
		}
		busy = true
		responses = append(responses, rd.Responses...)
		fresh = append(fresh, rd.Events...)
		s.core.Advance(bootMicros())
	}
	if busy {
		s.publish(fresh)
	}
	for _, r := range responses { // after the snapshot: who is told that something was done finds it done
		s.respond(r)
	}
	return nil
}

// post sends one message of the core.
func (s *Server) post(m *monitor.Message) {
	if m.Conn != 0 {
		s.answerJoin(m.Conn, m.Bytes)
		return
	}
	s.peers.Send(m.To, wire.EnvelopeMonitor, m.Bytes)
}

// act starts one action of the core. None of them blocks.
func (s *Server) act(a monitor.Action) {
	switch a := a.(type) {
	case monitor.Lease:
		s.workers.renew(a)
	case monitor.StartWorker:
		s.workers.startWorker(a)
	case monitor.SendMembers:
		s.workers.sendMembers(a)
	case monitor.SendProtect:
		s.workers.sendProtect(a)
	case monitor.SendSwitch:
		s.workers.sendSwitch(a)
	case monitor.SendPause:
		s.workers.sendPause(a)
	case monitor.SendHand:
		s.workers.sendHand(a)
	case monitor.StopWorker:
		s.workers.stopWorker(a)
	case monitor.KillWorkers:
		s.workers.killWorkers(a.UpTo)
	case monitor.RemoveFiles:
		s.workers.removeFiles(a.VM)
	case monitor.SuspectCheck:
		s.proof.check(a)
	default:
		panic(fmt.Sprintf("server: the core wants %T, which nobody carries out", a))
	}
}

// publish puts up a new snapshot if anything that readers look at has changed.
func (s *Server) publish(fresh []cells.Event) {
	old := s.board.now()
	next := &snapshot{status: s.core.Status(bootMicros()), counters: s.core.Counters(), events: &eventLog{}}
	changed := true
	if old != nil {
		next.state, next.events = old.state, old.events.plus(fresh)
		changed = len(fresh) > 0 || standing(old.status) != standing(next.status)
	}
	if live := s.core.Peek(); old == nil || old.state.Applied != live.Applied {
		s.core.Check() // a broken invariant ends the process: better no server than one that decides wrongly
		state := s.core.State()
		next.state, changed = &state, true
		s.refuse(old, &state)
		if state.NextSeq != next.events.lastSeq()+1 { // the first snapshot, or a jump to what another server had saved
			all, _ := s.core.EventsSince(0, cells.MaxEvents)
			next.events = &eventLog{events: append([]cells.Event(nil), all...)}
		}
	}
	switch {
	case changed:
		s.board.publish(next)
	case old.status.LeaseUntil != next.status.LeaseUntil: // nobody waits for that
		next.next = old.next
		s.board.current.Store(next)
	}
}

// standing is the part of a status whose change others wait for.
func standing(st monitor.Status) [6]any {
	return [6]any{st.Phase, st.Incarnation, st.Epoch, st.Leader, st.Quorum, len(st.Voters)}
}

// report hands an event to the loop. It blocks while the inbox is full, and drops the event when the loop has ended.
func (s *Server) report(ev monitor.Event) {
	select {
	case s.inbox <- ev:
	case <-s.loopDone:
	}
}
