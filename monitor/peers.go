package monitor

import (
	"encoding/json"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// peerMessage takes in a message from another core. Whatever it holds, it is at worst refused and counted.
func (c *Core) peerMessage(e PeerMessage) {
	m, err := decodeMessage(e.Bytes)
	switch {
	case err != nil:
		c.counters.RefusedGarbage++
		return
	case m.cluster != c.cfg.ClusterID:
		c.counters.RefusedCluster++
		return
	case m.sender == 0 || m.sender == c.cfg.Server || e.From != 0 && e.From != m.sender:
		c.counters.RefusedSender++
		return
	}
	switch m.kind {
	case kindRaft:
		if err := c.rep.StepRaft(c.now, m.sender, m.body); err != nil {
			c.counters.RefusedGarbage++
		}
	case kindForward:
		c.forward(&m)
	case kindHello:
		c.answerHello(&m)
	case kindForgotten:
		c.forgotten(&m)
	case kindHint, kindGone, kindCheck:
		if c.fromView(&m) {
			c.aboutServer(&m)
		}
	}
}

// fromView tells whether a message comes from a member of the view, under the incarnation on record.
func (c *Core) fromView(m *message) bool {
	if c.rep.State().View.Has(m.sender, m.incarnation) {
		return true
	}
	c.counters.RefusedIncarnation++
	return false
}

func (c *Core) aboutServer(m *message) {
	switch m.kind {
	case kindHint:
		var b hintBody
		if json.Unmarshal(m.body, &b) != nil {
			c.counters.RefusedGarbage++
			return
		}
		if s := c.liveServer(b.Server); s != nil && s.Incarnation == b.Incarnation {
			c.suspect(s, b.Source)
		}
	case kindGone:
		var b goneBody
		if json.Unmarshal(m.body, &b) != nil {
			c.counters.RefusedGarbage++
			return
		}
		c.proof(b, false)
	case kindCheck:
		var b checkBody
		if json.Unmarshal(m.body, &b) != nil {
			c.counters.RefusedGarbage++
			return
		}
		if s := c.liveServer(b.Server); s != nil && s.Incarnation == b.Incarnation {
			c.askForProof(s)
		}
	}
}

func (c *Core) liveServer(id ident.ServerID) *cells.Server {
	if s := c.rep.State().Server(id); s != nil && s.State == cells.ServerLive {
		return s
	}
	return nil
}

// answerHello tells a server that was removed that it was: only one with a current state can.
func (c *Core) answerHello(m *message) {
	if c.holdsLease() && c.rep.State().Server(m.sender) == nil {
		c.send(m.sender, kindForgotten, nil)
	}
}

func (c *Core) forgotten(m *message) {
	if c.phase == PhaseActing || c.rep.State().Server(m.sender) == nil {
		c.counters.RefusedSender++
		return
	}
	c.act(Forgotten{By: m.sender})
}

func encodeBody(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("monitor: " + err.Error()) // plain structs: cannot fail
	}
	return b
}
