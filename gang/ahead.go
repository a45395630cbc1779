package gang

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// As long as no vCPU comes or goes, who runs when is settled: a conductor plans further and further ahead, and tells servers and workers many slices at
// once. What it has committed itself to stays what it would be if it planned slice after slice: the slices up to the present one. What was told
// beyond is what follows from there, and is taken back, all of it, by whatever changes something.
//
//	committed --rotate--> present slice --rotate, on a copy--> told ahead: up to half, up to tip
//	report that changes something, view: back to the present slice, nothing is ahead; then a little, then twice as much
const (
	reachLeast = 40 * ident.Millisecond  // how far ahead, at first
	reachMost  = 640 * ident.Millisecond // and at most: half of it is well below SliceLease
	reachAlone = 6 * reachMost           // if all is on one server: it hears of itself. Half of it is just below orderRenew
	aheadMost  = 64                      // slices that are told at once
	aloneMost  = 256                     // the same, if all is on one server: no message to another one holds them
)

// planned is how far ahead of the present slice a conductor has told its servers.
type planned struct {
	tip   *conductor   // as it will be after the last slice that was told; nil: nothing was told beyond the present one
	half  *conductor   // what was tip before that, as long as it lies ahead; nil: nothing
	reach ident.Micros // how far ahead that is to be
	next  ident.Micros // when to go on
	calm  bool         // a slice has been planned since the last change
}

// forget takes back what lies ahead: something has changed. The servers are told with the next slice that they are told.
func (l *conductor) forget() { l.planned = planned{} }

// slice is what is told of one: who runs on each server, from when on.
type slice struct {
	number uint64
	start  ident.Micros
	run    [][]ident.VMID // by server
}

// turn is a slice as one server was told.
type turn struct {
	start ident.Micros
	run   []ident.VMID
}

func (t turn) equal(o turn) bool { return t.start == o.start && slices.Equal(t.run, o.run) }

// slice numbers the present slice.
func (l *conductor) slice(start ident.Micros) slice {
	l.number++
	s := slice{number: l.number, start: start}
	for i := range l.servers {
		s.run = append(s.run, l.runningAt(i))
	}
	return s
}

// due is when the conductor has something to do.
func (l *conductor) due() ident.Micros {
	if l.tip == nil {
		return l.planAt()
	}
	return l.next
}

// commit makes those slices present that have been told and whose time has come, each as if it was planned only then.
func (c *Core) commit(now ident.Micros) {
	l := &c.lead
	if l.half != nil && now >= l.half.set { // it was planned by then, from the present state and nothing else
		if l.half.turned > l.turned {
			l.adopt(l.half, &c.count)
		}
		l.half = nil
	}
	for l.tip != nil && now >= l.planAt() {
		if l.end >= l.tip.end {
			l.tip = nil // all that was told has begun
			return
		}
		c.rotate(l.planAt())
		c.count.Slices++
	}
}

// adopt goes on to a later state that was planned ahead of time.
func (l *conductor) adopt(later *conductor, count *Counters) {
	count.Slices += later.turned - l.turned
	for i := range l.gangs {
		later.gangs[i].starts = l.gangs[i].starts // that is no part of the plan
	}
	l.gangs, l.virtual, l.late, l.turned = later.gangs, later.virtual, later.late, later.turned
	l.start, l.end, l.nominal, l.set = later.start, later.end, later.nominal, later.set
}

// conduct plans what is due: the next slice, if nobody knows of it yet, and those that follow as long as nothing changes.
func (c *Core) conduct(now ident.Micros) {
	l := &c.lead
	c.commit(now)
	var news []slice
	if now >= l.planAt() {
		l.tip = nil
		c.rotate(now)
		c.count.Slices++
		news = append(news, l.slice(l.start))
	}
	if l.calm && l.mayPlan() {
		news = append(news, c.planAhead(now)...)
	}
	l.calm = true
	if len(news) > 0 {
		c.tell(now, news)
	}
}

// mayPlan tells whether all servers can be told of slices to come.
func (l *conductor) mayPlan() bool {
	return !l.stepwise && !slices.ContainsFunc(l.servers, func(p peer) bool { return !p.clock.known || !p.plans })
}

// planAhead goes on from the last slice that was told, on a copy of the present state.
func (c *Core) planAhead(now ident.Micros) (news []slice) {
	present := c.lead
	most, slicesMost := reachMost, aheadMost
	if len(present.servers) == 1 {
		most, slicesMost = reachAlone, aloneMost
	}
	present.reach = min(max(2*present.reach, reachLeast), most)
	from := &present
	if present.tip != nil {
		from, present.half = present.tip, present.tip
	}
	c.lead = *from
	c.lead.gangs = slices.Clone(from.gangs)
	for l := &c.lead; l.end < now+present.reach && len(news) < slicesMost; {
		c.rotate(l.planAt())
		l.number = present.number
		news = append(news, l.slice(l.start))
		present.number = l.number
	}
	tip := c.lead
	tip.planned = planned{}
	c.lead = present
	c.lead.tip = &tip
	c.lead.next = now + (min(tip.planAt(), now+present.reach)-now)/2
	return news
}

// tell sends each server what is new to it. It takes the place of what was told for the same time and later.
func (c *Core) tell(now ident.Micros, news []slice) {
	l := &c.lead
	for i := range l.servers {
		p := &l.servers[i]
		for len(p.plan) > 1 && p.plan[1].start <= min(now, news[0].start) {
			p.plan = p.plan[1:]
		}
		keep := len(p.plan)
		for keep > 0 && p.plan[keep-1].start >= news[0].start {
			keep--
		}
		before := p.plan
		p.plan = slices.Clone(before[:keep])
		s := &wire.GangSlice{Number: news[0].number, Sent: now, Start: p.clock.there(news[0].start), Run: news[0].run[i]}
		for n := range news {
			x := &news[n]
			if len(p.plan) > 0 && slices.Equal(p.plan[len(p.plan)-1].run, x.run[i]) {
				continue
			}
			p.plan = append(p.plan, turn{x.start, x.run[i]})
			if n > 0 {
				s.Next = append(s.Next, wire.GangTurn{Number: x.number, Start: p.clock.there(x.start), Run: x.run[i]})
			}
		}
		if p.fresh && now < p.told+keepAlive-maxLead && slices.EqualFunc(before, p.plan, turn.equal) {
			continue
		}
		p.told, p.fresh = now, true
		if p.id == c.cfg.Self {
			c.takeSlice(now, s)
		} else {
			c.messages = append(c.messages, Message{To: p.id, Slice: s})
		}
	}
}

// runningAt lists the running gangs that have a part on a server.
func (l *conductor) runningAt(server int) []ident.VMID {
	var run []ident.VMID
	for i := range l.gangs {
		g := &l.gangs[i]
		if g.running && slices.ContainsFunc(g.parts, func(p share) bool { return p.server == server }) {
			run = append(run, g.vm)
		}
	}
	return run
}
