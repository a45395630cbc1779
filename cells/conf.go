package cells

import (
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/ident"
)

// Members of the Raft group follow the registry of servers: a server that was added becomes a learner, the policy of ChooseVoters says
// who votes, a server that was removed leaves. The leader sees to it, with one change under way at a time.

// caughtUpEntries is how far behind a learner may be to become a voter.
const caughtUpEntries = 100

func (r *Replica) applyConf(e *pb.Entry) {
	var cc pb.ConfChangeI
	if e.GetType() == pb.EntryConfChange {
		c := &pb.ConfChange{}
		if err := proto.Unmarshal(e.GetData(), c); err != nil {
			panic(fmt.Sprintf("cells: configuration change at %d: %v", e.GetIndex(), err))
		}
		cc = c
	} else {
		c := &pb.ConfChangeV2{}
		if err := proto.Unmarshal(e.GetData(), c); err != nil {
			panic(fmt.Sprintf("cells: configuration change at %d: %v", e.GetIndex(), err))
		}
		cc = c
	}
	if cs := r.changeConf(cc); cs != nil {
		r.conf = proto.Clone(cs).(*pb.ConfState)
	}
}

func (r *Replica) votes(id ident.ServerID) bool {
	return slices.Contains(r.conf.Voters, uint64(id)) || slices.Contains(r.conf.VotersOutgoing, uint64(id))
}

// Voters returns who votes now, sorted.
func (r *Replica) Voters() []ident.ServerID { return serverIDs(r.conf.Voters) }

// Learners returns who follows the log without voting, sorted.
func (r *Replica) Learners() []ident.ServerID { return serverIDs(r.conf.Learners) }

func serverIDs(in []uint64) []ident.ServerID {
	var out []ident.ServerID
	for _, id := range in {
		out = append(out, ident.ServerID(id))
	}
	slices.Sort(out)
	return out
}

// Reconfigure proposes the next change of the group, if this replica leads and one is due.
func (r *Replica) Reconfigure() error {
	if !r.leading || len(r.conf.VotersOutgoing) > 0 {
		return nil
	}
	changes := r.dueChanges()
	if len(changes) == 0 {
		return nil
	}
	return r.node.ProposeConfChange(&pb.ConfChangeV2{Changes: changes})
}

func (r *Replica) dueChanges() []*pb.ConfChangeSingle {
	var changes []*pb.ConfChangeSingle
	add := func(t pb.ConfChangeType, id ident.ServerID) {
		changes = append(changes, &pb.ConfChangeSingle{Type: t.Enum(), NodeId: new(uint64(id))})
	}
	voters, learners := r.Voters(), r.Learners()
	st := r.fsm.State()
	var pool []Candidate
	for i := range st.Servers {
		s := &st.Servers[i]
		isVoter := slices.Contains(voters, s.ID)
		if !isVoter && !slices.Contains(learners, s.ID) {
			add(pb.ConfChangeAddLearnerNode, s.ID)
		}
		// An initial voter that has not come up yet is given time; any other that is not live is as good as dead.
		alive := s.State == ServerLive || s.State == ServerJoining && isVoter
		if isVoter || s.State == ServerLive {
			pool = append(pool, Candidate{ID: s.ID, Cell: s.Cell, Witness: s.Role == RoleWitness, Alive: alive, Voter: isVoter, Leader: s.ID == r.cfg.ID})
		}
	}
	for _, id := range learners {
		if st.Server(id) == nil {
			add(pb.ConfChangeRemoveNode, id)
		}
	}
	if len(changes) > 0 {
		return changes // no voter among them: a simple change
	}
	want := ChooseVoters(pool)
	if len(want) == 0 || slices.Equal(want, voters) {
		return nil
	}
	for _, id := range want {
		if slices.Contains(voters, id) {
			continue
		}
		if !r.caughtUp(id) {
			return nil // later
		}
		add(pb.ConfChangeAddNode, id)
	}
	for _, id := range voters {
		switch {
		case slices.Contains(want, id):
		case st.Server(id) == nil:
			add(pb.ConfChangeRemoveNode, id)
		default:
			add(pb.ConfChangeAddLearnerNode, id)
		}
	}
	return changes
}

func (r *Replica) caughtUp(id ident.ServerID) bool {
	pr, ok := r.node.Status().Progress[uint64(id)]
	return ok && pr.RecentActive && pr.Match+caughtUpEntries >= r.applied
}
