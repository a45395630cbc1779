package monitor

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// suspect is a live server that may be gone.
type suspect struct {
	server      ident.ServerID
	incarnation ident.Incarnation
	boot        string
	since       ident.Micros // first suspected
	proofAt     ident.Micros // 0 without proof
	origin      bool         // the proof is this server's own: it tells the others
	detail      string
	toldAt      ident.Micros
	checkedAt   ident.Micros
}

// checkEvery is how often proof is asked for.
const checkEvery = 200 * ident.Millisecond

// hint takes in a hint from this server's own shell.
func (c *Core) hint(id ident.ServerID, source string) {
	s := c.liveServer(id)
	if s == nil || id == c.cfg.Server {
		return
	}
	c.suspect(s, source)
	if l := c.rep.Leader(); l != id {
		c.send(l, kindHint, encodeBody(hintBody{Server: id, Incarnation: s.Incarnation, Source: source}))
	}
}

// suspect notes that a live server may be gone, and looks for proof.
func (c *Core) suspect(s *cells.Server, source string) {
	if s.ID == c.cfg.Server {
		return
	}
	x := c.suspectOf(s)
	if x.detail == "" {
		x.detail = source
	}
	c.rep.Suspect(c.now, s.ID, false)
	c.askForProof(s)
}

func (c *Core) suspectOf(s *cells.Server) *suspect {
	i, ok := slices.BinarySearchFunc(c.suspects, s.ID, func(x suspect, id ident.ServerID) int {
		switch {
		case x.server < id:
			return -1
		case x.server > id:
			return 1
		}
		return 0
	})
	fresh := suspect{server: s.ID, incarnation: s.Incarnation, boot: s.Process.Boot, since: c.now}
	if !ok {
		c.suspects = slices.Insert(c.suspects, i, fresh)
	} else if x := &c.suspects[i]; x.incarnation != s.Incarnation || x.boot != s.Process.Boot {
		*x = fresh
	}
	return &c.suspects[i]
}

// askForProof has someone on the suspect's host look whether its processes are gone.
func (c *Core) askForProof(s *cells.Server) {
	x := c.suspectOf(s)
	if x.proofAt != 0 || x.checkedAt != 0 && c.now-x.checkedAt < checkEvery {
		return
	}
	x.checkedAt = c.now
	if s.HostID == c.cfg.Info.HostID {
		c.act(SuspectCheck{Server: s.ID, Incarnation: s.Incarnation, Process: s.Process, HostID: s.HostID})
		return
	}
	st := c.rep.State()
	for i := range st.Servers {
		if o := &st.Servers[i]; o.State == cells.ServerLive && o.HostID == s.HostID && o.ID != s.ID {
			c.send(o.ID, kindCheck, encodeBody(checkBody{Server: s.ID, Incarnation: s.Incarnation}))
		}
	}
}

// proof takes in proof that a process and its workers are gone. It is worth something only if that process is the one on record.
func (c *Core) proof(b goneBody, origin bool) {
	s := c.liveServer(b.Server)
	if s == nil || b.Server == c.cfg.Server {
		return
	}
	if (s.Incarnation != b.Incarnation || s.Process.Boot != b.Boot) && c.cfg.Canary != cells.CanaryProofAnyProcess {
		return
	}
	x := c.suspectOf(s)
	if x.proofAt == 0 {
		x.proofAt, x.detail = c.now, b.Detail
		c.dutyAt = c.now
	}
	x.origin = x.origin || origin
	c.rep.Suspect(c.now, s.ID, true)
	c.tell(x)
	// What took this process may have taken the others of its cell.
	st := c.rep.State()
	for i := range st.Servers {
		if o := &st.Servers[i]; o.Cell == s.Cell && s.Cell != "" && o.State == cells.ServerLive && o.ID != s.ID && o.ID != c.cfg.Server {
			c.askForProof(o)
		}
	}
}

// tell passes this server's own proof on to all others, again until the view changes.
func (c *Core) tell(x *suspect) {
	if !x.origin || x.toldAt != 0 && c.now-x.toldAt < checkEvery {
		return
	}
	x.toldAt = c.now
	body := encodeBody(goneBody{Server: x.server, Incarnation: x.incarnation, Boot: x.boot, Detail: x.detail})
	for _, m := range c.rep.State().View.Live {
		if m.Server != x.server {
			c.send(m.Server, kindGone, body)
		}
	}
}

// tendSuspects drops those that the record has gone past, and repeats what may have been lost.
func (c *Core) tendSuspects() {
	c.suspects = slices.DeleteFunc(c.suspects, func(x suspect) bool {
		s := c.liveServer(x.server)
		gone := s == nil || s.Incarnation != x.incarnation || s.Process.Boot != x.boot
		// A hint that nothing came of is forgotten.
		return gone || x.proofAt == 0 && c.now-x.since > 4*c.t.LeaseLength
	})
	for i := range c.suspects {
		x := &c.suspects[i]
		if x.proofAt != 0 {
			c.tell(x)
			c.rep.Suspect(c.now, x.server, true)
		}
	}
}

func (x *suspect) cause() string {
	if x.proofAt != 0 {
		return fmt.Sprintf("its processes are gone (%s)", x.detail)
	}
	return "its lease lapsed"
}
