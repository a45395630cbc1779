package monitor

import (
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// openRead is a request for confirmation by a quorum that has not come through.
type openRead struct {
	seq    uint64
	sentAt ident.Micros
}

// maxOpenReads bounds the requests that are remembered. Older ones would give no lease any more.
const maxOpenReads = 32

// renew asks a quorum for confirmation when it is time. Without contact for long it asks less often: a leader without a quorum keeps
// every request that it ever made.
func (c *Core) renew() {
	if c.now < c.nextReadAt {
		return
	}
	every := c.t.LeaseRenew
	if c.now-c.lastRead > 4*c.t.LeaseLength {
		every *= 5
	}
	c.nextReadAt = c.now + every
	if c.rep.Leader() == 0 {
		c.hello()
		return
	}
	c.readSeq++
	if len(c.reads) == maxOpenReads {
		c.reads = append(c.reads[:0], c.reads[1:]...)
	}
	c.reads = append(c.reads, openRead{seq: c.readSeq, sentAt: c.now})
	// The boot id keeps the answer to a former process from being taken for ours.
	c.rep.ReadIndex(c.now, c.cfg.Info.Process.Boot+"/"+strconv.FormatUint(c.readSeq, 10))
}

// readDone: a quorum confirmed a request, and the state here is at least as new as it.
func (c *Core) readDone(context string) {
	boot, seq, ok := strings.Cut(context, "/")
	n, err := strconv.ParseUint(seq, 10, 64)
	if !ok || err != nil || boot != c.cfg.Info.Process.Boot {
		return
	}
	for i, r := range c.reads {
		if r.seq != n {
			continue
		}
		c.reads = append(c.reads[:0], c.reads[i+1:]...) // earlier ones bring nothing that this one does not
		c.rep.Confirmed(c.now, r.sentAt)
		c.lastRead = max(c.lastRead, r.sentAt)
		c.confirmed = true
		c.settlePhase()
		c.grant(r.sentAt)
		return
	}
}

// grant gives this server a lease counted from the sending of the request, if the view has it.
func (c *Core) grant(sentAt ident.Micros) {
	if c.phase != PhaseActing || sentAt < c.actingSince {
		return
	}
	until := c.t.Until(sentAt)
	switch c.cfg.Canary {
	case cells.CanaryLeaseFromReply:
		until = c.t.Until(c.now)
	case cells.CanaryLeaseIgnored:
		until = 1 << 60
	}
	if until <= c.leaseUntil {
		return
	}
	if c.leaseUntil <= c.now {
		c.dirty = true // what had to wait for a lease
	}
	c.leaseUntil = until
	c.counters.Leases++
	c.act(Lease{Incarnation: c.incarnation, Until: until})
}

// holdsLease tells whether this server may act now.
func (c *Core) holdsLease() bool { return c.phase == PhaseActing && c.now < c.leaseUntil }
