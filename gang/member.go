package gang

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// member is what a server does for the conductor of its domain: it turns slices into orders to its workers, and reports which of their vCPUs have
// work.
//
//	free --slice--> following --slice--> following --SliceLease without one, or slots for all--> free
type member struct {
	parts     []part // of the VMs here, by VM
	following bool
	number    uint64       // of the last slice taken from this conductor in this epoch
	heard     ident.Micros // when that was
	echoSent  ident.Micros
	received  ident.Micros
	changed   bool // there is something to report
	reported  ident.Micros
	echoed    uint64 // number of the last slice that was answered
	started   []wire.GangStart
	retry     ident.Micros // when to give orders again that did not reach their workers, and the rest of long ones; 0: there are none
}

// part is a VM's part on this server.
type part struct {
	vm      ident.VMID
	vcpus   int
	busy    int
	mode    wire.SliceMode
	slots   []uint16     // of its last run; kept, so that vCPUs find their caches again
	plan    []stint      // what leads to mode and slots: that which is in force first, by time
	told    []stint      // as much of it as the worker knows
	ordered ident.Micros // when it was last told its mode
}

// stint is what a part does from a time on.
type stint struct {
	number uint64
	at     ident.Micros
	mode   wire.SliceMode
	slots  []uint16
}

func (s stint) equal(o stint) bool {
	return s.number == o.number && s.at == o.at && s.mode == o.mode && slices.Equal(s.slots, o.slots)
}

func (m *member) find(vm ident.VMID) *part {
	i, ok := slices.BinarySearchFunc(m.parts, vm, func(p part, vm ident.VMID) int { return compareVM(p.vm, vm) })
	if !ok {
		return nil
	}
	return &m.parts[i]
}

func compareVM(a, b ident.VMID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// rebuildParts takes the VMs of the view over. A part that is new is free and has work, until its worker says otherwise.
func (c *Core) rebuildParts(now ident.Micros) {
	m := &c.member
	old := m.parts
	m.parts = nil
	for _, vm := range c.domain.vms {
		for _, p := range vm.Parts {
			if p.Server != c.cfg.Self {
				continue
			}
			next := part{vm: vm.ID, vcpus: p.VCPUs, busy: p.VCPUs, plan: make([]stint, 1), told: make([]stint, 1)}
			if i := slices.IndexFunc(old, func(o part) bool { return o.vm == vm.ID }); i >= 0 {
				next = old[i]
				if next.vcpus != p.VCPUs {
					next.vcpus, next.busy = p.VCPUs, p.VCPUs
				}
			}
			m.parts = append(m.parts, next)
		}
	}
	m.changed = true
	if !c.follows() {
		c.free(now)
	}
}

// free lets all parts here run under the host's scheduler.
func (c *Core) free(now ident.Micros) {
	c.member.following = false
	for i := range c.member.parts {
		if p := &c.member.parts[i]; p.mode != wire.SliceFree {
			p.mode, p.plan, p.told = wire.SliceFree, []stint{{number: c.member.number}}, nil
			c.instruct(now, p)
		}
	}
}

// orderBytes bounds an order's stints, so that it fits into a datagram: each takes so much besides its slots.
const (
	orderBytes = wire.SliceDatagramLimit - 64
	stintBytes = 24
)

// instruct tells the part's worker what it does not know of its plan. An order takes the place of what was said for its time and later.
func (c *Core) instruct(now ident.Micros, p *part) {
	p.plan, p.told = since(now, p.plan), since(now, p.told)
	same := 0
	for same < min(len(p.plan), len(p.told)) && p.plan[same].equal(p.told[same]) {
		same++
	}
	lease, again := OrderLease, orderRenew
	if p.busy == 0 {
		lease, again = IdleLease, idleRenew
	}
	renew := now >= p.ordered+again
	switch {
	case len(p.plan) == 0 || !renew && same == len(p.plan) && same == len(p.told):
		return
	case renew:
		same = 0
	}
	news := p.plan[same:]
	if same > 0 && same < len(p.told) && (len(news) == 0 || news[0].at > p.told[same].at) { // nothing takes its place at its time: what was before goes on
		on := p.plan[same-1]
		on.at = p.told[same].at
		news = append([]stint{on}, news...)
		p.plan = slices.Concat(p.plan[:same], news)
	}
	bytes, count := 0, 0
	for bytes < orderBytes && count < min(len(news), wire.SliceTurnLimit) {
		bytes += stintBytes + 2*len(news[count].slots)
		count++
	}
	first := news[0]
	o := Order{VM: p.vm, SliceOrder: wire.SliceOrder{Number: first.number, Mode: first.mode, At: first.at, Until: now + lease, CPUs: first.cpus()}}
	for _, s := range news[1:count] {
		o.Next = append(o.Next, wire.SliceTurn{Number: s.number, Mode: s.mode, At: s.at, CPUs: s.cpus()})
	}
	p.told, p.ordered = slices.Clone(p.plan[:len(p.plan)-len(news)+count]), now
	if count < len(news) { // the rest when half of that is over
		if at := max(now+orderRetry, now+(news[count-1].at-now)/2); c.member.retry == 0 || at < c.member.retry {
			c.member.retry = at
		}
	}
	c.orders = append(c.orders, o)
	c.count.Orders++
}

func (s *stint) cpus() []uint16 {
	if s.mode != wire.SliceRun {
		return nil
	}
	return slices.Clone(s.slots)
}

// since drops the stints that others have taken the place of.
func since(now ident.Micros, plan []stint) []stint {
	for len(plan) > 1 && plan[1].at <= now {
		plan = plan[1:]
	}
	return plan
}

// withdraw drops what was to begin at a time or later. What is in force then is left, if it is known.
func (p *part) withdraw(now, at ident.Micros) {
	p.plan = since(now, p.plan)
	n := len(p.plan)
	for n > 1 && p.plan[n-1].at >= at {
		n--
	}
	if n < len(p.plan) {
		p.plan = slices.Clone(p.plan[:n])
		p.mode, p.slots = p.plan[n-1].mode, slices.Clone(p.plan[n-1].slots)
	}
}

// takeNote takes a worker's word on its vCPUs.
func (c *Core) takeNote(now ident.Micros, n wire.SliceNote) {
	p := c.member.find(n.VM)
	if p == nil {
		return
	}
	whole := c.member.changed
	if busy := min(max(n.Busy, 0), p.vcpus); busy != p.busy {
		p.busy, c.member.changed = busy, true
	}
	if n.Number != 0 && len(c.member.started) < wire.GangEntryLimit {
		c.member.started = append(c.member.started, wire.GangStart{VM: n.VM, Number: n.Number, First: n.First, Last: n.Last})
	}
	switch { // the conductor's own workers: no report, no gap
	case !c.lead.active || !c.member.changed && n.Number == 0:
	case whole:
		c.tellSelf(now, c.member.parts)
	default:
		c.tellSelf(now, []part{*p})
	}
}

// takeSlice obeys a slice.
func (c *Core) takeSlice(now ident.Micros, s *wire.GangSlice) {
	m := &c.member
	if s.Number <= m.number {
		c.count.Refused++
		return
	}
	m.number, m.heard, m.following = s.Number, now, true
	m.echoSent, m.received = s.Sent, now
	for i := range m.parts {
		if c.cfg.Canary != CanaryStalePlan {
			m.parts[i].withdraw(now, s.Start)
		}
	}
	c.schedule(s.Number, s.Start, s.Run)
	for i := range s.Next {
		n := &s.Next[i]
		m.number = max(m.number, n.Number)
		c.schedule(n.Number, n.Start, n.Run)
	}
	for i := range m.parts {
		c.instruct(now, &m.parts[i])
	}
}

// schedule adds a slice to the plans of the parts here.
func (c *Core) schedule(number uint64, start ident.Micros, run []ident.VMID) {
	m := &c.member
	running := func(p *part) bool {
		_, ok := slices.BinarySearch(run, p.vm)
		return ok
	}
	used := c.keptSlots(running)
	for i := range m.parts {
		p := &m.parts[i]
		mode, moved := wire.SliceHold, false
		if running(p) {
			mode, moved = wire.SliceRun, p.assign(used, c.cfg.Distance)
		}
		if mode != p.mode || moved {
			p.mode = mode
			p.plan = append(p.plan, stint{number, start, mode, slices.Clone(p.slots)})
		}
	}
}

// want is how many slots a part needs. One without work needs none; should it wake before the next slice, it runs on any.
func (p *part) want() int { return min(p.busy, p.vcpus) }

// keptSlots marks the slots of parts that run on. What a part has too much it gives back.
func (c *Core) keptSlots(running func(*part) bool) []bool {
	i := c.domain.index(c.cfg.Self)
	used := make([]bool, max(1, c.domain.servers[i].Slots))
	for i := range c.member.parts {
		p := &c.member.parts[i]
		if p.mode != wire.SliceRun || !running(p) {
			continue
		}
		for _, s := range p.slots[:min(len(p.slots), p.want())] {
			if int(s) < len(used) {
				used[s] = true
			}
		}
	}
	return used
}

// assign gives the part slots that are free, its former ones if it can, else those nearest to them and to each other, where what it has in caches and
// memory is nearest too. It tells whether they are others than before. If there are too few,
// which is so only while the conductor's numbers are older than ours, its vCPUs share what there is.
func (p *part) assign(used []bool, distance [][]uint8) (moved bool) {
	if p.mode == wire.SliceRun && len(p.slots) == p.want() {
		return false
	}
	var own []uint16
	if p.mode == wire.SliceRun { // marked already
		own = slices.Clone(p.slots[:min(len(p.slots), p.want())])
	}
	take := func(s int) {
		if len(own) < p.want() && s < len(used) && !used[s] {
			used[s] = true
			own = append(own, uint16(s))
		}
	}
	for _, s := range p.slots {
		take(int(s))
	}
	near := append(slices.Clone(own), p.slots...)
	for len(own) < p.want() {
		s := nearest(used, near, distance)
		if s < 0 {
			break
		}
		take(s)
		near = append(near, uint16(s))
	}
	moved = !slices.Equal(own, p.slots)
	p.slots = own
	return moved
}

// nearest returns the free slot with the least distance to those in near, the first of several, or -1.
func nearest(used []bool, near []uint16, distance [][]uint8) int {
	best, least := -1, 0
	for s := range used {
		if used[s] {
			continue
		}
		sum := 0
		for _, n := range near {
			if s < len(distance) && int(n) < len(distance[s]) {
				sum += int(distance[s][n])
			}
		}
		if best < 0 || sum < least {
			best, least = s, sum
		}
	}
	return best
}

// memberTick sends the report that is due, and lets go when the conductor has been silent for too long.
func (c *Core) memberTick(now ident.Micros) {
	m := &c.member
	if m.following && c.domain.conductor != c.cfg.Self && now >= m.heard+SliceLease && c.cfg.Canary != CanaryNoLease {
		c.count.Lapses++
		c.free(now)
	}
	if at, ok := c.reportDue(); ok && now >= at {
		c.report(now)
	}
	if m.retry != 0 && now >= m.retry {
		m.retry = 0
		for i := range m.parts {
			c.instruct(now, &m.parts[i])
		}
	}
}

func (c *Core) memberDeadline() (ident.Micros, bool) {
	m := &c.member
	at, ok := c.reportDue()
	if m.retry != 0 && (!ok || m.retry < at) {
		at, ok = m.retry, true
	}
	if m.following && c.domain.conductor != c.cfg.Self && c.cfg.Canary != CanaryNoLease && (!ok || m.heard+SliceLease < at) {
		return m.heard + SliceLease, true
	}
	return at, ok
}

// reportDue tells when the next report is to be sent, if there is one. Only a server that follows another one's slices reports.
func (c *Core) reportDue() (ident.Micros, bool) {
	m := &c.member
	switch {
	case !c.follows() || !m.following || c.domain.conductor == c.cfg.Self:
		return 0, false
	case m.changed:
		return m.reported + reportGap, true
	case m.echoed != m.number:
		return m.reported + echoGap, true
	}
	return 0, false
}

func (c *Core) report(now ident.Micros) {
	m := &c.member
	r := m.snapshot(m.parts)
	r.Sent = now
	m.changed, m.reported, m.echoed, m.started = false, now, m.number, nil
	c.messages = append(c.messages, Message{To: c.domain.conductor, Report: r})
	c.count.Reports++
}

func (m *member) snapshot(parts []part) *wire.GangReport {
	r := &wire.GangReport{Number: m.number, EchoSent: m.echoSent, Received: m.received, Started: m.started, Plans: true}
	for i := range parts {
		r.Busy = append(r.Busy, wire.GangBusy{VM: parts[i].vm, VCPUs: parts[i].busy})
	}
	return r
}

// tellSelf is the report of a conductor to itself, about some of its parts.
func (c *Core) tellSelf(now ident.Micros, parts []part) {
	m := &c.member
	r := m.snapshot(parts)
	m.changed, m.started = false, nil
	c.takeReport(now, c.cfg.Self, r)
}
