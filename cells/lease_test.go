package cells

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// The argument of lease.go in numbers: clocks of any offset, that differ in speed by up to a tenth; a request sent at t0, taken in by the
// leader at t1 or later. Whenever the leader may exclude the server, its lease has run out on its own clock. The same for a leader that
// never heard the request and was elected after it.
func TestNoLeaseOutlivesItsExclusion(t *testing.T) {
	timing := DefaultTiming()
	rapid.Check(t, func(t *rapid.T) {
		clock := func(name string) func(real int64) ident.Micros {
			offset := rapid.Int64Range(0, 1e12).Draw(t, name+" offset")
			speed := rapid.Int64Range(1000, 1100).Draw(t, name+" speed") // thousandths
			return func(real int64) ident.Micros { return ident.Micros(offset + real*speed/1000) }
		}
		server, leader := clock("server"), clock("leader")
		t0 := rapid.Int64Range(0, 1e9).Draw(t, "t0")
		t1 := t0 + rapid.Int64Range(0, 5e6).Draw(t, "delay")
		until := timing.Until(server(t0))
		after := timing.ExcludeAfter(leader(t1), 0)
		if rapid.Bool().Draw(t, "new leader") {
			after = timing.ExcludeAfter(0, leader(t1))
		}
		// The earliest real time at which the leader may act.
		real := t1
		for step := int64(1 << 22); step > 0; step /= 2 {
			for leader(real+step) <= after {
				real += step
			}
		}
		real++
		if left := until - server(real); left > 1 { // one microsecond for rounding
			t.Fatalf("the lease runs for another %d us", left)
		}
	})
}

func TestContacts(t *testing.T) {
	timing := DefaultTiming()
	var c Contacts
	c.Reset(1000)
	if got := c.ExcludeAfter(timing, 1); got != 1000+timing.LeaseLength+timing.LeaseMargin {
		t.Errorf("a new leader may exclude after %d", got)
	}
	if !c.Heard(5000, 1) || c.LastHeard(1) != 5000 || c.LastHeard(2) != 1000 {
		t.Errorf("heard at %d and %d", c.LastHeard(1), c.LastHeard(2))
	}
	c.Refuse(1)
	if c.Heard(9000, 1) || c.LastHeard(1) != 5000 || !c.Refused(1) {
		t.Error("a request of a server that is being excluded was taken in")
	}
	c.Allow(1)
	if !c.Heard(9000, 1) || c.LastHeard(1) != 9000 {
		t.Error("after the exclusion was applied, requests are not taken in again")
	}
	c.Refuse(2)
	c.Regained(15000)
	if c.LastHeard(1) != 15000 {
		t.Error("silence without a quorum counts")
	}
	if c.Heard(15500, 2) {
		t.Error("a leader that is back in touch with a quorum takes in requests of a server whose exclusion may still be committed")
	}
	c.Reset(20000)
	if c.Refused(2) || c.LastHeard(1) != 20000 {
		t.Error("a new term knows of the former one")
	}
}
