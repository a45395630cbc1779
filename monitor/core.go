package monitor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// Core is the deciding part of one server. It is not safe for concurrent use: one goroutine owns it.
type Core struct {
	cfg Config
	t   cells.Timing
	rep *cells.Replica
	now ident.Micros

	phase       Phase
	incarnation ident.Incarnation // while acting
	actingSince ident.Micros
	confirmed   bool // a quorum confirmed a read since start
	adopted     bool // Adopted came
	killAsked   ident.Incarnation
	killedUpTo  ident.Incarnation
	killDone    bool
	retryAt     ident.Micros // of Admit or Resume, after a refusal
	helloAt     ident.Micros

	reads      []openRead
	readSeq    uint64
	nextReadAt ident.Micros
	lastRead   ident.Micros // sending time of the last read that came through
	leaseUntil ident.Micros

	proposals []*proposal // by rising number
	nextReq   uint64
	forwarded []cells.RequestID // recently proposed for others, in this term

	seenLeader ident.ServerID
	seenTerm   uint64
	dutyAt     ident.Micros // of the leader's periodic duties
	confAt     ident.Micros
	suspects   []suspect // by server
	excluding  *exclusion
	moves      []moveWatch // as leader
	balance    BalanceWatch

	workers     []*worker // by VM
	knownVMs    []ident.VMID
	reconcileAt ident.Micros
	dirty       bool // the registry or the workers changed since the last reconciliation
	recoveries  []*recoveryRun

	out      Ready
	inReady  bool
	raftOut  bool // the Ready that is out has the replica's
	counters Counters
}

// New returns the core of one server, or an error if the configuration or what is stored makes no sense.
func New(now ident.Micros, cfg Config) (*Core, error) {
	if cfg.Timing == (cells.Timing{}) {
		cfg.Timing = cells.DefaultTiming()
	}
	switch {
	case cfg.ClusterID == "" || len(cfg.ClusterID) > maxClusterIDBytes:
		return nil, fmt.Errorf("monitor: cluster id of %d bytes; 1 to %d are allowed", len(cfg.ClusterID), maxClusterIDBytes)
	case cfg.Server == 0:
		return nil, errors.New("monitor: server ID 0: ask a running cluster for one with a JoinRequest")
	case cfg.Info.Process.Boot == "":
		return nil, errors.New("monitor: no boot id")
	}
	rep, err := cells.NewReplica(now, cells.ReplicaConfig{
		ID: cfg.Server, ClusterID: cfg.ClusterID, Initial: cfg.Initial, Stored: cfg.Stored, Timing: cfg.Timing, Seed: cfg.Seed,
		SnapshotEvery: cfg.SnapshotEvery, Hooks: hooksWith(cfg.Canary),
	})
	if err != nil {
		return nil, fmt.Errorf("monitor: server %d: %w", cfg.Server, err)
	}
	c := &Core{cfg: cfg, t: cfg.Timing, rep: rep, now: now, phase: PhaseCatchingUp, nextReadAt: now, dirty: true}
	c.cfg.Stored = cells.Stored{} // it may be large, and is not needed again
	c.noteVMs()
	return c, nil
}

// Step tells the core what happened. Time must not go back.
func (c *Core) Step(now ident.Micros, ev Event) {
	c.now = max(now, c.now)
	switch e := ev.(type) {
	case Tick:
	case PeerMessage:
		c.peerMessage(e)
	case JoinRequested:
		c.joinRequested(e)
	case Propose:
		c.proposeFor(e)
	case Hint:
		c.hint(e.Server, e.Source)
	case ProcessGone:
		c.proof(goneBody{Server: e.Server, Incarnation: e.Incarnation, Boot: e.Boot, Detail: e.Detail}, true)
	case Adopted:
		c.adopt(e)
	case WorkerReady:
		c.workerReady(e.Incarnation, e.Ready)
	case WorkerEnded:
		c.workerEnded(e)
	case WorkerDisks:
		c.workerDisks(e)
	case WorkerHint:
		c.workerHint(e)
	case WorkerGone:
		c.workerGone(e)
	case WorkerProtected:
		c.workerProtected(e)
	case WorkerRestored:
		c.workerRestored(e)
	case WorkerStalled:
		c.workerStalled(e)
	case WorkerPaused:
		c.workerPaused(e)
	case WorkerShort:
		c.workerShort(e)
	case WorkerHanded:
		c.workerHanded(e)
	case WorkerWished:
		c.workerWished(e)
	case WorkerSwitched:
		c.workerSwitched(e)
	case WorkersKilled:
		c.workersKilled(e.UpTo)
	case ClockSet:
		c.cfg.UnixMsAtZero = e.UnixMsAtZero
	}
	c.pump()
}

// pump does all that is due now. It is called after every event.
func (c *Core) pump() {
	c.rep.Tick(c.now)
	if l, t := c.rep.Leader(), c.rep.Term(); l != c.seenLeader || t != c.seenTerm {
		c.leaderChanged(l, t)
	}
	c.renew()
	c.settlePhase()
	if c.rep.Leading() {
		c.lead()
	}
	c.resend()
	if c.dirty || c.now >= c.reconcileAt {
		c.reconcile()
	}
}

func (c *Core) leaderChanged(leader ident.ServerID, term uint64) {
	if leader != 0 && (leader != c.seenLeader || term != c.seenTerm) {
		c.nextReadAt = c.now
		for _, p := range c.proposals {
			p.nextSend, p.wait = c.now, c.t.Retry
		}
	}
	if term != c.seenTerm {
		c.excluding = nil
		c.forwarded = nil
	}
	c.seenLeader, c.seenTerm = leader, term
}

// HasReady tells whether there is something to carry out.
func (c *Core) HasReady() bool {
	o := &c.out
	return c.rep.HasReady() || len(o.Messages) > 0 || len(o.Actions) > 0 || len(o.Responses) > 0 || len(o.Events) > 0
}

// Ready hands out what is to be carried out. Advance must follow before the next Ready; Step may be called in between.
func (c *Core) Ready() Ready {
	if c.inReady {
		panic("monitor: Ready before Advance of the former one")
	}
	c.inReady = true
	out := c.out
	c.out = Ready{}
	c.raftOut = c.rep.HasReady()
	if c.raftOut {
		rd := c.rep.Ready()
		out.Persist = rd.Persist
		for _, m := range rd.Messages {
			out.Messages = append(out.Messages, Message{To: m.To, Bytes: c.envelope(kindRaft, m.Bytes)})
		}
	}
	return out
}

// Advance says that the last Ready was carried out: Persist is on disk.
func (c *Core) Advance(now ident.Micros) {
	if !c.inReady {
		panic("monitor: Advance without Ready")
	}
	c.inReady = false
	c.now = max(now, c.now)
	if c.raftOut {
		p, err := c.rep.Advance(c.now)
		if err != nil {
			panic(fmt.Sprintf("monitor: server %d: %v", c.cfg.Server, err))
		}
		c.progressed(p)
	}
	if err := c.rep.Resign(c.now); err != nil {
		panic(fmt.Sprintf("monitor: server %d: %v", c.cfg.Server, err))
	}
	c.pump()
}

// progressed takes in what the replica applied.
func (c *Core) progressed(p cells.Progress) {
	if p.Restored {
		c.restored()
	}
	for i := range p.Applied {
		a := &p.Applied[i]
		c.out.Events = append(c.out.Events, a.Events...)
		if a.View {
			c.counters.Views++
			c.viewChanged(a)
		}
		if a.Command != nil {
			c.applied(a)
		}
		c.dirty = true
	}
	for _, r := range p.Reads {
		c.readDone(r.Context)
	}
}

// restored follows a jump of the state to a snapshot: what happened in between is not known one by one.
func (c *Core) restored() {
	c.dirty = true
	for _, p := range slices.Clone(c.proposals) {
		if result, fault, ok := c.rep.FSM().Outcome(p.id); ok {
			c.finish(p, result, fault)
		}
	}
}

func (c *Core) applied(a *cells.Applied) {
	for _, p := range c.proposals {
		if p.id == a.Command.Request {
			c.finish(p, a.Result, a.Fault)
			break
		}
	}
	if c.excluding != nil && a.Command.Request == c.excluding.request {
		c.excludeApplied(a)
	}
}

func (c *Core) envelope(kind messageKind, body []byte) []byte {
	m := message{kind: kind, cluster: c.cfg.ClusterID, sender: c.cfg.Server, incarnation: c.incarnation, epoch: c.rep.State().View.Epoch, body: body}
	return m.encode()
}

func (c *Core) send(to ident.ServerID, kind messageKind, body []byte) {
	if to != 0 && to != c.cfg.Server {
		c.out.Messages = append(c.out.Messages, Message{To: to, Bytes: c.envelope(kind, body)})
	}
}

func (c *Core) act(a Action) { c.out.Actions = append(c.out.Actions, a) }

// self returns this server's record, or nil.
func (c *Core) self() *cells.Server { return c.rep.State().Server(c.cfg.Server) }

// NextDeadline is when a Tick is wanted; false if never.
func (c *Core) NextDeadline() (ident.Micros, bool) {
	at := min(c.rep.NextDeadline(), c.nextReadAt, c.reconcileAt)
	if c.rep.Leading() {
		at = min(at, c.dutyAt)
	}
	for _, p := range c.proposals {
		at = min(at, p.nextSend)
		if p.deadline != 0 {
			at = min(at, p.deadline)
		}
	}
	return max(at, c.now+1), true
}

// Status tells where this server stands.
func (c *Core) Status(now ident.Micros) Status {
	return Status{
		Server: c.cfg.Server, Phase: c.phase, Incarnation: c.incarnation, Epoch: c.rep.State().View.Epoch,
		Leader: c.rep.Leader(), Term: c.rep.Term(), LeaseUntil: c.leaseUntil,
		Quorum: c.lastRead != 0 && now < c.t.Until(c.lastRead),
		Voters: c.rep.Voters(), Learners: c.rep.Learners(),
	}
}

// Leading tells whether this server leads, and in which term.
func (c *Core) Leading() (term uint64, ok bool) { return c.rep.Term(), c.rep.Leading() }

// State returns a copy of the replicated state as applied here.
func (c *Core) State() cells.State { return c.rep.State().Clone() }

// Peek returns the replicated state itself. It must not be changed, and is valid until the next call of Step or Advance.
func (c *Core) Peek() *cells.State { return c.rep.State() }

// EventsSince returns up to max replicated events with sequence numbers above seq, and the lowest number that is still kept.
func (c *Core) EventsSince(seq uint64, max int) (events []cells.Event, oldest uint64) {
	return c.rep.FSM().EventsSince(seq, max)
}

// Counters returns what was counted since start.
func (c *Core) Counters() Counters {
	out, r := c.counters, c.rep.Counters()
	out.RefusedVotes, out.RefusedReads, out.Elections = r.RefusedVotes, r.RefusedReads, r.Elections
	return out
}

// Check panics if an invariant of the core is broken.
func (c *Core) Check() {
	c.rep.FSM().Check()
	if c.incarnation != 0 && c.phase != PhaseActing {
		panic(fmt.Sprintf("monitor: server %d is %s under incarnation %d", c.cfg.Server, c.phase, c.incarnation))
	}
	if c.phase == PhaseActing && c.incarnation <= c.killedUpTo && c.cfg.Canary == "" {
		panic(fmt.Sprintf("monitor: server %d acts as incarnation %d, killed up to %d", c.cfg.Server, c.incarnation, c.killedUpTo))
	}
	for i, w := range c.workers {
		if i > 0 && c.workers[i-1].vm >= w.vm {
			panic(fmt.Sprintf("monitor: server %d: workers out of order at vm %d", c.cfg.Server, w.vm))
		}
	}
}
