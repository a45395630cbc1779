// Package cluster is a simulated cluster of servers: each runs the production monitor.Core, with a disk that keeps what was flushed and
// may lose the rest, a clock of its own speed, and a network with faults between them. The scenarios of agreement and containment are
// built on it.
//
// After every event it holds that:
//   - a term has one leader;
//   - servers that applied the log up to the same index have the same state;
//   - no lease is valid for an incarnation that some applied view excluded, counted on the lease holder's own clock;
//   - a process only gets leases for the incarnation that was recorded for this very process;
//   - every core's Check passes.
package cluster

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// Config describes a cluster. The zero values of Timing and SnapshotEvery are the cores' defaults.
type Config struct {
	Cells         []int // servers in each cell
	Witness       bool  // one more server, in a cell of its own, that only votes
	OneHost       bool  // all on one host: processes can be seen to be gone
	Slots         int
	MemoryBytes   ident.Bytes
	Timing        cells.Timing
	SnapshotEvery uint64
	DiskMax       ident.Micros // a write takes up to this long
	Canary        string
}

// World is a simulated cluster.
type World struct {
	*kernel.World
	Servers []*Server
	Config  Config

	// OnAction, unless nil, gets the actions about workers; it returns false for those it leaves to the world.
	OnAction func(s *Server, a monitor.Action) bool
	// WorkersLeft, unless nil, tells whether worker processes of a server run, up to an incarnation.
	WorkersLeft func(s *Server, upTo ident.Incarnation) bool
	// Adopt, unless nil, tells which workers a starting server finds.
	Adopt func(s *Server) []monitor.AdoptedWorker
	// OnExclude, unless nil, is called when an incarnation is first seen to be excluded by an applied view.
	OnExclude func(m cells.Member)

	prints   map[uint64]uint64 // applied index -> fingerprint of the state
	views    map[ident.Epoch]uint64
	excluded map[cells.Member]ident.Epoch // those no longer in a later one
	leaders  map[uint64]ident.ServerID    // by term
	latest   ident.Epoch
	calm     bool // faults are over

	ops    []Op
	byID   map[uint64]int
	nextID uint64

	byServer map[ident.ServerID]*Server
	joins    map[uint64]func(monitor.JoinReply) // by connection
}

// Op is a proposal that a client made.
type Op struct {
	Subject string
	Answer  *monitor.Response // nil if none came
}

// Lease is one that was granted.
type Lease struct {
	Incarnation ident.Incarnation
	Until       ident.Micros // on the server's clock
}

// New builds a cluster. Nothing runs before Start.
func New(k *kernel.World, cfg Config) *World {
	w := &World{World: k, Config: cfg, prints: make(map[uint64]uint64), views: make(map[ident.Epoch]uint64), leaders: make(map[uint64]ident.ServerID),
		excluded: make(map[cells.Member]ident.Epoch), byID: make(map[uint64]int),
		byServer: make(map[ident.ServerID]*Server), joins: make(map[uint64]func(monitor.JoinReply))}
	if w.Config.Slots == 0 {
		w.Config.Slots = 4
	}
	if w.Config.MemoryBytes == 0 {
		w.Config.MemoryBytes = ident.GiB
	}
	for i, n := range cfg.Cells {
		for j := range n {
			w.add(ident.CellName(string(rune('a'+i))), j+1, cells.RoleServer)
		}
	}
	if cfg.Witness {
		w.add("", 1, cells.RoleWitness)
	}
	return w
}

func (w *World) add(cell ident.CellName, n int, role cells.Role) {
	id := ident.ServerID(len(w.Servers) + 1)
	name := ident.ServerName(fmt.Sprintf("%s-%d", cell, n))
	if role == cells.RoleWitness {
		name = "witness"
	}
	host := string(name)
	if w.Config.OneHost {
		host = "host"
	}
	s := &Server{w: w, ID: id, info: cells.ServerInfo{
		Name: name, Cell: cell, Role: role, HostID: host, Slots: w.Config.Slots, MemoryBytes: w.Config.MemoryBytes,
		Addrs: cells.Addrs{Peer: string(name) + ":1"},
	}}
	s.node = w.Add(s)
	// Two clocks differ by at most 8.4 %: less than the margin of a tenth.
	w.SetClock(s.node, w.Between(0, ident.Second), int64(w.Rand().IntN(80_001)-40_000))
	w.Servers = append(w.Servers, s)
	w.byServer[id] = s
}

// Start starts all servers within a short time.
func (w *World) Start() {
	for _, s := range w.Servers {
		w.At(w.Between(0, 100*ident.Millisecond), s.start)
	}
}

// Cell returns the servers of a cell.
func (w *World) Cell(name ident.CellName) []*Server {
	var out []*Server
	for _, s := range w.Servers {
		if s.info.Cell == name {
			out = append(out, s)
		}
	}
	return out
}

// Server returns the server with this ID, or nil.
func (w *World) Server(id ident.ServerID) *Server { return w.byServer[id] }

// Excluded tells whether an applied view has excluded this incarnation, and by which epoch.
func (w *World) Excluded(m cells.Member) (ident.Epoch, bool) {
	e, ok := w.excluded[m]
	return e, ok
}

// Propose has a client propose a report with a subject of its own at a server; the answer is noted.
func (w *World) Propose(s *Server, deadline ident.Micros) {
	n := len(w.ops)
	op := Op{Subject: fmt.Sprintf("op %d", n)}
	if !s.Running() {
		return
	}
	w.ops = append(w.ops, op)
	w.nextID++
	w.byID[w.nextID] = n
	cmd := cells.Command{Report: &cells.Report{Kind: "op", Subject: op.Subject, Text: "by a client"}}
	s.Step(monitor.Propose{ID: w.nextID, Command: cmd, Deadline: s.Clock() + deadline})
}

// Command has a client propose a command at a server. answer is called with the response; it is not if the server crashes before.
func (w *World) Command(s *Server, cmd cells.Command, deadline ident.Micros, answer func(monitor.Response)) {
	if !s.Running() {
		return
	}
	w.nextID++
	s.answers[w.nextID] = answer
	s.Step(monitor.Propose{ID: w.nextID, Command: cmd, Deadline: s.Clock() + deadline})
}

// note compares what a server has applied with what others have, and follows the views.
func (w *World) note(s *Server) {
	if term, ok := s.Core.Leading(); ok {
		if o := w.leaders[term]; o != 0 && o != s.ID {
			w.Fail(fmt.Errorf("servers %d and %d both lead in term %d", o, s.ID, term))
		}
		w.leaders[term] = s.ID
	}
	st := s.Core.Peek()
	if st.Applied == s.seenApplied {
		return
	}
	if st.Applied < s.seenApplied {
		w.Fail(fmt.Errorf("server %d went back from applied index %d to %d", s.ID, s.seenApplied, st.Applied))
	}
	s.seenApplied = st.Applied
	print := fingerprint(st)
	if before, ok := w.prints[st.Applied]; ok && before != print {
		w.Fail(fmt.Errorf("server %d has another state at index %d than one before it had", s.ID, st.Applied))
	}
	w.prints[st.Applied] = print
	e := st.View.Epoch
	if e < s.seenEpoch {
		w.Fail(fmt.Errorf("server %d went back from epoch %d to %d", s.ID, s.seenEpoch, e))
	}
	if e == s.seenEpoch {
		return
	}
	s.seenEpoch = e
	h := hashView(&st.View)
	if before, ok := w.views[e]; ok && before != h {
		w.Fail(fmt.Errorf("server %d has another view %d than one before it had", s.ID, e))
	}
	w.views[e] = h
	for _, m := range st.View.Live {
		if o := w.byServer[m.Server]; !slices.Contains(o.admitted, m) {
			o.admitted = append(o.admitted, m)
		}
	}
	if e < w.latest {
		return
	}
	w.latest = e
	for _, o := range w.Servers {
		w.noteExclusion(o, &st.View)
	}
}

func (w *World) noteExclusion(o *Server, v *cells.View) {
	for _, m := range o.admitted {
		if _, known := w.excluded[m]; known || v.Has(m.Server, m.Incarnation) {
			continue
		}
		w.excluded[m] = v.Epoch
		if l := o.Lease; o.Core != nil && o.ID == m.Server && l.Incarnation == m.Incarnation && o.Clock() < l.Until {
			w.Fail(fmt.Errorf("server %d incarnation %d was excluded in epoch %d while its lease ran for another %d us",
				o.ID, m.Incarnation, v.Epoch, l.Until-o.Clock()))
		}
		if w.OnExclude != nil {
			w.OnExclude(m)
		}
	}
}

// granted checks a new lease.
func (w *World) granted(s *Server, l monitor.Lease) {
	m := cells.Member{Server: s.ID, Incarnation: l.Incarnation}
	if e, out := w.excluded[m]; out && s.Clock() < l.Until {
		w.Fail(fmt.Errorf("server %d got a lease as incarnation %d, which epoch %d excluded", s.ID, l.Incarnation, e))
	}
	if r := s.Core.Peek().Server(s.ID); r == nil || r.Process.Boot != s.boot {
		w.Fail(fmt.Errorf("server %d got a lease as incarnation %d, which is on record for another process", s.ID, l.Incarnation))
	}
	s.Lease = Lease{Incarnation: l.Incarnation, Until: l.Until}
}
