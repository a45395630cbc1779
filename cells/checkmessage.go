package cells

import (
	"fmt"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/ident"
)

// checkMessage refuses what no correct replica sends, and what would make raft panic.
func (r *Replica) checkMessage(from ident.ServerID, m *pb.Message) error {
	switch {
	case m.GetFrom() != uint64(from) || from == r.cfg.ID:
		return refusal(m, fmt.Sprintf("claims to be from %d", m.GetFrom()))
	case m.GetTo() != uint64(r.cfg.ID):
		return refusal(m, fmt.Sprintf("is for %d", m.GetTo()))
	case m.GetTerm() == 0 && m.GetType() != pb.MsgReadIndex:
		return refusal(m, "has no term")
	}
	switch m.GetType() {
	case pb.MsgApp:
		return r.checkEntries(m)
	case pb.MsgHeartbeat:
		if m.GetTerm() >= r.term && m.GetCommit() > r.lastIndex() {
			return refusal(m, fmt.Sprintf("commits entry %d of a log that ends at %d", m.GetCommit(), r.lastIndex()))
		}
	case pb.MsgAppResp:
		if !m.GetReject() && m.GetTerm() >= r.term && m.GetIndex() > r.lastIndex() {
			return refusal(m, fmt.Sprintf("acknowledges entry %d of a log that ends at %d", m.GetIndex(), r.lastIndex()))
		}
	case pb.MsgHeartbeatResp:
		if n := len(m.GetContext()); n != 0 && n != 8 {
			return refusal(m, fmt.Sprintf("has a context of %d bytes", n))
		}
	case pb.MsgReadIndex, pb.MsgReadIndexResp:
		if len(m.GetEntries()) != 1 || len(m.GetEntries()[0].GetData()) > 128 {
			return refusal(m, "has no proper context")
		}
	case pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgTimeoutNow:
	case pb.MsgSnap:
		return r.checkSnapshot(m)
	default:
		return refusal(m, "is not one that servers send each other")
	}
	return nil
}

func refusal(m *pb.Message, what string) error {
	return fmt.Errorf("cells: raft message %s from server %d %s", m.GetType(), m.GetFrom(), what)
}

// lastIndex is where the log ends, as far as others can know: entries that were not handed out yet do not count.
func (r *Replica) lastIndex() uint64 {
	last, err := r.storage.LastIndex()
	if err != nil {
		panic(fmt.Sprintf("cells: last index: %v", err)) // memory: cannot fail
	}
	if n := len(r.ready.Entries); n > 0 {
		last = max(last, r.ready.Entries[n-1].GetIndex())
	}
	return last
}

func (r *Replica) checkEntries(m *pb.Message) error {
	committed := r.node.BasicStatus().GetCommit()
	term := m.GetLogTerm()
	for i, e := range m.GetEntries() {
		switch {
		case e.GetIndex() != m.GetIndex()+1+uint64(i) || e.GetTerm() < term || e.GetTerm() > m.GetTerm() || e.GetTerm() == 0:
			return refusal(m, "has entries out of order")
		case e.GetIndex() <= committed:
			if t, err := r.storage.Term(e.GetIndex()); err == nil && t != e.GetTerm() {
				return refusal(m, fmt.Sprintf("contradicts committed entry %d", e.GetIndex()))
			} else if err != nil && e.GetIndex() > r.snapIndex {
				return refusal(m, fmt.Sprintf("repeats entry %d while it is being written", e.GetIndex()))
			}
		}
		term = e.GetTerm()
		var err error
		switch e.GetType() {
		case pb.EntryNormal:
		case pb.EntryConfChange:
			err = proto.Unmarshal(e.GetData(), &pb.ConfChange{})
		case pb.EntryConfChangeV2:
			err = proto.Unmarshal(e.GetData(), &pb.ConfChangeV2{})
		default:
			err = fmt.Errorf("entry type %d", e.GetType())
		}
		if err != nil {
			return refusal(m, fmt.Sprintf("has an entry that cannot be read: %v", err))
		}
	}
	return nil
}

// checkSnapshot makes sure that a snapshot can be restored before raft takes it in: afterwards there is no way back.
func (r *Replica) checkSnapshot(m *pb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	if meta.GetIndex() == 0 || meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm() {
		return refusal(m, "has no proper snapshot")
	}
	if meta.GetIndex() <= r.applied {
		return nil // it is not needed: raft answers it without looking into it
	}
	if err := checkConf(meta.GetConfState()); err != nil {
		return refusal(m, fmt.Sprintf("has a snapshot with a configuration that makes no sense: %v", err))
	}
	trial := NewFSM(r.cfg.ClusterID, nil, r.cfg.Hooks)
	if err := trial.Restore(m.GetSnapshot().GetData()); err != nil {
		return refusal(m, err.Error())
	}
	if id := trial.State().ClusterID; id != r.cfg.ClusterID {
		return refusal(m, fmt.Sprintf("has a snapshot of cluster %q", clip(id, 64)))
	}
	return nil
}

// checkConf tries a configuration out. What raft would panic on becomes an error.
func checkConf(cs *pb.ConfState) (err error) {
	if len(cs.GetVoters()) == 0 {
		return fmt.Errorf("no voters")
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	t := tracker.MakeProgressTracker(1, 0)
	cfg, progress, err := confchange.Restore(confchange.Changer{Tracker: t, LastIndex: 1}, cs)
	if err != nil {
		return err
	}
	t.Config, t.Progress = cfg, progress
	return cs.Equivalent(t.ConfState())
}

// changeConf applies a configuration change, or returns nil if raft finds that it makes no sense: then every replica finds so.
func (r *Replica) changeConf(cc pb.ConfChangeI) (cs *pb.ConfState) {
	defer func() {
		if p := recover(); p != nil {
			cs = nil
		}
	}()
	return r.node.ApplyConfChange(cc)
}
