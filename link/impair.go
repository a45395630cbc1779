package link

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// Impairment is what a drill does to the connections with one server. Each end does it to what it sends.
type Impairment struct {
	Cut           bool          // nothing goes through: it waits, as in TCP while a cable is out
	Delay, Jitter time.Duration // each message arrives later by Delay and up to Jitter more; order stays
	LossPermille  int           // so many messages of a thousand need to be sent again, which takes Resend and holds up those behind
}

// Resend is how long TCP waits before it sends a lost segment again: Linux's least retransmission time-out.
const Resend = 200 * time.Millisecond

// impaired is an impairment in force, with its luck.
type impaired struct {
	Impairment

	mu   sync.Mutex
	rng  *rand.Rand // protected by mu
	last time.Time  // protected by mu; when the message before this one is due
}

func newImpaired(im Impairment, seed uint64) *impaired {
	return &impaired{Impairment: im, rng: rand.New(rand.NewPCG(seed, 0))}
}

// due says when a message that is sent now goes out. Messages never overtake each other.
func (m *impaired) due(now time.Time) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := now.Add(m.Delay)
	if m.Jitter > 0 {
		at = at.Add(time.Duration(m.rng.Int64N(int64(m.Jitter))))
	}
	if m.LossPermille > 0 && m.rng.IntN(1000) < m.LossPermille {
		at = at.Add(Resend)
	}
	if at.Before(m.last) {
		at = m.last
	}
	m.last = at
	return at
}

// Impair sets what happens to the connections with other servers, in place of what was set before; none mends all. For drills.
func (p *Peers) Impair(by map[ident.ServerID]Impairment, seed uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.cuts)
	p.impaired = make(map[ident.ServerID]*impaired)
	for id, im := range by {
		if im.Cut {
			p.cuts[id] = struct{}{} // envelopes may be lost: those that are held up would be out of date
		}
		if im.Delay > 0 || im.Jitter > 0 || im.LossPermille > 0 {
			p.impaired[id] = newImpaired(im, seed^uint64(id))
		}
	}
	close(p.heal)
	p.heal = make(chan struct{})
}

// impairment returns what is done to what is sent to a peer, nil for nothing, and a channel that closes when that changes.
func (p *Peers) impairment(id ident.ServerID) (*impaired, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.impaired[id], p.heal
}

// late holds messages up as the impairment of the link wants; it returns early when the peer is removed or the impairment changes.
func (q *peer) late(queued time.Time, broken <-chan error) error {
	m, heal := q.plane.impairment(q.id)
	if m == nil {
		return nil
	}
	left := time.Until(m.due(queued))
	if left <= 0 {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-heal:
	case <-q.ctx.Done():
	case err := <-broken:
		return err
	}
	return nil
}

// lateFrame is a frame of the page plane that is held up.
type lateFrame struct {
	bytes []byte
	due   time.Time
}

// Impair sets what happens to the connections with parts on other servers, in place of what was set before; none mends all. It holds for members
// that come later, too. For drills.
func (p *Pages) Impair(by map[ident.ServerID]Impairment, seed uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.impairments = make(map[ident.ServerID]*impaired)
	for id, im := range by {
		p.impairments[id] = newImpaired(im, seed^uint64(id))
	}
	p.impairMembers()
	p.noteChange()
}

// impairMembers looks up the impairment of each member's server. The caller holds mu.
func (p *Pages) impairMembers() {
	for part, m := range p.members {
		var im *impaired
		if m != nil {
			im = p.impairments[m.server]
		}
		p.impaired[part].Store(im)
	}
}

// held tells whether no new connection to a part may be made.
func (p *Pages) held(part ident.Part) bool {
	im := p.impaired[part].Load()
	return im != nil && im.Cut
}

// sendLate holds frames up in a line behind those that are held up already. It keeps a copy.
func (c *pageConn) sendLate(buf []byte) bool {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.killed != nil {
		c.plane.count.dropped.Add(1)
		return false
	}
	due := time.Now()
	if im := c.plane.impaired[c.member.part].Load(); im != nil {
		due = im.due(due)
	}
	if c.lateBytes += len(buf); c.lateBytes > c.plane.cfg.OverflowBytes {
		c.plane.count.overflows.Add(1)
		go c.kill(errOverflow)
		return false
	}
	c.late = append(c.late, lateFrame{append([]byte(nil), buf...), due})
	if c.lateCount.Add(1) == 1 && !c.lateRuns {
		c.lateRuns = true
		c.plane.running.Go(c.lateLoop)
	}
	return true
}

// lateLoop lets frames go when they are due and the link is not cut. It ends with the connection, or when nothing is held up.
func (c *pageConn) lateLoop() {
	for {
		c.outMu.Lock()
		if len(c.late) == 0 || c.killed != nil {
			c.lateRuns = false
			c.outMu.Unlock()
			return
		}
		next := c.late[0]
		c.outMu.Unlock()
		if !c.awaitDue(next.due) {
			continue
		}
		if !c.sendNow(next.bytes) {
			continue // it is dead
		}
		c.outMu.Lock()
		if len(c.late) > 0 {
			c.late[0] = lateFrame{}
			c.late, c.lateBytes = c.late[1:], c.lateBytes-len(next.bytes)
		}
		c.lateCount.Add(-1)
		c.outMu.Unlock()
	}
}

// awaitDue waits for a time and for the end of a cut; false means: look again.
func (c *pageConn) awaitDue(due time.Time) bool {
	p := c.plane
	p.mu.Lock()
	changed := p.changed
	p.mu.Unlock()
	im := p.impaired[c.member.part].Load()
	left := time.Until(due)
	switch {
	case im == nil, left <= 0 && !im.Cut:
		return true // mended: what waits goes at once
	case im.Cut:
		left = time.Minute
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-c.dead:
	}
	return false
}
