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
}

// part is a VM's part on this server.
type part struct {
	vm      ident.VMID
	vcpus   int
	busy    int
	mode    wire.SliceMode
	slots   []uint16     // of its last run; kept, so that vCPUs find their caches again
	ordered ident.Micros // when it was last told its mode
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
			next := part{vm: vm.ID, vcpus: p.VCPUs, busy: p.VCPUs}
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
			c.order(now, p, wire.SliceFree, 0)
		}
	}
}

func (c *Core) order(now ident.Micros, p *part, mode wire.SliceMode, at ident.Micros) {
	p.mode, p.ordered = mode, now
	o := Order{VM: p.vm, SliceOrder: wire.SliceOrder{Number: c.member.number, Mode: mode, At: at, Until: now + OrderLease}}
	if mode == wire.SliceRun {
		o.CPUs = slices.Clone(p.slots)
	}
	c.orders = append(c.orders, o)
	c.count.Orders++
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
	running := func(p *part) bool {
		_, ok := slices.BinarySearch(s.Run, p.vm)
		return ok
	}
	used := c.keptSlots(running)
	for i := range m.parts {
		p := &m.parts[i]
		mode, moved := wire.SliceHold, false
		if running(p) {
			mode, moved = wire.SliceRun, p.assign(used, c.cfg.Distance)
		}
		if mode != p.mode || moved || now >= p.ordered+orderRenew {
			c.order(now, p, mode, s.Start)
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
	if m.following && now >= m.heard+SliceLease && c.cfg.Canary != CanaryNoLease {
		c.count.Lapses++
		c.free(now)
	}
	if at, ok := c.reportDue(); ok && now >= at {
		c.report(now)
	}
}

func (c *Core) memberDeadline() (ident.Micros, bool) {
	at, ok := c.reportDue()
	if m := &c.member; m.following && c.cfg.Canary != CanaryNoLease && (!ok || m.heard+SliceLease < at) {
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
	r := &wire.GangReport{Number: m.number, EchoSent: m.echoSent, Received: m.received, Started: m.started}
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
