package cluster

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// Server is one server of the cluster: its core while it runs, and its disk.
type Server struct {
	ID    ident.ServerID
	Core  *monitor.Core // nil while crashed
	Lease Lease         // the last one granted to the running process

	w           *World
	node        kernel.NodeID
	info        cells.ServerInfo
	boots       int
	boot        string
	disk        cells.Stored // as the operating system has it
	flushed     cells.Stored // as it is after a loss of power
	writing     bool
	toWrite     *cells.Persist
	held        func() // the end of a write that the pause of the process holds up
	seenApplied uint64
	seenEpoch   ident.Epoch
	answers     map[uint64]func(monitor.Response)
	admitted    []cells.Member // ever seen in an applied view, also under an ID that it had before it lost its disk
	joining     bool           // it has no ID: it asks for one
}

// Name returns the server's name.
func (s *Server) Name() ident.ServerName { return s.info.Name }

// Cell returns the server's cell.
func (s *Server) Cell() ident.CellName { return s.info.Cell }

// Boot returns the id of the running process.
func (s *Server) Boot() string { return s.boot }

// Boots counts how often the server's process was started.
func (s *Server) Boots() int { return s.boots }

// Clock is the server's own time.
func (s *Server) Clock() ident.Micros { return s.w.Clock(s.node) }

// Running tells whether the server's process exists and is not paused.
func (s *Server) Running() bool { return s.Core != nil && s.w.Running(s.node) }

// Node is the server's place in the network.
func (s *Server) Node() kernel.NodeID { return s.node }

func (s *Server) start() {
	if s.Core != nil {
		return
	}
	s.boots++
	s.boot = fmt.Sprintf("%s.%d", s.info.Name, s.boots)
	s.info.Process = cells.Process{PID: int(s.node+1)*1000 + s.boots, StartTime: uint64(s.boots), Boot: s.boot}
	if s.joining {
		s.askToJoin(s.boot)
		return
	}
	s.run()
}

// run starts the core, once the server has an ID.
func (s *Server) run() {
	var initial []cells.InitialServer
	if s.ID <= ident.ServerID(len(s.w.Servers)) {
		for i, o := range s.w.Servers {
			initial = append(initial, cells.InitialServer{
				ID: ident.ServerID(i + 1), Name: o.info.Name, Cell: o.info.Cell, Role: o.info.Role, Addrs: o.info.Addrs})
		}
	}
	core, err := monitor.New(s.Clock(), monitor.Config{
		ClusterID: "sim", Server: s.ID, Info: s.info, Initial: initial, Stored: s.disk, Timing: s.w.Config.Timing,
		Seed: s.w.Rand().Uint64(), SnapshotEvery: s.w.Config.SnapshotEvery, Canary: s.w.Config.Canary,
		UnixMsAtZero: int64((s.w.Now() - s.Clock()) / ident.Millisecond), // wall clocks are set, whatever the speed of the servers' own
	})
	if err != nil {
		s.w.Fail(fmt.Errorf("server %d does not start: %w", s.ID, err))
		return
	}
	s.Core, s.Lease, s.writing, s.toWrite, s.held = core, Lease{}, false, nil, nil
	s.seenApplied, s.seenEpoch = 0, 0
	s.answers = make(map[uint64]func(monitor.Response))
	s.w.Tracef("server %d starts as %s", s.ID, s.boot)
	var workers []monitor.AdoptedWorker
	if s.w.Adopt != nil {
		workers = s.w.Adopt(s)
	}
	s.Step(monitor.Adopted{Workers: workers})
}

// Crash ends the process, and with power the machine. What was not flushed is on disk after a crash of the process, and perhaps after
// one of the machine; of a write under way, all or nothing.
func (s *Server) Crash(power bool) {
	if s.Core == nil || s.w.calm {
		return
	}
	s.w.Tracef("server %d crashes, power=%v", s.ID, power)
	if s.writing && s.toWrite != nil && s.w.Chance(500) {
		s.store(s.toWrite)
	}
	if power && s.w.Chance(500) {
		s.disk = s.flushed
	}
	s.Core = nil
	s.w.Crash(s.node)
}

// LoseDisk takes what a crashed server has stored. It comes back as a server that must ask to join.
func (s *Server) LoseDisk() {
	if s.Core == nil && !s.joining {
		s.w.Tracef("server %d loses its disk", s.ID)
		s.disk, s.flushed, s.joining = cells.Stored{}, cells.Stored{}, true
	}
}

// askToJoin asks one server after the other for an ID, until one gives it.
func (s *Server) askToJoin(boot string) {
	if s.Core != nil || s.boot != boot || !s.w.Running(s.node) {
		return
	}
	o := s.w.Servers[s.w.Rand().IntN(len(s.w.Servers))]
	if o.Running() {
		s.w.nextID++
		conn := s.w.nextID
		s.w.joins[conn] = func(r monitor.JoinReply) {
			if r.ID == 0 || s.Core != nil || s.boot != boot || !s.joining {
				return
			}
			s.w.Tracef("server %s joins as %d", s.info.Name, r.ID)
			s.ID, s.joining = r.ID, false
			s.w.byServer[r.ID] = s
			s.run()
		}
		b, err := monitor.EncodeJoin(monitor.JoinRequest{ClusterID: "sim", Info: s.info})
		if err != nil {
			s.w.Fail(err)
			return
		}
		o.Step(monitor.JoinRequested{Conn: conn, Bytes: b})
	}
	s.w.At(s.w.Now()+200*ident.Millisecond, func() { s.askToJoin(boot) })
}

// Restart starts the process again.
func (s *Server) Restart() {
	if s.Core == nil && s.w.Crashed(s.node) {
		s.w.Restart(s.node, s)
		s.start()
	}
}

// Pause stops the process as SIGSTOP does.
func (s *Server) Pause() {
	if s.Running() && !s.w.calm {
		s.w.Tracef("server %d is paused", s.ID)
		s.w.Pause(s.node)
	}
}

// Resume continues a paused process.
func (s *Server) Resume() {
	if s.Core == nil || s.w.Running(s.node) {
		return
	}
	s.w.Tracef("server %d continues", s.ID)
	s.w.Resume(s.node)
	if f := s.held; f != nil {
		s.held = nil
		s.w.At(s.w.Now(), f)
	}
}

// Receive takes in a message from another server.
func (s *Server) Receive(_ ident.Micros, from kernel.NodeID, msg any) {
	s.Step(monitor.PeerMessage{From: s.w.Servers[from].ID, Bytes: msg.([]byte)})
}

// Wake tells the core that time has passed.
func (s *Server) Wake(ident.Micros) { s.Step(monitor.Tick{}) }

// Step gives the core an event and carries out what follows. A paused process reacts to nothing.
func (s *Server) Step(ev monitor.Event) {
	if !s.Running() {
		return
	}
	s.Core.Step(s.Clock(), ev)
	s.drain()
}

// After has the server's process take an event in after a while, if it still runs then, or when it continues.
func (s *Server) After(delay ident.Micros, ev func() monitor.Event) {
	boot := s.boot
	var deliver func()
	deliver = func() {
		switch {
		case s.Core == nil || s.boot != boot:
		case !s.Running():
			s.w.At(s.w.Now()+10*ident.Millisecond, deliver)
		default:
			if e := ev(); e != nil {
				s.Step(e)
			}
		}
	}
	s.w.At(s.w.Now()+delay, deliver)
}

func (s *Server) drain() {
	for !s.writing && s.Core != nil && s.Core.HasReady() {
		rd := s.Core.Ready()
		delay := ident.Micros(0)
		if rd.Persist != nil {
			delay = s.w.Between(0, s.w.Config.DiskMax)
		}
		if delay == 0 {
			s.carryOut(rd)
			continue
		}
		s.writing, s.toWrite = true, rd.Persist
		boot := s.boot
		finish := func() {
			if s.Core == nil || s.boot != boot {
				return
			}
			s.writing, s.toWrite = false, nil
			s.carryOut(rd)
			s.drain()
		}
		s.w.At(s.w.Now()+delay, func() {
			if s.Core != nil && s.boot == boot && !s.Running() {
				s.held = finish
				return
			}
			finish()
		})
	}
	if s.Core == nil {
		return
	}
	if at, ok := s.Core.NextDeadline(); ok {
		s.w.WakeAt(s.node, at)
	}
}

func (s *Server) store(p *cells.Persist) {
	s.disk = s.disk.Apply(p)
	if p.MustSync {
		s.flushed = s.disk
	}
}

// carryOut does what a Ready asks for, in the order that it must be done in.
func (s *Server) carryOut(rd monitor.Ready) {
	if rd.Persist != nil {
		s.store(rd.Persist)
	}
	for _, m := range rd.Messages {
		if m.Conn != 0 {
			s.w.answerJoin(m)
		} else if o := s.w.Server(m.To); o != nil && o.ID == m.To {
			s.w.Send(s.node, o.node, m.Bytes)
		}
	}
	for _, a := range rd.Actions {
		s.action(a)
	}
	for i := range rd.Responses {
		r := rd.Responses[i]
		if n, ok := s.w.byID[r.ID]; ok {
			s.w.ops[n].Answer = &r
		} else if f := s.answers[r.ID]; f != nil {
			delete(s.answers, r.ID)
			f(r)
		}
	}
	s.Core.Advance(s.Clock())
	s.w.note(s)
	s.Core.Check()
}

func (w *World) answerJoin(m monitor.Message) {
	r, err := monitor.DecodeJoinReply(m.Bytes)
	if err != nil {
		w.Fail(err)
		return
	}
	if f := w.joins[m.Conn]; f != nil {
		delete(w.joins, m.Conn)
		w.At(w.Now()+w.Between(100, ident.Millisecond), func() { f(r) })
	}
}

func (s *Server) action(a monitor.Action) {
	if l, ok := a.(monitor.Lease); ok {
		s.w.granted(s, l)
	} else if s.w.Tracing { // leases would fill the trace
		s.w.Tracef("server %d: %T%+v", s.ID, a, a)
	}
	if s.w.OnAction != nil && s.w.OnAction(s, a) {
		return
	}
	switch a := a.(type) {
	case monitor.KillWorkers:
		s.After(s.w.Between(100, 20*ident.Millisecond), func() monitor.Event { return monitor.WorkersKilled{UpTo: a.UpTo} })
	case monitor.SuspectCheck:
		s.lookFor(a)
	}
}

// lookFor looks whether a server's processes are gone, as its neighbours on the host can.
func (s *Server) lookFor(a monitor.SuspectCheck) {
	o := s.w.Server(a.Server)
	if o == nil || o.info.HostID != s.info.HostID {
		return
	}
	s.After(s.w.Between(200, 5*ident.Millisecond), func() monitor.Event {
		if o.Core != nil && o.boot == a.Process.Boot || s.w.WorkersLeft != nil && s.w.WorkersLeft(o, a.Incarnation) {
			return nil
		}
		return monitor.ProcessGone{Server: a.Server, Incarnation: a.Incarnation, Boot: a.Process.Boot, Detail: "pid is gone"}
	})
}
