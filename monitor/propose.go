package monitor

import (
	"slices"
	"strconv"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// proposal is a command on its way into the log. It is sent to the leader again and again until it comes back applied; the state machine
// sees to it that it is applied once.
type proposal struct {
	id       cells.RequestID
	key      string // of this server's own proposals: at most one is open for each
	external bool
	ext      uint64       // Propose.ID
	join     bool         // conn waits for the answer
	conn     uint64       // JoinRequested.Conn
	deadline ident.Micros // 0: none
	data     []byte
	nextSend ident.Micros
	wait     ident.Micros // before the next sending
	sentTerm uint64       // while leading: in the log of this term already
}

// leaderResend is after how long a leader puts a proposal of its own into the log once more, in case the entry was lost.
const leaderResend = 5 * ident.Second

// maxWait bounds the wait between two sendings.
const maxWait = 2 * ident.Second

func (c *Core) newProposal(cmd cells.Command) (*proposal, *cells.Fault) {
	c.nextReq++
	cmd.Version = cells.CommandVersion
	cmd.Request = cells.RequestID(c.cfg.Info.Process.Boot + "-" + strconv.FormatUint(c.nextReq, 36))
	cmd.By = c.cfg.Server
	cmd.UnixMs = c.unixMs()
	data, err := cells.EncodeCommand(&cmd)
	if err != nil {
		return nil, &cells.Fault{Code: cells.CodeInvalid, Text: err.Error()}
	}
	c.counters.Proposals++
	return &proposal{id: cmd.Request, data: data, nextSend: c.now, wait: c.t.Retry}, nil
}

func (c *Core) unixMs() int64 { return c.cfg.UnixMsAtZero + int64(c.now/ident.Millisecond) }

// proposeFor takes a proposal from the shell.
func (c *Core) proposeFor(e Propose) {
	if e.Command.Exclude != nil || e.Command.Admit != nil || e.Command.Resume != nil {
		c.respond(e.ID, nil, &cells.Fault{Code: cells.CodeInvalid, Text: "this command is for the monitor itself to propose"})
		return
	}
	p, fault := c.newProposal(e.Command)
	if fault != nil {
		c.respond(e.ID, nil, fault)
		return
	}
	p.external, p.ext, p.deadline = true, e.ID, e.Deadline
	c.proposals = append(c.proposals, p)
}

// propose proposes something for this server itself, unless one with this key is still open.
func (c *Core) propose(key string, cmd cells.Command) *proposal {
	if c.pending(key) {
		return nil
	}
	p, fault := c.newProposal(cmd)
	if fault != nil {
		return nil // our own commands are small
	}
	p.key = key
	c.proposals = append(c.proposals, p)
	return p
}

func (c *Core) pending(key string) bool {
	return slices.ContainsFunc(c.proposals, func(p *proposal) bool { return p.key == key && key != "" })
}

func (c *Core) respond(id uint64, result []byte, fault *cells.Fault) {
	c.out.Responses = append(c.out.Responses, Response{ID: id, Result: result, Fault: fault})
}

// finish ends a proposal that was applied.
func (c *Core) finish(p *proposal, result []byte, fault *cells.Fault) {
	c.drop(p)
	switch {
	case p.external:
		c.respond(p.ext, result, fault)
	case p.join:
		c.joinDecided(p, result, fault)
	}
	c.dirty = true
}

func (c *Core) drop(p *proposal) {
	c.proposals = slices.DeleteFunc(c.proposals, func(q *proposal) bool { return q == p })
}

// resend sends what is due, and gives up what is past its deadline.
func (c *Core) resend() {
	for _, p := range slices.Clone(c.proposals) {
		if p.deadline != 0 && c.now >= p.deadline {
			c.giveUp(p)
			continue
		}
		if c.now < p.nextSend {
			continue
		}
		c.sendProposal(p)
	}
}

func (c *Core) sendProposal(p *proposal) {
	if p.sentTerm != 0 || p.wait > c.t.Retry {
		c.counters.Resent++
	}
	switch {
	case c.rep.Leading():
		p.nextSend = c.now + c.t.Retry
		if err := c.rep.Propose(p.data); err == nil {
			p.sentTerm, p.nextSend = c.rep.Term(), c.now+leaderResend
		}
	case c.rep.Leader() != 0:
		c.send(c.rep.Leader(), kindForward, p.data)
		p.nextSend = c.now + p.wait
		p.wait = min(2*p.wait, maxWait)
	default:
		p.nextSend = c.now + c.t.Retry // a new leader is noticed at once: see leaderChanged
	}
}

func (c *Core) giveUp(p *proposal) {
	c.drop(p)
	fault := &cells.Fault{Code: cells.CodeDeadline, Text: "the deadline passed before the command was agreed on; it may still be applied later"}
	if c.now >= c.t.Until(c.lastRead) || c.rep.Leader() == 0 {
		fault = &cells.Fault{Code: cells.CodeNoQuorum,
			Text: "no quorum: this server cannot reach a majority of the voters; the command may still be applied when it can"}
	}
	switch {
	case p.external:
		c.respond(p.ext, nil, fault)
	case p.join:
		c.joinReply(p.conn, JoinReply{Fault: fault})
	}
}

// forward takes a command from another server, to propose it here if this one leads.
func (c *Core) forward(m *message) {
	cmd, fault := cells.DecodeCommand(m.body)
	if fault != nil || cmd.By != m.sender || cmd.Request == "" || cmd.Exclude != nil || cmd.AddServer != nil {
		c.counters.RefusedGarbage++
		return
	}
	own := cmd.Admit != nil && cmd.Admit.Server == m.sender || cmd.Resume != nil && cmd.Resume.Server == m.sender
	if !own && !c.fromView(m) {
		return
	}
	if !c.rep.Leading() || slices.Contains(c.forwarded, cmd.Request) {
		return
	}
	if _, _, ok := c.rep.FSM().Outcome(cmd.Request); ok {
		return // applied: its proposer will see it in the log
	}
	if err := c.rep.Propose(m.body); err != nil {
		return // it will be sent again
	}
	if c.forwarded = append(c.forwarded, cmd.Request); len(c.forwarded) > 512 {
		c.forwarded = slices.Clone(c.forwarded[256:])
	}
}
