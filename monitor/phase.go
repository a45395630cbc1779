package monitor

import (
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// settlePhase moves this server to where its record says it should stand. See the package comment for the picture.
func (c *Core) settlePhase() {
	for range 4 { // at most one turn through all phases
		before := c.phase
		switch c.phase {
		case PhaseCatchingUp:
			c.catchUp()
		case PhaseFencing:
			c.fence()
		case PhaseAdmitting:
			c.admit()
		case PhaseActing:
			c.stay()
		}
		if c.phase == before {
			return
		}
	}
}

// mine tells whether a record is of this very process in an incarnation that it may still run under.
func (c *Core) mine(s *cells.Server) bool {
	if s == nil || s.State != cells.ServerLive {
		return false
	}
	if c.cfg.Canary == cells.CanaryIncarnation {
		return true
	}
	return s.Process.Boot == c.cfg.Info.Process.Boot && s.Incarnation > c.killedUpTo
}

// catchUp waits until the state here is known to be current, then goes on with the workers that are there, or fences.
func (c *Core) catchUp() {
	if !c.confirmed || !c.adopted {
		return
	}
	s := c.self()
	switch {
	case s == nil: // not added yet, as far as is known here
	case c.mine(s):
		c.begin(s)
	case s.State == cells.ServerLive && c.canResume(s):
		if c.now >= c.retryAt && !c.pending("resume") {
			c.retryAt = c.now + c.t.Retry
			c.propose("resume", cells.Command{Resume: &cells.Resume{
				Server: s.ID, BaseIncarnation: s.Incarnation, BaseBoot: s.Process.Boot, Info: c.cfg.Info}})
		}
	default:
		c.startFencing()
	}
}

// canResume tells whether enough of a live incarnation is left to go on as it: a worker of it, or nothing that it should have.
func (c *Core) canResume(s *cells.Server) bool {
	for _, w := range c.workers {
		if w.inc == s.Incarnation && !w.gone {
			return true
		}
	}
	st := c.rep.State()
	for i := range st.VMs {
		if st.VMs[i].State.Active() && st.VMs[i].PartOn(s.ID, s.Incarnation) != nil {
			return false
		}
	}
	return true
}

// begin lets this server act as the incarnation on record.
func (c *Core) begin(s *cells.Server) {
	c.phase, c.incarnation, c.actingSince, c.leaseUntil = PhaseActing, s.Incarnation, c.now, 0
	c.nextReadAt = c.now // for a first lease
	c.dirty = true
}

// startFencing has every worker killed that an earlier incarnation may have left.
func (c *Core) startFencing() {
	upTo := c.incarnation
	if s := c.self(); s != nil {
		upTo = max(upTo, s.Incarnation)
	}
	for _, w := range c.workers {
		upTo = max(upTo, w.inc)
	}
	c.phase, c.incarnation, c.leaseUntil = PhaseFencing, 0, 0
	c.killAsked, c.killDone = upTo, false
	c.act(KillWorkers{UpTo: upTo})
}

func (c *Core) fence() {
	if c.killDone || c.cfg.Canary == cells.CanaryFenceSkipped {
		c.phase = PhaseAdmitting
		c.retryAt = 0
	}
}

func (c *Core) workersKilled(upTo ident.Incarnation) {
	c.killedUpTo = max(c.killedUpTo, upTo)
	kept := c.workers[:0]
	for _, w := range c.workers {
		if w.inc > upTo {
			kept = append(kept, w)
		}
	}
	c.workers = kept
	c.dirty = true
	if upTo >= c.killAsked {
		c.killDone = true
	}
}

// admit asks to be taken into the view as a new incarnation.
func (c *Core) admit() {
	s := c.self()
	switch {
	case s == nil:
	case c.mine(s):
		c.begin(s)
	case s.Incarnation > c.killedUpTo && c.cfg.Canary != cells.CanaryFenceSkipped:
		// It was live in between as an incarnation that the workers were not killed for.
		c.startFencing()
	case c.now >= c.retryAt && !c.pending("admit"):
		c.retryAt = c.now + c.t.Retry
		c.propose("admit", cells.Command{Admit: &cells.Admit{
			Server: s.ID, BaseIncarnation: s.Incarnation, BaseBoot: s.Process.Boot, Info: c.cfg.Info}})
	}
}

// stay notices an exclusion.
func (c *Core) stay() {
	s := c.self()
	if c.mine(s) && (s.Incarnation == c.incarnation || c.cfg.Canary == cells.CanaryIncarnation) {
		return
	}
	c.startFencing()
}

// hello asks around whether this server still belongs to the cluster, when no leader speaks to it.
func (c *Core) hello() {
	if c.now < c.helloAt {
		return
	}
	c.helloAt = c.now + c.t.LeaseLength
	st := c.rep.State()
	for i := range st.Servers {
		c.send(st.Servers[i].ID, kindHello, nil)
	}
}
