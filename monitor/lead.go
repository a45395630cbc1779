package monitor

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/recovery"
)

// exclusion is one that this leader has put into the log and that is not applied yet.
type exclusion struct {
	request cells.RequestID
	targets []cells.Excluded
	clock   recovery.Clock
	decided ident.Micros
}

// dutyEvery is how often a leader looks after its duties without an event.
const dutyEvery = 50 * ident.Millisecond

// lead does a leader's duties: members of the Raft group follow the registry, and servers that can no longer act leave the view.
func (c *Core) lead() {
	if c.now < c.dutyAt {
		return
	}
	c.dutyAt = c.now + dutyEvery
	c.tendSuspects()
	if c.now >= c.confAt {
		c.confAt = c.now + 4*dutyEvery
		_ = c.rep.Reconfigure() // if it cannot be proposed now, it will be later
	}
	c.checkContacts()
	c.tendOperations()
	c.tendBalance()
}

// checkContacts excludes the servers that must have stopped by now. A leader that a quorum has not confirmed lately does not: it might
// only have been cut off itself.
func (c *Core) checkContacts() {
	if c.excluding != nil || c.now-c.rep.ConfirmedAt() >= c.t.LeaseLength {
		return
	}
	var targets []cells.Excluded
	for _, m := range c.rep.State().View.Live {
		if m.Server == c.cfg.Server {
			continue
		}
		s := c.rep.State().Server(m.Server)
		if c.now-c.rep.Contacts().LastHeard(s.ID) > 3*c.t.LeaseRenew {
			c.suspect(s, "silent")
		}
		i := slices.IndexFunc(c.suspects, func(x suspect) bool { return x.server == s.ID })
		proven := i >= 0 && c.suspects[i].proofAt != 0
		if proven && !c.proofIsRipe(s, &c.suspects[i]) {
			c.dutyAt = min(c.dutyAt, c.suspects[i].proofAt+c.t.ProofWait)
			continue
		}
		if !proven && c.now <= c.rep.ExcludeAfter(s.ID) {
			continue
		}
		t := cells.Excluded{Server: s.ID, Incarnation: s.Incarnation, Boot: s.Process.Boot, Proof: proven, Cause: "its lease lapsed"}
		if i >= 0 {
			t.Cause = c.suspects[i].cause()
		}
		targets = append(targets, t)
	}
	if len(targets) > 0 {
		c.exclude(targets)
	}
}

// proofIsRipe tells whether to act on a proof, or to wait a moment for those of the other servers of its cell, so that the loss of a
// cell is one change of the view.
func (c *Core) proofIsRipe(s *cells.Server, x *suspect) bool {
	if c.now >= x.proofAt+c.t.ProofWait {
		return true
	}
	st := c.rep.State()
	for i := range st.Servers {
		o := &st.Servers[i]
		if o.Cell != s.Cell || s.Cell == "" && o.ID != s.ID || o.State != cells.ServerLive {
			continue
		}
		if !slices.ContainsFunc(c.suspects, func(x suspect) bool { return x.server == o.ID && x.proofAt != 0 }) {
			return false
		}
	}
	return true
}

func (c *Core) exclude(targets []cells.Excluded) {
	p, fault := c.newProposal(cells.Command{Exclude: &cells.Exclude{Term: c.rep.Term(), Targets: targets}})
	if fault != nil {
		return
	}
	if err := c.rep.Propose(p.data); err != nil {
		return // tried again at the next duty
	}
	x := &exclusion{request: p.id, targets: targets, decided: c.now}
	x.clock.Span(recovery.Detect, c.now, c.now)
	for _, t := range targets {
		// From now on: a lease granted after this decision would outlive it.
		c.rep.Contacts().Refuse(t.Server)
		last := c.rep.Contacts().LastHeard(t.Server)
		since := c.now
		if i := slices.IndexFunc(c.suspects, func(s suspect) bool { return s.server == t.Server }); i >= 0 {
			since = c.suspects[i].since
		}
		if begun, _ := x.clock.Took(recovery.Detect); since-last >= begun {
			x.clock.Span(recovery.Detect, last, since)
			x.clock.Span(recovery.Fence, since, c.now)
		}
	}
	c.excluding = x
}

// excludeApplied ends the exclusion that was under way, whether it changed the view or came too late to.
func (c *Core) excludeApplied(a *cells.Applied) {
	x := c.excluding
	c.excluding = nil
	for _, t := range x.targets {
		c.rep.Contacts().Allow(t.Server)
	}
	if a.Fault != nil {
		return
	}
	x.clock.Epoch = c.rep.State().View.Epoch
	x.clock.Span(recovery.Agree, x.decided, c.now)
	for _, r := range c.recoveries {
		if r.epoch == x.clock.Epoch {
			r.take(&x.clock)
			return
		}
	}
}

// joinRequested answers a server that asks to be taken in.
func (c *Core) joinRequested(e JoinRequested) {
	req, err := DecodeJoin(e.Bytes)
	switch {
	case err != nil:
		c.counters.RefusedGarbage++
		c.joinReply(e.Conn, JoinReply{Fault: &cells.Fault{Code: cells.CodeInvalid, Text: err.Error()}})
	case req.ClusterID != "" && req.ClusterID != c.cfg.ClusterID:
		c.counters.RefusedCluster++
		c.joinReply(e.Conn, JoinReply{Fault: &cells.Fault{Code: cells.CodeInvalid,
			Text: fmt.Sprintf("this server belongs to cluster %q, not to %q", c.cfg.ClusterID, req.ClusterID)}})
	case req.Initial != 0:
		s := c.rep.State().Server(req.Initial)
		c.joinReply(e.Conn, JoinReply{Seen: s == nil || s.State != cells.ServerJoining || s.Incarnation != 0})
	case !c.rep.Leading():
		c.joinReply(e.Conn, JoinReply{Leader: c.rep.Leader()})
	default:
		p, fault := c.newProposal(cells.Command{AddServer: &cells.AddServer{Info: req.Info}})
		if fault != nil {
			c.joinReply(e.Conn, JoinReply{Fault: fault})
			return
		}
		p.join, p.conn, p.deadline = true, e.Conn, c.now+4*c.t.LeaseLength
		c.proposals = append(c.proposals, p)
	}
}

func (c *Core) joinDecided(p *proposal, result []byte, fault *cells.Fault) {
	var r cells.AddServerResult
	if fault == nil && json.Unmarshal(result, &r) != nil {
		fault = &cells.Fault{Code: cells.CodeInvalid, Text: "the answer to the join request cannot be read"}
	}
	c.confAt, c.dutyAt = c.now, c.now
	c.joinReply(p.conn, JoinReply{ID: r.ID, Fault: fault})
}

func (c *Core) joinReply(conn uint64, r JoinReply) {
	r.ClusterID = c.cfg.ClusterID
	if r.Leader == 0 {
		r.Leader = c.rep.Leader()
	}
	st := c.rep.State()
	for i := range st.Servers {
		s := &st.Servers[i]
		r.Servers = append(r.Servers, cells.InitialServer{ID: s.ID, Name: s.Name, Cell: s.Cell, Role: s.Role, Addrs: s.Addrs})
	}
	b, err := EncodeJoinReply(r)
	if err != nil {
		r.Servers = nil
		b, _ = EncodeJoinReply(r)
	}
	c.out.Messages = append(c.out.Messages, Message{Conn: conn, Bytes: b})
}
