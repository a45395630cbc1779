package cells

import (
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// load fills the in-memory storage and the state from what is stored.
func (r *Replica) load() error {
	stored := r.cfg.Stored
	if stored.Empty() && len(r.cfg.Initial) > 0 {
		p, err := bootstrap(r.cfg.Initial, r.fsm)
		if err != nil {
			return err
		}
		r.toStore = p
		stored = stored.Apply(p)
	}
	hard := &pb.HardState{}
	if stored.HardState != nil {
		if err := proto.Unmarshal(stored.HardState, hard); err != nil {
			return fmt.Errorf("cells: stored hard state cannot be read: %w", err)
		}
	}
	if stored.Snapshot != nil {
		snap := &pb.Snapshot{}
		if err := proto.Unmarshal(stored.Snapshot.Bytes, snap); err != nil {
			return fmt.Errorf("cells: stored snapshot cannot be read: %w", err)
		}
		if err := r.storage.ApplySnapshot(snap); err != nil {
			return fmt.Errorf("cells: stored snapshot at %d: %w", stored.Snapshot.Index, err)
		}
		if err := r.restore(snap); err != nil {
			return err
		}
		r.snapIndex = r.applied
		if hard.GetCommit() < r.applied {
			hard.Commit = new(r.applied)
		}
	}
	if id := r.fsm.State().ClusterID; id != r.cfg.ClusterID {
		return fmt.Errorf("cells: the data directory belongs to cluster %q, not to %q", id, r.cfg.ClusterID)
	}
	entries, err := decodeEntries(stored.Entries, r.applied)
	if err != nil {
		return err
	}
	if err := r.storage.Append(entries); err != nil {
		return fmt.Errorf("cells: stored entries: %w", err)
	}
	last, err := r.storage.LastIndex()
	if err != nil {
		return fmt.Errorf("cells: stored entries: %w", err)
	}
	if hard.GetCommit() > last {
		return fmt.Errorf("cells: the stored log ends at %d but was committed up to %d: the disk lost what it had confirmed", last, hard.GetCommit())
	}
	return r.storage.SetHardState(hard)
}

func decodeEntries(stored []LogEntry, after uint64) ([]*pb.Entry, error) {
	var out []*pb.Entry
	next := after + 1
	for _, s := range stored {
		if s.Index <= after {
			continue
		}
		e := &pb.Entry{}
		if err := proto.Unmarshal(s.Bytes, e); err != nil {
			return nil, fmt.Errorf("cells: stored entry %d cannot be read: %w", s.Index, err)
		}
		if e.GetIndex() != s.Index || s.Index != next {
			return nil, fmt.Errorf("cells: stored entry %d is in the place of entry %d", e.GetIndex(), next)
		}
		out = append(out, e)
		next++
	}
	return out, nil
}

// bootstrap is the first state of a cluster, the same on every initial server: a snapshot at index 1.
func bootstrap(initial []InitialServer, fsm *FSM) (*Persist, error) {
	var candidates []Candidate
	for i, s := range initial {
		if s.ID == 0 || s.ID >= FirstJoinedID {
			return nil, fmt.Errorf("cells: initial server %s has ID %d: use 1 to %d", s.Name, s.ID, FirstJoinedID-1)
		}
		for _, o := range initial[:i] {
			if o.ID == s.ID || o.Name == s.Name {
				return nil, fmt.Errorf("cells: initial servers %s (ID %d) and %s (ID %d) are not distinct", o.Name, o.ID, s.Name, s.ID)
			}
		}
		candidates = append(candidates, Candidate{ID: s.ID, Cell: s.Cell, Witness: s.Role == RoleWitness, Alive: true})
	}
	conf := &pb.ConfState{}
	voters := ChooseVoters(candidates)
	for _, s := range fsm.State().Servers {
		if slices.Contains(voters, s.ID) {
			conf.Voters = append(conf.Voters, uint64(s.ID))
		} else {
			conf.Learners = append(conf.Learners, uint64(s.ID))
		}
	}
	fsm.state.Applied = 1
	data, err := fsm.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("cells: first snapshot: %w", err)
	}
	snap := &pb.Snapshot{Data: data, Metadata: &pb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)), ConfState: conf}}
	hard := &pb.HardState{Term: new(uint64(1)), Commit: new(uint64(1)), Vote: new(uint64(0))}
	return &Persist{Snapshot: &StoredSnapshot{Index: 1, Bytes: marshal(snap)}, HardState: marshal(hard), MustSync: true}, nil
}
