package locality

import (
	"github.com/cellvisor/cellvisor/ident"
)

// What a move costs, and how debts and moves are judged.
const (
	Price       = 8 * ident.Millisecond // of a move: about 1 ms that the vCPU stands still, and the pages that it is about to use come after it
	fadeEvery   = 64 * ident.Millisecond
	fadeShare   = 12 // a debt loses one part in so many each time: half of it in half a second
	settle      = 20 * ident.Millisecond
	trial       = 60 * ident.Millisecond
	trialLeast  = 20 * ident.Millisecond  // of one in which waiting goes on
	answerIn    = 150 * ident.Millisecond // a move that was not made by then was refused
	avoidFirst  = 500 * ident.Millisecond
	avoidMost   = 16 * ident.Second
	forgiveAll  = 4 * ident.Second // after which a vCPU is half as patient
	mostPatient = 8
	leftBehind  = 3  // what is waited for where no vCPU is counts halved so often: such pages come once, and stay
	bluntFaults = 16 // of one report, from which on the policy Move moves
)

// Canaries of the Chooser, for the simulator.
const (
	CanaryRestless = "restless" // vCPUs never grow patient
	CanaryPushy    = "pushy"    // a part that has refused is asked again at once
	CanaryStubborn = "stubborn" // nobody moves before waiting has cost fifty times as much
)

// Canaries lists them.
var Canaries = []string{CanaryRestless, CanaryPushy, CanaryStubborn}

// Wish is a move that would pay.
type Wish struct {
	VCPU   ident.VCPU
	From   ident.Part
	To     ident.Part
	Waited ident.Micros // that it would save, of the last second or so
}

// Chooser decides, at a VM's home, which vCPU moves.
//
//	watching --a debt reaches its price--> wished --the vCPU is there--> on trial --> watching
//	                                          \--refused, or late--> watching, the part is left alone for a while
type Chooser struct {
	policy Policy
	canary string
	vcpus  []placed
	parts  [ident.MaxParts]target

	wish   *Wish
	wished ident.Micros
	trial  *judged
	fadeAt ident.Micros
	deaf   ident.Micros // until then reports tell of the time before the last move

	waited ident.Micros // by all, since waitedAt
	since  ident.Micros
	rate   ident.Micros // micros waited a second, before waitedAt
}

// placed is what is known of a vCPU.
type placed struct {
	known     bool
	part      ident.Part
	debts     []ident.Micros // by part; nil until it has waited
	faults    []uint32       // of the last report
	patience  uint8          // its price is Price shifted so far
	forgiveAt ident.Micros
}

// target is a part that vCPUs may go to. One that has refused is not asked before the time has passed or it has fewer vCPUs than it had then.
type target struct {
	avoidUntil, avoid ident.Micros
	vcpus             int // when it refused
	room              int // for so many vCPUs; 0: that is not known
}

// judged is a move whose worth is to be seen.
type judged struct {
	vcpu   ident.VCPU
	before ident.Micros // the rate
	from   ident.Micros // when measuring begins
	until  ident.Micros
	open   bool // measuring has begun
}

// NewChooser returns one for a VM of so many vCPUs.
func NewChooser(policy Policy, vcpus int, canary string) *Chooser {
	return &Chooser{policy: policy, canary: canary, vcpus: make([]placed, vcpus)}
}

// Take takes in what a part reports.
func (c *Chooser) Take(now ident.Micros, r *Report) {
	for _, id := range r.Residents {
		if int(id) < len(c.vcpus) {
			c.place(now, id, r.From)
		}
	}
	for i := range r.Waits {
		w := &r.Waits[i]
		if int(w.VCPU) >= len(c.vcpus) {
			continue
		}
		v := &c.vcpus[w.VCPU]
		if !v.known || v.part != r.From || w.Peer == r.From {
			continue // it has moved meanwhile
		}
		if now < c.deaf {
			continue
		}
		if v.debts == nil {
			v.debts, v.faults = make([]ident.Micros, ident.MaxParts), make([]uint32, ident.MaxParts)
		}
		v.debts[w.Peer] += w.Waited
		v.faults[w.Peer] += uint32(w.Faults)
		c.waited += w.Waited
	}
}

// place notes where a vCPU is. When one has moved, what was owed says little any more.
func (c *Chooser) place(now ident.Micros, id ident.VCPU, part ident.Part) {
	v := &c.vcpus[id]
	if v.known && v.part == part {
		return
	}
	moved := v.known
	v.known, v.part = true, part
	if moved {
		c.forget()
		c.deaf = now + settle
		if w := c.wish; w != nil && w.VCPU == id && w.To == part {
			c.wish = nil
			c.parts[part].avoid = 0
			c.trial = &judged{vcpu: id, before: c.rate, from: now + settle, until: now + settle + trial}
		}
	}
}

// Refused says that the wish will not be granted.
func (c *Chooser) Refused(now ident.Micros) {
	if c.wish == nil {
		return
	}
	t := &c.parts[c.wish.To]
	t.avoid = min(max(2*t.avoid, avoidFirst), avoidMost)
	if t.avoidUntil, t.vcpus = now+t.avoid, c.residents(c.wish.To); c.canary == CanaryPushy {
		t.avoidUntil = now
	}
	c.wish = nil
}

// residents counts the vCPUs that are known to be at a part.
func (c *Chooser) residents(part ident.Part) (n int) {
	for i := range c.vcpus {
		if v := &c.vcpus[i]; v.known && v.part == part {
			n++
		}
	}
	return n
}

// Room says that a part has slots for so many vCPUs.
func (c *Chooser) Room(part ident.Part, vcpus int) {
	if part < ident.MaxParts {
		c.parts[part].room = max(0, vcpus)
	}
}

// avoided tells whether a part is not to be asked now.
func (c *Chooser) avoided(now ident.Micros, part ident.Part) bool {
	t, n := &c.parts[part], c.residents(part)
	return now < t.avoidUntil && n >= t.vcpus || t.room > 0 && n >= t.room
}

// Moved says that a vCPU runs at a part now, if home knows it before that part reports.
func (c *Chooser) Moved(now ident.Micros, id ident.VCPU, to ident.Part) {
	if int(id) < len(c.vcpus) && to < ident.MaxParts {
		c.place(now, id, to)
	}
}

func (c *Chooser) forget() {
	for i := range c.vcpus {
		clear(c.vcpus[i].debts)
		clear(c.vcpus[i].faults)
	}
}

// Idle tells whether nothing is owed and nothing under way: no tick is needed before the next report.
func (c *Chooser) Idle() bool {
	return c.wish == nil && c.trial == nil && c.rate == 0 && c.waited == 0
}

// Tick looks whether a move pays. It is to be called every 20 ms or so, after what was reported since was taken in.
func (c *Chooser) Tick(now ident.Micros) (Wish, bool) {
	c.measure(now)
	c.fade(now)
	if c.wish != nil && now >= c.wished+answerIn {
		c.Refused(now)
	}
	var w Wish
	if c.policy.moves() && c.wish == nil && c.trial == nil {
		w = c.choose(now)
	}
	for i := range c.vcpus {
		clear(c.vcpus[i].faults)
	}
	if w.Waited == 0 {
		return Wish{}, false
	}
	c.wish, c.wished = &w, now
	return w, true
}

// measure keeps the rate of waiting, and judges the last move by it.
func (c *Chooser) measure(now ident.Micros) {
	if t := c.trial; t != nil {
		switch {
		case !t.open && now >= t.from:
			t.open, c.waited, c.since = true, 0, now
		case t.open && (now >= t.until || c.waited >= Price && now-c.since >= trialLeast):
			c.judge(now, t, c.waited*ident.Second/max(1, now-c.since))
			c.trial = nil
		}
		return
	}
	if span := now - c.since; span >= trial {
		c.rate = c.waited * ident.Second / span
		c.waited, c.since = 0, now
	}
}

func (c *Chooser) judge(now ident.Micros, t *judged, rate ident.Micros) {
	v := &c.vcpus[t.vcpu]
	v.forgiveAt = now + forgiveAll
	if 4*rate <= 3*t.before {
		v.patience -= min(v.patience, 1)
	} else if v.patience < mostPatient && c.canary != CanaryRestless {
		v.patience++
	}
	c.rate, c.waited, c.since = rate, 0, now
}

// fade lets debts and patience fade.
func (c *Chooser) fade(now ident.Micros) {
	for ; c.fadeAt+fadeEvery <= now; c.fadeAt += fadeEvery {
		if now-c.fadeAt > 2*ident.Second { // long ago: nothing is left
			c.forget()
			c.fadeAt = now - fadeEvery
		}
		for i := range c.vcpus {
			for q := range c.vcpus[i].debts {
				d := &c.vcpus[i].debts[q]
				*d -= (*d + fadeShare - 1) / fadeShare
			}
		}
	}
	for i := range c.vcpus {
		if v := &c.vcpus[i]; v.patience > 0 && now >= v.forgiveAt {
			v.patience--
			v.forgiveAt = now + forgiveAll
		}
	}
}

// choose returns the move that has paid most often over; Waited is 0 if none has once. Of moves that pay alike those come first that go to where more vCPUs
// are, as they bring a VM together, then those of the vCPU that waited most itself, as fewer pages are left behind.
func (c *Chooser) choose(now ident.Micros) (best Wish) {
	crowds, all := c.crowds()
	worth := ident.Micros(0)
	for i := range c.vcpus {
		v := &c.vcpus[i]
		for q := range ident.MaxParts {
			to := ident.Part(q)
			if !v.known || to == v.part || crowds[to] == 0 && v.owes(to) == 0 || c.avoided(now, to) {
				continue
			}
			saved, due := c.due(v, to, &crowds, all)
			rank := saved >> v.patience
			if crowds[v.part] < crowds[to] {
				rank += rank / 2
			} else {
				rank += v.owes(to) >> v.patience / 4
			}
			if due && rank > worth {
				worth = rank
				best = Wish{VCPU: ident.VCPU(i), From: v.part, To: to, Waited: saved}
			}
		}
	}
	return best
}

// crowds counts the vCPUs that are known to be at each part, and tells whether all are known.
func (c *Chooser) crowds() (crowds [ident.MaxParts]int, all bool) {
	all = true
	for i := range c.vcpus {
		if v := &c.vcpus[i]; v.known {
			crowds[v.part]++
		} else {
			all = false
		}
	}
	return crowds, all
}

// due returns what a move would save, and tells whether that is enough.
func (c *Chooser) due(v *placed, to ident.Part, crowds *[ident.MaxParts]int, all bool) (saved ident.Micros, due bool) {
	if c.policy == Move {
		return v.owes(to), v.debts != nil && v.faults[to] >= bluntFaults && 2*v.faults[to] > sum(v.faults)
	}
	if saved = c.saves(v, to, crowds[v.part] == 1); all && crowds[to] == 0 {
		saved >>= leftBehind
	}
	price := Price
	if c.canary == CanaryStubborn {
		price = 50 * Price
	}
	return saved, saved>>v.patience >= price
}

// owes is how long a vCPU has waited for a part's pages.
func (v *placed) owes(part ident.Part) ident.Micros {
	if v.debts == nil {
		return 0
	}
	return v.debts[part]
}

func sum(all []uint32) (n uint32) {
	for _, x := range all {
		n += x
	}
	return n
}

// saves is what would not have been waited for, had v been at part to: its own waits for that part, and its share of those the other way, which is all of them if
// nobody else is where it is.
func (c *Chooser) saves(v *placed, to ident.Part, alone bool) ident.Micros {
	var theirs, ours ident.Micros
	for i := range c.vcpus {
		switch u := &c.vcpus[i]; {
		case !u.known:
		case u.part == to:
			theirs += u.owes(v.part)
		case u.part == v.part:
			ours += u.owes(to)
		}
	}
	if alone {
		return v.owes(to) + theirs
	}
	return v.owes(to) + theirs*v.owes(to)/max(1, ours)
}
