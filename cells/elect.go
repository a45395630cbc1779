package cells

import (
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/ident"
)

// rearm sets the election timer anew, at random between ElectionMin and ElectionMax.
func (r *Replica) rearm(now ident.Micros) {
	t := r.cfg.Timing
	r.electionAt = now + t.ElectionMin + ident.Micros(r.rng.Int64N(int64(t.ElectionMax-t.ElectionMin)+1))
}

// NextDeadline is when Tick is wanted.
func (r *Replica) NextDeadline() ident.Micros {
	if r.leading {
		return r.heartbeatAt
	}
	return r.electionAt
}

// Tick sends heartbeats or starts an election, if it is time.
func (r *Replica) Tick(now ident.Micros) {
	if r.leading {
		if now >= r.heartbeatAt {
			r.node.Tick()
			r.heartbeatAt = now + r.cfg.Timing.Heartbeat
		}
		return
	}
	if now < r.electionAt {
		return
	}
	r.rearm(now)
	if r.votes(r.cfg.ID) {
		r.counters.Elections++
		_ = r.node.Campaign() // it fails only for messages that Campaign does not send
		r.observe(now)
	}
}

// Suspect says that a server may be gone. If it leads, candidates are listened to from now on, and an election starts early. It starts
// the earlier the lower this replica's rank among the voters, so that they do not all start at once; with proof there is nothing else
// to wait for.
func (r *Replica) Suspect(now ident.Micros, s ident.ServerID, proof bool) {
	if r.leading || s != r.lead || s == 0 || r.suspected == s && !proof {
		return
	}
	r.suspected = s
	step := r.cfg.Timing.ElectionMin / 16
	at := now + step*ident.Micros(r.rank(s)) + ident.Micros(r.rng.Int64N(int64(step)+1))
	if !proof {
		at += r.cfg.Timing.Heartbeat * 2 // a leader that lives is heard again before that
	}
	r.electionAt = min(r.electionAt, at)
}

// rank is this replica's place among the voters without the one that is gone.
func (r *Replica) rank(gone ident.ServerID) int {
	n := 0
	for _, v := range r.conf.Voters {
		if v < uint64(r.cfg.ID) && v != uint64(gone) {
			n++
		}
	}
	return n
}

// StepRaft takes in a message from another replica. An error means that the message was refused.
func (r *Replica) StepRaft(now ident.Micros, from ident.ServerID, b []byte) error {
	m := &pb.Message{}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("cells: raft message from server %d cannot be read: %w", from, err)
	}
	if err := r.checkMessage(from, m); err != nil {
		return err
	}
	switch m.GetType() {
	case pb.MsgVote, pb.MsgPreVote:
		if r.loyal(now) {
			r.counters.RefusedVotes++
			return nil
		}
	case pb.MsgReadIndex:
		if !r.leading {
			return nil // whoever asked knows an old leader; it asks again
		}
		if !r.contacts.Heard(now, from) && r.cfg.Hooks.Canary != CanaryReadNotRefused {
			r.counters.RefusedReads++
			return nil
		}
	}
	err := r.node.Step(m)
	r.observe(now)
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		if r.lead == from && m.GetTerm() == r.term {
			r.heardAt = now
			r.suspected = 0
			r.rearm(now)
		}
	}
	if err != nil {
		return fmt.Errorf("cells: raft message %s from server %d: %w", m.GetType(), from, err)
	}
	return nil
}

// loyal tells whether candidates are to be ignored: a leader was heard within the minimal election timeout, and nothing says that it is
// gone; or this replica leads, and a quorum was in touch as recently.
func (r *Replica) loyal(now ident.Micros) bool {
	if r.leading {
		return now-r.confirmedAt < r.cfg.Timing.ElectionMin
	}
	return r.lead != 0 && r.lead != r.suspected && now-r.heardAt < r.cfg.Timing.ElectionMin
}

// Propose appends a command to the log. It is not agreed on until it comes back from Advance.
func (r *Replica) Propose(data []byte) error {
	if !r.leading {
		return ErrNotLeader
	}
	return r.node.Propose(data)
}

// ReadIndex asks for confirmation by a quorum. The context must be new each time. It may be lost.
func (r *Replica) ReadIndex(now ident.Micros, context string) {
	if r.leading {
		r.contacts.Heard(now, r.cfg.ID)
	}
	r.node.ReadIndex([]byte(context))
}

// Confirmed says that a ReadIndex that this replica asked for at sentAt came through. A leader that was out of touch with a quorum for
// as long as a lease starts to count the others' silence anew.
func (r *Replica) Confirmed(now, sentAt ident.Micros) {
	if r.leading && sentAt-r.confirmedAt > r.cfg.Timing.LeaseLength {
		r.contacts.Regained(now)
	}
	r.confirmedAt = max(r.confirmedAt, sentAt)
}

// Resign stops leading, if no quorum has been in touch for long: a leader that can send but not receive would keep others loyal for
// ever. It may be called only when HasReady is false.
func (r *Replica) Resign(now ident.Micros) error {
	if !r.leading || r.inReady || r.HasReady() || now-r.confirmedAt <= 2*r.cfg.Timing.LeaseLength {
		return nil
	}
	return r.rebuild(now)
}

// ConfirmedAt is, while leading, a time at which a quorum was in touch.
func (r *Replica) ConfirmedAt() ident.Micros { return r.confirmedAt }

// ExcludeAfter is the time after which a leader may exclude a server without proof.
func (r *Replica) ExcludeAfter(s ident.ServerID) ident.Micros {
	if r.cfg.Hooks.Canary == CanaryExcludeEarly {
		return r.contacts.LastHeard(s) + r.cfg.Timing.LeaseLength/2
	}
	return r.contacts.ExcludeAfter(r.cfg.Timing, s)
}
