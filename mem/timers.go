package mem

import "github.com/cellvisor/cellvisor/ident"

// timer is when something unanswered is sent again, and when somebody is suspected because of it.
type timer struct {
	retryAt, suspectAt ident.Micros
	wait               ident.Micros
}

func (c *Core) startTimer(t *timer) {
	*t = timer{retryAt: c.now + c.cfg.Retry, suspectAt: c.now + c.cfg.Deadline, wait: c.cfg.Retry}
	c.wake = min(c.wake, t.retryAt, t.suspectAt)
}

// expire tells what is due of t and sets the next time for it.
func (c *Core) expire(t *timer) (retry, suspect bool) {
	if retry = c.now >= t.retryAt; retry {
		t.wait = min(2*t.wait, c.cfg.RetryMax)
		t.retryAt = c.now + t.wait
	}
	if suspect = c.now >= t.suspectAt; suspect {
		t.suspectAt = c.now + c.cfg.Deadline
	}
	c.wake = min(c.wake, t.retryAt, t.suspectAt)
	return retry, suspect
}

// NextDeadline returns when the core wants an EventTick, if at all.
func (c *Core) NextDeadline() (ident.Micros, bool) {
	at := c.wake
	if w := &c.windows; c.deferred.n > 0 && w.head != w.tail {
		at = min(at, w.ring[w.head&uint32(len(w.ring)-1)].until)
	}
	return at, at != never
}

// fireTimers does what is due and finds the next time.
func (c *Core) fireTimers() {
	c.wake = never
	c.requests.each(func(page ident.PageNo, r *request) bool {
		retry, suspect := c.expire(&r.timer)
		if retry && r.reqID != 0 {
			c.counters.Retransmits++
			c.sendRequest(page, r)
		}
		if suspect {
			c.suspectFor(page, r)
		}
		return true
	})
	c.transactions.each(func(_ ident.PageNo, t *transaction) bool {
		retry, suspect := c.expire(&t.timer)
		if retry && c.canary != canaryDoneOnce {
			c.counters.Retransmits++
			c.sendTransaction(t)
		}
		if suspect {
			c.suspect(t.from)
			c.suspect(t.first.To)
		}
		return true
	})
	c.retryReports()
	c.retryHomes()
}

// suspectFor suspects the parts whose acknowledgements are missing, or if the contents are, the directory.
func (c *Core) suspectFor(page ident.PageNo, r *request) {
	if !r.have {
		if c.epoch != 0 {
			c.suspect(c.Directory(page))
		}
		return
	}
	for s := r.need &^ r.got; s != 0; s = s.Clear(s.First()) {
		c.suspect(s.First())
	}
}

func (c *Core) suspect(p ident.Part) {
	if p != c.cfg.Self {
		c.effects = append(c.effects, Effect{Kind: EffectSuspect, To: p})
	}
}

// askAgain sends every request that waits for a directory shard of dirs under a new number. Its region may have gone elsewhere already.
func (c *Core) askAgain(dirs ident.PartSet) {
	c.requests.each(func(page ident.PageNo, r *request) bool {
		if dirs.Has(c.anchor(c.regionOf(page))) && r.want != accessNone {
			c.ask(page, r)
		}
		return true
	})
}
