package gang

import (
	"math/bits"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// offset estimates how far another server's clock is ahead of the conductor's, from slices and the reports that answer them, as NTP does
// (RFC 5905, section 8): the best of the recent exchanges is the one with the shortest round trip.
type offset struct {
	known     bool
	ahead     ident.Micros
	roundTrip ident.Micros
	at        ident.Micros
}

// learn takes in one exchange: sent and now are on the conductor's clock, received and answered on the other one.
func (o *offset) learn(now, sent, received, answered ident.Micros) {
	roundTrip := (now - sent) - (answered - received)
	if roundTrip < 0 {
		return // nonsense, or a clock that was set
	}
	const fade = 1000 // an old exchange counts as one that is slower by a thousandth of its age
	if o.known && roundTrip > o.roundTrip+(now-o.at)/fade {
		return
	}
	ahead := ((received - sent) + (answered - now)) / 2
	if ahead <= roundTrip/2 && -ahead <= roundTrip/2 {
		ahead = 0 // within the error: most likely the same clock
	}
	*o = offset{known: true, ahead: ahead, roundTrip: roundTrip, at: now}
}

// there gives the other clock's time; before anything is known, the past, which means at once.
func (o *offset) there(t ident.Micros) ident.Micros {
	if !o.known {
		return 0
	}
	return t + o.ahead
}

// here is the reverse of there.
func (o *offset) here(t ident.Micros) ident.Micros { return t - o.ahead }

// Histogram counts spans of time, in steps that grow: exact below 16 us, then eight to each doubling.
type Histogram struct {
	Count uint64
	steps [160]uint64
}

// Add counts one span.
func (h *Histogram) Add(t ident.Micros) {
	h.Count++
	h.steps[step(max(0, t))]++
}

func step(t ident.Micros) int {
	if t < 16 {
		return int(t)
	}
	log := bits.Len64(uint64(t)) // 5 and up
	i := (log-5)*8 + 16 + int(t>>(log-4))&7
	return min(i, 159)
}

// top is the longest span that a step counts.
func top(i int) ident.Micros {
	if i < 16 {
		return ident.Micros(i)
	}
	log, sub := (i-16)/8+5, (i-16)%8
	return ident.Micros(8+sub+1)<<(log-4) - 1
}

// Permille returns a bound that share thousandths of the spans do not exceed, 0 if there are none.
func (h *Histogram) Permille(share uint64) ident.Micros {
	need := (h.Count*share + 999) / 1000
	sum := uint64(0)
	for i, n := range h.steps {
		if sum += n; sum >= need && sum > 0 {
			return top(i)
		}
	}
	return 0
}

// noteStart collects when the parts of a gang on several servers were let go in a slice.
func (c *Core) noteStart(server int, s wire.GangStart) {
	g := c.lead.gang(s.VM)
	if g == nil || len(g.parts) < 2 || s.Last < s.First {
		return
	}
	clock := &c.lead.servers[server].clock
	first, last := clock.here(s.First), clock.here(s.Last)
	i := slices.IndexFunc(g.starts, func(x start) bool { return x.number == s.Number })
	if i < 0 {
		if len(g.starts) >= startsMost {
			g.starts = slices.Delete(g.starts, 0, 1)
		}
		g.starts = append(g.starts, start{s.Number, 0, first, last})
		i = len(g.starts) - 1
	}
	x := &g.starts[i]
	x.first, x.last = min(x.first, first), max(x.last, last)
	if x.parts++; x.parts == len(g.parts) {
		c.count.StartSkew.Add(x.last - x.first)
		g.starts = slices.Delete(g.starts, i, i+1)
	}
}
