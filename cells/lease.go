package cells

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// A lease lets a server act for LeaseLength. It is asked for by a Raft ReadIndex request, which a leader answers only after a quorum
// confirmed, later than the request was sent, that it still led. So, with
//
//	t0  the server sends the request            (its own clock)
//	t1  the leader takes the request in         (the leader's clock), t1 after t0
//	t2  a quorum has confirmed the leader       t2 after t1
//
// the lease runs until t0 + LeaseLength. A leader excludes a server only after t1 + LeaseLength + LeaseMargin, t1 being the last
// request it took in. Another leader that does not know t1 was elected after t1, for its voters had not yet turned to it at t2; it waits
// from its election on instead. LeaseMargin covers clocks that run at different speeds.

// Until is the end of the lease that was asked for at sentAt.
func (t Timing) Until(sentAt ident.Micros) ident.Micros { return sentAt + t.LeaseLength }

// ExcludeAfter is the time after which a leader that was elected at electedAt, and took a server's last request in at lastRead, may
// exclude that server without proof.
func (t Timing) ExcludeAfter(lastRead, electedAt ident.Micros) ident.Micros {
	return max(lastRead, electedAt) + t.LeaseLength + t.LeaseMargin
}

// Contacts is what a leader knows of the leases of others: when it took in each server's last request, in its present term.
type Contacts struct {
	since ident.Micros // elected, or back in touch with a quorum
	list  []contact    // by server
}

type contact struct {
	server  ident.ServerID
	last    ident.Micros // 0 if none in this term
	refused bool         // its exclusion was proposed: no more requests are taken in
}

// Regained counts the others' silence anew, after a time without a quorum. Refusals stand: an exclusion that was proposed in this term
// may still be committed, and a lease granted until then would outlive it.
func (c *Contacts) Regained(now ident.Micros) { c.since = now }

// Reset forgets everything, at the begin of a term of leadership.
func (c *Contacts) Reset(now ident.Micros) {
	c.since = now
	c.list = c.list[:0]
}

func (c *Contacts) of(s ident.ServerID) *contact {
	i, ok := slices.BinarySearchFunc(c.list, s, func(x contact, s ident.ServerID) int { return compareIDs(x.server, s) })
	if !ok {
		c.list = slices.Insert(c.list, i, contact{server: s})
	}
	return &c.list[i]
}

// Heard notes a request that is taken in. It returns false if the server's requests are refused.
func (c *Contacts) Heard(now ident.Micros, s ident.ServerID) bool {
	x := c.of(s)
	if x.refused {
		return false
	}
	x.last = now
	return true
}

// Refuse stops taking in the server's requests: its exclusion is being proposed.
func (c *Contacts) Refuse(s ident.ServerID) { c.of(s).refused = true }

// Refused tells whether the server's requests are refused.
func (c *Contacts) Refused(s ident.ServerID) bool { return c.of(s).refused }

// Allow takes the server's requests in again: its exclusion was applied, or came to nothing.
func (c *Contacts) Allow(s ident.ServerID) { c.of(s).refused = false }

// LastHeard is when the server's last request was taken in, or the begin of the term.
func (c *Contacts) LastHeard(s ident.ServerID) ident.Micros { return max(c.of(s).last, c.since) }

// ExcludeAfter is the time after which the server may be excluded without proof.
func (c *Contacts) ExcludeAfter(t Timing, s ident.ServerID) ident.Micros {
	return t.ExcludeAfter(c.of(s).last, c.since)
}
