package cells

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/ident"
)

// ReplicaConfig describes one member of the Raft group.
type ReplicaConfig struct {
	ID            ident.ServerID
	ClusterID     string
	Initial       []InitialServer // of a cluster's first start; looked at if nothing is stored
	Stored        Stored
	Timing        Timing
	Seed          uint64
	SnapshotEvery uint64
	Hooks         Hooks
}

// keptEntries is how many entries before a snapshot stay in the log, so that a server that is a little behind needs no snapshot.
const keptEntries = 200

// ErrNotLeader is returned by Propose on a server that does not lead. Proposals are never forwarded by Raft itself: one made in a
// former term must not be taken up by another leader.
var ErrNotLeader = errors.New("cells: not the leader")

// RaftMessage is a message to another replica.
type RaftMessage struct {
	To    ident.ServerID
	Bytes []byte
}

// Read is a request for confirmation by a quorum that has come through: State now holds at least everything that was committed when
// the request was made.
type Read struct {
	Context string
}

// ReplicaReady is what must be carried out before Advance: first Persist, then Messages.
type ReplicaReady struct {
	Persist  *Persist
	Messages []RaftMessage
}

// Progress is what Advance brought.
type Progress struct {
	Applied  []Applied
	Reads    []Read
	Restored bool // the state was replaced by a snapshot from the leader: Applied does not tell all that changed
}

// Replica is one member of the Raft group, with its copy of the state. It has no clock: every call says what time it is.
//
// Elections follow timers of its own, seeded for replay: etcd's raft would draw on process-global randomness. So raft's Tick is called
// on a leader only, for its heartbeats.
type Replica struct {
	cfg     ReplicaConfig
	node    *raft.RawNode
	storage *storage
	fsm     *FSM
	conf    *pb.ConfState
	rng     *rand.Rand

	applied   uint64
	snapIndex uint64 // of the last snapshot that was written
	lead      ident.ServerID
	term      uint64
	leading   bool

	electionAt  ident.Micros // when to campaign, unless leading
	heartbeatAt ident.Micros // when to send heartbeats, if leading
	heardAt     ident.Micros // when the leader was last heard
	confirmedAt ident.Micros // while leading: a quorum was in touch at this time
	suspected   ident.ServerID
	contacts    Contacts

	ready    raft.Ready
	inReady  bool
	toStore  *Persist // of a snapshot made here, not yet handed out
	reads    []raft.ReadState
	counters ReplicaCounters
}

// ReplicaCounters count since start.
type ReplicaCounters struct {
	RefusedVotes uint64 // asked for while a leader was heard
	RefusedReads uint64 // of servers being excluded
	Elections    uint64 // campaigns begun
}

// NewReplica loads a replica from what is stored, or starts it for the first time.
func NewReplica(now ident.Micros, cfg ReplicaConfig) (*Replica, error) {
	if cfg.ID == 0 {
		return nil, errors.New("cells: server ID 0")
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = 1000
	}
	r := &Replica{cfg: cfg, fsm: NewFSM(cfg.ClusterID, cfg.Initial, cfg.Hooks), conf: &pb.ConfState{}}
	r.rng = rand.New(rand.NewPCG(cfg.Seed, uint64(cfg.ID)))
	r.storage = &storage{MemoryStorage: raft.NewMemoryStorage(), owner: r}
	if err := r.load(); err != nil {
		return nil, err
	}
	if err := r.rebuild(now); err != nil {
		return nil, err
	}
	return r, nil
}

// rebuild makes a new RawNode from the storage, as a restart of the process would: whoever led follows after it.
func (r *Replica) rebuild(now ident.Micros) error {
	node, err := raft.NewRawNode(&raft.Config{
		ID:              uint64(r.cfg.ID),
		ElectionTick:    1 << 30, // never: see Replica
		HeartbeatTick:   1,
		Storage:         r.storage,
		Applied:         r.applied,
		MaxSizePerMsg:   256 << 10,
		MaxInflightMsgs: 64,
		// A leader without a quorum must not gather entries without bound.
		MaxUncommittedEntriesSize: 16 << 20,
		PreVote:                   true,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    silent{},
	})
	if err != nil {
		return fmt.Errorf("cells: raft: %w", err)
	}
	r.node, r.leading, r.lead = node, false, 0
	r.reads = nil
	r.observe(now)
	r.rearm(now)
	return nil
}

// observe notes what a step of the node changed.
func (r *Replica) observe(now ident.Micros) {
	s := r.node.BasicStatus()
	lead := ident.ServerID(s.Lead)
	if lead != r.lead {
		r.lead = lead
		if lead != 0 && lead != r.suspected {
			r.suspected = 0
		}
	}
	leading := s.RaftState == raft.StateLeader
	if leading && (!r.leading || s.GetTerm() != r.term) {
		r.contacts.Reset(now)
		if r.cfg.Hooks.Canary == CanaryNoGrace {
			r.contacts.Reset(now - r.cfg.Timing.LeaseLength)
		}
		r.confirmedAt = now
		r.heartbeatAt = now + r.cfg.Timing.Heartbeat
	}
	if !leading && r.leading {
		r.rearm(now)
	}
	r.leading, r.term = leading, s.GetTerm()
}

func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("cells: marshal %T: %v", m, err)) // our own values: cannot fail
	}
	return b
}

// restore takes state and configuration from a snapshot.
func (r *Replica) restore(snap *pb.Snapshot) error {
	if err := r.fsm.Restore(snap.GetData()); err != nil {
		return err
	}
	r.applied = snap.GetMetadata().GetIndex()
	r.conf = proto.Clone(pb.EnsureConfState(snap.GetMetadata().GetConfState())).(*pb.ConfState)
	return nil
}

// HasReady tells whether there is something to carry out.
func (r *Replica) HasReady() bool { return r.toStore != nil || r.node.HasReady() }

// Ready hands out what is to be carried out. Advance must follow before the next Ready.
func (r *Replica) Ready() ReplicaReady {
	if r.inReady {
		panic("cells: Ready before Advance of the former one")
	}
	r.inReady = true
	r.ready = r.node.Ready()
	rd := &r.ready
	out := ReplicaReady{Persist: r.toStore, Messages: r.encode(rd.Messages)}
	r.toStore = nil
	if raft.IsEmptySnap(rd.Snapshot) && len(rd.Entries) == 0 && raft.IsEmptyHardState(rd.HardState) {
		return out
	}
	if out.Persist == nil {
		out.Persist = &Persist{}
	}
	p := out.Persist
	p.MustSync = p.MustSync || rd.MustSync
	if !raft.IsEmptySnap(rd.Snapshot) {
		p.Snapshot = &StoredSnapshot{Index: rd.Snapshot.GetMetadata().GetIndex(), Bytes: marshal(rd.Snapshot)}
		p.DropThrough, p.MustSync = math.MaxUint64, true
	}
	for _, e := range rd.Entries {
		p.Entries = append(p.Entries, LogEntry{Index: e.GetIndex(), Bytes: marshal(e)})
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		p.HardState = marshal(rd.HardState)
	}
	return out
}

// encode puts messages into bytes. Of several heartbeats to one server only the last is kept: its context confirms all requests that the
// earlier ones would have.
func (r *Replica) encode(messages []*pb.Message) []RaftMessage {
	var out []RaftMessage
	for i, m := range messages {
		if m.GetType() == pb.MsgHeartbeat && slices.ContainsFunc(messages[i+1:], func(n *pb.Message) bool {
			return n.GetType() == pb.MsgHeartbeat && n.GetTo() == m.GetTo() && n.GetTerm() == m.GetTerm()
		}) {
			continue
		}
		out = append(out, RaftMessage{To: ident.ServerID(m.GetTo()), Bytes: marshal(m)})
	}
	return out
}

// Advance says that the last Ready was carried out, and applies what is committed.
func (r *Replica) Advance(now ident.Micros) (Progress, error) {
	if !r.inReady {
		panic("cells: Advance without Ready")
	}
	r.inReady = false
	var out Progress
	rd := &r.ready
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := r.storage.ApplySnapshot(rd.Snapshot); err != nil {
			return out, fmt.Errorf("cells: snapshot at %d: %w", rd.Snapshot.GetMetadata().GetIndex(), err)
		}
		if err := r.restore(rd.Snapshot); err != nil {
			return out, err
		}
		r.snapIndex, out.Restored = r.applied, true
	}
	if err := r.storage.Append(rd.Entries); err != nil {
		return out, fmt.Errorf("cells: append: %w", err)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		if err := r.storage.SetHardState(rd.HardState); err != nil {
			return out, fmt.Errorf("cells: hard state: %w", err)
		}
	}
	for _, e := range rd.CommittedEntries {
		if a, ok := r.applyEntry(e); ok {
			out.Applied = append(out.Applied, a)
		}
	}
	for _, m := range rd.Messages {
		switch m.GetType() {
		case pb.MsgVoteResp:
			if !m.GetReject() {
				r.rearm(now)
			}
		case pb.MsgSnap:
			// Whether it arrives, probing will tell.
			r.node.ReportSnapshot(m.GetTo(), raft.SnapshotFinish)
		}
	}
	r.node.Advance(*rd)
	r.reads = append(r.reads, rd.ReadStates...)
	r.ready = raft.Ready{}
	r.observe(now)
	out.Reads = r.takeReads()
	return out, r.compact()
}

func (r *Replica) applyEntry(e *pb.Entry) (Applied, bool) {
	if e.GetIndex() != r.applied+1 {
		panic(fmt.Sprintf("cells: entry %d after entry %d", e.GetIndex(), r.applied))
	}
	r.applied = e.GetIndex()
	switch {
	case e.GetType() == pb.EntryConfChangeV2 || e.GetType() == pb.EntryConfChange:
		r.applyConf(e)
	case len(e.GetData()) > 0:
		return r.fsm.Apply(e.GetIndex(), e.GetTerm(), e.GetData()), true
	}
	r.fsm.state.Applied = e.GetIndex()
	return Applied{}, false
}

// takeReads returns the reads whose index has been applied.
func (r *Replica) takeReads() []Read {
	var out []Read
	kept := r.reads[:0]
	for _, rs := range r.reads {
		if rs.Index > r.applied && r.cfg.Hooks.Canary != CanaryReadUnapplied {
			kept = append(kept, rs)
			continue
		}
		out = append(out, Read{Context: string(rs.RequestCtx)})
	}
	r.reads = kept
	return out
}

// compact writes a snapshot when the log has grown enough, and forgets the log before it.
func (r *Replica) compact() error {
	if r.applied < r.snapIndex+r.cfg.SnapshotEvery {
		return nil
	}
	snap, err := r.storage.Snapshot()
	if err != nil {
		return fmt.Errorf("cells: snapshot at %d: %w", r.applied, err)
	}
	r.snapIndex = r.applied
	drop := r.applied - min(r.applied, keptEntries)
	if first, _ := r.storage.FirstIndex(); drop >= first {
		if err := r.storage.Compact(drop); err != nil {
			return fmt.Errorf("cells: compact the log to %d: %w", drop, err)
		}
	}
	// Everything up to the snapshot goes from the disk: a restart goes on from it. The entries kept in memory serve others only.
	r.toStore = &Persist{Snapshot: &StoredSnapshot{Index: r.applied, Bytes: marshal(snap)}, DropThrough: r.applied, MustSync: true}
	return nil
}

// State returns the replicated state. It must not be changed.
func (r *Replica) State() *State { return r.fsm.State() }

// FSM returns the state machine, for queries.
func (r *Replica) FSM() *FSM { return r.fsm }

// Leader returns the leader as known here, 0 if none.
func (r *Replica) Leader() ident.ServerID { return r.lead }

// Leading tells whether this replica leads.
func (r *Replica) Leading() bool { return r.leading }

// Term returns the current term.
func (r *Replica) Term() uint64 { return r.term }

// Contacts returns what a leader knows of the leases of others.
func (r *Replica) Contacts() *Contacts { return &r.contacts }

// Counters returns what was counted since start.
func (r *Replica) Counters() ReplicaCounters { return r.counters }
