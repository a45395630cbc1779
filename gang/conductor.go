package gang

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Bugs that can be planted, to prove that the simulator's checks find them.
const (
	CanaryNoLease    = "no-lease"    // a server waits for a silent conductor for ever
	CanaryIdleCredit = "idle-credit" // time spent idle counts as time waited
	CanarySmallFirst = "small-first" // small gangs before those that have waited longer
	CanaryPartial    = "partial"     // a gang starts when one of its servers has slots for it
	CanaryStalePlan  = "stale-plan"  // a server goes on with slices that have been taken back
)

// Canaries lists them.
var Canaries = []string{CanaryNoLease, CanaryIdleCredit, CanarySmallFirst, CanaryPartial, CanaryStalePlan}

// conductor plans the slices of a domain.
type conductor struct {
	active   bool
	stepwise bool // plans one slice at a time; set by a test
	number   uint64
	start    ident.Micros // of the present slice; it may lie ahead by the lead
	end      ident.Micros // when the next one begins
	nominal  ident.Micros // when it would end if somebody waited
	set      ident.Micros // when end was last set
	late     ident.Micros // how long after the time for it slices are planned
	servers  []peer       // by rising ID
	gangs    []gang       // by rising VM
	virtual  int64        // the least virtual time of those that have work; it only grows
	turned   uint64       // slices planned

	planned
}

// peer is a server of the domain as its conductor sees it.
type peer struct {
	id    ident.ServerID
	slots int
	clock offset
	plan  []turn       // what it was told: that which is in force first, by its begin
	told  ident.Micros // when
	fresh bool         // was told something
	plans bool         // understands slices ahead of time
	delay ident.Micros // of slices on their way to it
}

// gang is one VM's vCPUs.
type gang struct {
	vm      ident.VMID
	weight  int64
	parts   []share
	virtual int64        // micros that it ran, by weight
	work    bool         // has work: is eligible
	running bool         // in the present slice
	from    ident.Micros // running: charged up to here
	fresh   bool         // running: began in the present slice
	since   ident.Micros // not running, with work: waits since then

	starts []start // that are being collected, by slice
}

// start is when a gang on several servers began in a slice, as far as they have told.
type start struct {
	number      uint64
	parts       int
	first, last ident.Micros
}

// startsMost bounds the slices whose starts are collected: servers tell of many at once.
const startsMost = 128

// share is a gang's part.
type share struct {
	server int // index in conductor.servers
	vcpus  int
	busy   int
}

// rebuildConductor begins, goes on with, or ends conducting, by the present domain.
func (c *Core) rebuildConductor(now ident.Micros) {
	l := &c.lead
	if c.domain.conductor != c.cfg.Self || !c.follows() {
		*l = conductor{number: l.number}
		return
	}
	servers := make([]peer, len(c.domain.servers))
	for i, s := range c.domain.servers {
		servers[i] = peer{id: s.ID, slots: max(1, s.Slots)}
		if j := l.server(s.ID); j >= 0 {
			servers[i].clock, servers[i].delay, servers[i].plans = l.servers[j].clock, l.servers[j].delay, l.servers[j].plans
		}
		if s.ID == c.cfg.Self {
			servers[i].clock, servers[i].plans = offset{known: true}, true
		}
	}
	gangs := make([]gang, len(c.domain.vms))
	for i, vm := range c.domain.vms {
		gangs[i] = c.rebuildGang(now, vm)
	}
	l.servers, l.gangs = servers, gangs
	if !l.active {
		l.active, l.start, l.end, l.nominal = true, now, now, now
	}
	l.forget()
	c.tellSelf(now, c.member.parts)
	c.cut(now, now) // everybody is told anew
}

func (c *Core) rebuildGang(now ident.Micros, vm VM) gang {
	l := &c.lead
	g := gang{vm: vm.ID, virtual: l.virtual, since: now}
	old := l.gang(vm.ID)
	if old != nil {
		g = *old
		g.parts = nil
	}
	if g.weight = int64(vm.Weight); g.weight < 1 {
		g.weight = DefaultWeight
	}
	for _, p := range vm.Parts {
		s := share{server: c.domain.index(p.Server), vcpus: p.VCPUs, busy: p.VCPUs}
		if old != nil {
			for _, o := range old.parts {
				if l.servers[o.server].id == p.Server && o.vcpus == p.VCPUs {
					s.busy = o.busy
				}
			}
		}
		g.parts = append(g.parts, s)
	}
	g.work = g.demand() > 0
	return g
}

func (l *conductor) server(id ident.ServerID) int {
	return slices.IndexFunc(l.servers, func(p peer) bool { return p.id == id })
}

func (l *conductor) gang(vm ident.VMID) *gang {
	i, ok := slices.BinarySearchFunc(l.gangs, vm, func(g gang, vm ident.VMID) int { return compareVM(g.vm, vm) })
	if !ok {
		return nil
	}
	return &l.gangs[i]
}

// demand counts the vCPUs that have work.
func (g *gang) demand() int {
	n := 0
	for _, p := range g.parts {
		n += p.busy
	}
	return n
}

// lead is how long before its begin a slice must be sent: twice what it took lately to arrive at the slowest server.
func (l *conductor) lead() ident.Micros {
	if len(l.servers) < 2 {
		return 0
	}
	late := l.late
	for i := range l.servers {
		late = max(late, l.servers[i].delay)
	}
	return min(max(minLead, 2*late), maxLead)
}

// ahead is how long before its begin a slice is planned that nobody waits for: long enough for a message that is slow for once, such as one in a
// hundred is, since who gets it late begins late, and the gang's other half spins. On one server it is for the conductor to get a CPU and tell all
// workers, so that these let go of slots and take them at the same moment.
func (l *conductor) ahead() ident.Micros {
	if len(l.servers) >= 2 {
		return max(planLead, l.lead())
	}
	return min(max(ownLead, 2*l.late), maxLead)
}

// soon is how long before its begin a slice must be planned at least.
func (l *conductor) soon() ident.Micros { return min(l.ahead(), max(ownLead, l.lead())) }

// took folds in how long something took: the longest counts, and is forgotten slowly.
func took(before, now ident.Micros) ident.Micros { return max(now, before-before/delayFade) }

// delayFade is how many times faster ones must follow until a slow one is forgotten, about.
const delayFade = 32

// planAt is when the next slice is to be planned.
func (l *conductor) planAt() ident.Micros { return max(l.end-l.ahead(), l.set) }

// takeReport takes a server's word on its vCPUs, starts what can start at once, and ends the slice early if somebody woke who waits longest.
func (c *Core) takeReport(now ident.Micros, from ident.ServerID, r *wire.GangReport) {
	l := &c.lead
	s := l.server(from)
	if s < 0 {
		c.count.Refused++
		return
	}
	if from != c.cfg.Self && r.EchoSent != 0 {
		p := &l.servers[s]
		p.clock.learn(now, r.EchoSent, r.Received, r.Sent)
		p.plans = r.Plans
		if p.clock.known {
			p.delay = took(p.delay, p.clock.here(r.Received)-r.EchoSent)
		}
	}
	changed := false
	for _, b := range r.Busy {
		if g := l.gang(b.VM); g != nil && g.setBusy(s, b.VCPUs) {
			changed = true
			c.settle(now, g)
		}
	}
	for _, st := range r.Started {
		c.noteStart(s, st)
	}
	if changed {
		c.fill(now)
	}
}

// setBusy tells whether it changed anything.
func (g *gang) setBusy(server, busy int) bool {
	for i := range g.parts {
		p := &g.parts[i]
		if p.server == server && p.busy != min(busy, p.vcpus) {
			p.busy = min(busy, p.vcpus)
			return true
		}
	}
	return false
}

// settle lets a gang leave or come back after its demand has changed.
func (c *Core) settle(now ident.Micros, g *gang) {
	work := g.demand() > 0
	switch {
	case g.work && !work:
		c.charge(now, g)
		g.work, g.running = false, false
	case !g.work && work:
		g.work, g.since = true, now
		if c.cfg.Canary != CanaryIdleCredit {
			g.virtual = max(g.virtual, c.lead.virtual)
		}
	}
}

// rotate makes the next slice the present one.
func (c *Core) rotate(now ident.Micros) {
	l := &c.lead
	start := max(l.end, now)
	l.late = took(l.late, now-l.planAt())
	if now > l.planAt() { // late: still together
		start = max(start, now+l.soon()/2)
	}
	for i := range l.gangs {
		c.charge(start, &l.gangs[i])
	}
	c.advance()
	order := c.byWait()
	free := c.slots()
	waiting := false
	for _, w := range order {
		g := &l.gangs[w.gang]
		was := g.running
		g.running = c.fit(g, free)
		switch {
		case g.running && !was:
			g.from, g.fresh = start, true
		case !g.running && was:
			g.since = start
		}
		waiting = waiting || !g.running
	}
	l.start = start
	l.nominal = start + l.sliceLength()
	l.end = l.nominal
	if !waiting {
		l.end = start + keepAlive
	}
	l.set = now
	l.turned++
}

// fill gives slots that are free in the present slice to gangs that wait, and ends the slice early for one that has waited longer than those
// that run.
func (c *Core) fill(now ident.Micros) {
	l := &c.lead
	l.forget()
	start := max(now+l.lead(), l.start)
	free := c.slots()
	latest := int64(0)
	for i := range l.gangs {
		if g := &l.gangs[i]; g.running {
			for _, p := range g.parts {
				free[p.server] -= min(p.busy, l.servers[p.server].slots)
			}
			latest = max(latest, g.virtual+g.virtualOf(max(0, start-g.from)))
		}
	}
	filled, waiting, cut := false, false, false
	for _, w := range c.byWait() {
		g := &l.gangs[w.gang]
		switch {
		case g.running:
		case c.fit(g, free):
			g.running, g.from, g.fresh, filled = true, start, true, true
		default:
			waiting = true
			cut = cut || g.virtual < latest && g.since == now
		}
	}
	if filled {
		c.count.Fills++
	}
	c.tell(now, []slice{l.slice(start)})
	if waiting && cut {
		c.count.Cuts++
		c.cut(now, l.start+MinSlice)
	} else if waiting {
		c.cut(now, l.nominal)
	}
}

// cut lets the slice end at the given time, if it would not end earlier.
func (c *Core) cut(now, at ident.Micros) {
	l := &c.lead
	if end := max(at, now+l.soon()); end < l.end {
		l.end, l.set = end, now
	}
}
