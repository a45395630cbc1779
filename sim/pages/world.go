// Package pages simulates one virtual machine over several parts: each runs the production mem.Core, executes its effects on a fake
// memfd and guest mapping just as the worker does, and has vCPUs and a device that read and write.
//
// After every event it holds that:
//   - a page is mapped for writing at one part and nowhere else, or for reading only;
//   - a read returns the value of the latest write to the page, in virtual time, whoever wrote it;
//   - what a device holds pinned does not change under it;
//   - every core's Check passes: among others, no transaction outlives its epoch;
//   - a page is lost only if a part that died had asked for it, or had been its directory.
//
// In some worlds the directories of regions go from part to part all the time, as long as all parts are of a version that knows of it, and each has been told so.
//
// At the end faults stop, the network heals, and every operation must end: no part may wait for ever. The history of each page is then
// checked for linearizability by porcupine as well, which knows nothing of the checks above.
package pages

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "reboot",
		Doc:      "as pages, with a disk whose blocks are cached in pages; the guest crashes and boots again in place: memory is zero, no block is read wrong",
		Run:      func(seed uint64, canary string) error { return runKind(seed, canary, reboots) },
		Canaries: append([]string{canaryResetKeepsPage}, srt.Canaries...),
	})
	sim.Register(sim.Scenario{
		Name:     "pages",
		Doc:      "coherent memory over 2 to 5 parts; messages lost, repeated, reordered, cut; parts paused",
		Run:      func(seed uint64, canary string) error { return Run(seed, canary, false) },
		Canaries: []string{"lost-inval", "early-grant", "stale-serial", "read-before-revoke", "pin-ignored", "done-once", "no-downgrade", "home-busy", "home-twice", "home-serial", "home-unknown"},
	})
	sim.Register(sim.Scenario{
		Name:     "pages-crash",
		Doc:      "as pages, and parts die: the directory is rebuilt, and only pages that the dead may have held are lost",
		Run:      func(seed uint64, canary string) error { return Run(seed, canary, true) },
		Canaries: []string{"epoch-ignored", "retained-stale", "zero-again", "early-serve", "retained-epoch", "granting-zero", "old-authority", "home-forgotten"},
	})
}

// world is one simulated VM.
type world struct {
	*kernel.World
	parts   []*part
	latest  []uint64   // the value of each page's latest write, in the present boot
	lives   [][]uint64 // the same by boot, from 0
	disk    []uint64   // by block
	boots   int        // to come
	values  uint64     // written so far
	history []operation

	epoch   ident.Epoch
	members ident.PartSet
	dead    ident.PartSet
	touched []ident.PartSet // by page: parts that asked for it or were its directory
	open    int             // operations not over yet
	older   ident.PartSet   // parts of an older version
	misled  ident.Part      // that is told so of all; ident.MaxParts: none
	image   uint64          // what all pages hold at the start
	around  uint16          // pages of the block that faults for reading ask for, too

	afterWrite func(p *part, page ident.PageNo) // unless nil, called after each write
}

// settings are drawn from the seed.
type settings struct {
	parts, pages, ops int
	crash, storm      bool
	reboots           bool
	canary            string
	core              mem.Config
	faultsEnd         ident.Micros
	misled            ident.Part
	older             ident.PartSet // parts that do not know how directories go from part to part
}

// Run runs the world of a seed. If it fails, it runs it again to tell the end of its story.
func Run(seed uint64, canary string, crash bool) error {
	if crash {
		return runKind(seed, canary, crashes)
	}
	return runKind(seed, canary, calm)
}

// kind is what happens besides the network's faults.
type kind uint8

const (
	calm    kind = iota
	crashes      // parts die
	reboots      // the guest boots again
)

func runKind(seed uint64, canary string, k kind) error {
	err := run(seed, canary, k, false)
	if err != nil {
		return run(seed, canary, k, true)
	}
	return nil
}

func run(seed uint64, canary string, of kind, tracing bool) error {
	k := kernel.New(seed, kernel.Reliable())
	k.Tracing = tracing
	w := &world{World: k}
	err := w.play(canary, of)
	if err != nil && tracing {
		err = fmt.Errorf("%w\n%s", err, k.Trace())
	}
	return err
}

func (w *world) play(canary string, of kind) error {
	s := w.draw(canary, of)
	w.build(s)
	w.Check = w.check
	switch of {
	case crashes:
		w.planCrashes(s)
	case reboots:
		w.planReboots(s)
	}
	w.planFaults(s)
	if s.core.Rehome {
		w.planRehomes(s)
	}
	if err := w.Run(s.faultsEnd); err != nil {
		return err
	}
	w.heal()
	limit := w.Now() + 20*ident.Second
	if err := w.RunUntil(limit, func() bool { return w.open == 0 && w.boots == 0 && w.quiet() }); err != nil {
		return err
	}
	if err := w.settled(); err != nil {
		return err
	}
	return w.linearizable()
}

func (w *world) draw(canary string, of kind) settings {
	crash := of == crashes
	r := w.Rand()
	s := settings{parts: 2 + r.IntN(4), pages: 1 + r.IntN(6), ops: 60 + r.IntN(180), crash: crash, reboots: of == reboots, canary: canary}
	if crash {
		s.parts = 3 + r.IntN(3)
		if s.storm = r.IntN(3) == 0; s.storm {
			// All at one page, and most parts die while it changes hands: what counts is who had it last.
			s.parts, s.pages, s.ops = 5, 1, 250
		}
	}
	s.core = mem.Config{
		Pages: uint64(s.pages), RegionPages: 1 << r.IntN(2),
		Retry: w.Between(300, 3000), Deadline: 20 * ident.Millisecond,
	}
	if !s.reboots { // there the bugs are elsewhere
		s.core.Canary = canary
	}
	s.core.RetryMax = 8 * s.core.Retry
	if r.IntN(2) == 0 {
		s.core.Window = w.Between(20, 400)
	}
	if r.IntN(3) == 0 {
		s.core.Stint = w.Between(100, 2000)
	}
	if r.IntN(3) == 0 {
		s.core.Company = 1 + r.IntN(2*s.pages)
	}
	if r.IntN(2) == 0 {
		s.core.ReadAhead = 1 + r.IntN(4)
	}
	if r.IntN(2) == 0 {
		w.around = 1 << r.IntN(4)
	}
	s.core.Rehome = r.IntN(2) == 0
	if r.IntN(5) == 0 && !s.reboots {
		s.core.Image = ident.PartSet(0).Set(ident.Part(r.IntN(s.parts)))
		w.image = 1 << 32
	}
	s.faultsEnd = ident.Micros(s.ops) * w.Between(20, 200)
	if s.core.Rehome && r.IntN(5) == 0 {
		s.older = s.older.Set(ident.Part(r.IntN(s.parts)))
	}
	if s.misled = ident.MaxParts; r.IntN(5) == 0 {
		s.misled = ident.Part(r.IntN(s.parts))
	}
	return s
}

func (w *world) build(s settings) {
	w.older, w.misled = s.older, s.misled
	w.latest = make([]uint64, s.pages)
	w.lives = [][]uint64{w.latest}
	w.touched = make([]ident.PartSet, s.pages)
	for i := range s.parts {
		cfg := s.core
		cfg.Self = ident.Part(i)
		if s.older.Has(cfg.Self) {
			cfg.Rehome = false
		}
		p := &part{w: w, self: cfg.Self, core: mem.New(cfg), cfg: cfg, memfd: make([]uint64, s.pages), guest: make([]access, s.pages)}
		p.id = w.Add(p)
		w.SetClock(p.id, w.Between(0, ident.Second), int64(w.Rand().IntN(201)-100))
		w.parts = append(w.parts, p)
		w.members = w.members.Set(p.self)
		for v := range 1 + w.Rand().IntN(3) {
			p.vcpus = append(p.vcpus, &vcpu{part: p, index: v})
		}
	}
	s.core.Image.Each(func(holder ident.Part) {
		for page := range w.latest {
			w.latest[page], w.parts[holder].memfd[page] = w.image, w.image
			w.touched[page] = w.touched[page].Set(holder)
		}
	})
	w.epoch = 1
	first := w.members
	for _, p := range w.parts {
		// Perhaps so late that the part hears of the second epoch first.
		w.At(w.Between(0, 100), func() { p.members(1, first, true) })
	}
	w.noteDirectories()
	w.planOperations(s)
}

// planOperations gives the vCPUs and devices work, each operation after a pause from the one before.
func (w *world) planOperations(s settings) {
	hot := ident.PageNo(w.Rand().IntN(s.pages))
	for range s.ops {
		page := ident.PageNo(w.Rand().IntN(s.pages))
		if w.Chance(300) {
			page = hot
		}
		p := w.parts[w.Rand().IntN(len(w.parts))]
		op := operation{page: page, write: w.Chance(450)}
		w.open++
		if w.Chance(120) {
			p.devOps = append(p.devOps, op)
			continue
		}
		v := p.vcpus[w.Rand().IntN(len(p.vcpus))]
		v.ops = append(v.ops, op)
	}
	for _, p := range w.parts {
		for _, v := range p.vcpus {
			w.At(w.Between(100, 400), v.next)
		}
		w.At(w.Between(100, 400), p.nextPin)
	}
}

// planFaults draws the network's behaviour, cuts that heal and pauses that end.
func (w *world) planFaults(s settings) {
	net := kernel.Network{DelayMin: 15, DelayMax: w.Between(40, 200)}
	if w.Chance(800) {
		net.LossShare, net.RepeatShare = w.Rand().IntN(120), w.Rand().IntN(120)
		net.TailShare, net.TailMax = w.Rand().IntN(150), w.Between(500, 8000)
	} else {
		net.InOrder = true
	}
	w.SetNetwork(net)
	for range w.Rand().IntN(4) {
		a, b := kernel.NodeID(w.Rand().IntN(s.parts)), kernel.NodeID(w.Rand().IntN(s.parts))
		from := w.Between(0, s.faultsEnd)
		to := from + w.Between(100, 5000)
		if a != b {
			w.At(from, func() { w.Tracef("cut %d %d", a, b); w.Cut(a, b) })
			w.At(to, func() { w.Tracef("heal %d %d", a, b); w.Heal(a, b) })
		}
	}
	for range w.Rand().IntN(3) {
		id := kernel.NodeID(w.Rand().IntN(s.parts))
		from := w.Between(0, s.faultsEnd)
		w.At(from, func() { w.Tracef("pause %d", id); w.Pause(id) })
		w.At(from+w.Between(100, 6000), func() { w.resume(id) })
	}
}

// planRehomes has directories go from part to part.
func (w *world) planRehomes(s settings) {
	for range s.ops / 4 {
		page, to := ident.PageNo(w.Rand().IntN(s.pages)), ident.Part(w.Rand().IntN(s.parts))
		w.At(w.Between(300, s.faultsEnd), func() {
			for _, p := range w.parts {
				if p.core.Epoch() != 0 && w.Running(p.id) && p.core.Directory(page) == p.self {
					p.step(w.Clock(p.id), mem.Event{Kind: mem.EventRehome, Page: page, To: to}, nil)
				}
			}
		})
	}
}

func (w *world) resume(id kernel.NodeID) {
	w.Tracef("resume %d", id)
	w.Resume(id)
	w.parts[id].kick()
}

// planCrashes lets parts die, one after the other, and the survivors learn of it at different times: perhaps when the next one is dead
// already. What a dead part sent before its death may still arrive.
func (w *world) planCrashes(s settings) {
	at := w.Between(0, s.faultsEnd)
	if s.storm {
		w.At(w.Between(300, 3000), func() {
			w.crashOne()
			w.afterWrite = w.crashWriter
		})
		return
	}
	for range 1 + w.Rand().IntN(s.parts-1) {
		w.At(at, w.crashOne)
		if w.Chance(400) {
			at += w.Between(0, 100) // a whole cell, or a failure during recovery
		} else {
			at += w.Between(100, s.faultsEnd/2)
		}
	}
}

func (w *world) crashOne() {
	if w.members.Len() == 1 {
		return
	}
	w.crash(w.members.Nth(w.Rand().IntN(w.members.Len())))
}

// crashWriter kills, soon after a write in an epoch that follows a failure, the writer and the page's directory: those who know most.
func (w *world) crashWriter(p *part, page ident.PageNo) {
	if p.core.Epoch() != w.epoch || w.Chance(300) {
		return
	}
	w.afterWrite = nil
	dir := p.core.Directory(page)
	w.At(w.Now()+w.Between(0, 20), func() {
		for _, victim := range []ident.Part{p.self, dir} {
			if w.members.Has(victim) && w.members.Len() > 1 {
				w.crash(victim)
			}
		}
	})
}

func (w *world) crash(victim ident.Part) {
	w.Tracef("CRASH %v", victim)
	w.Crash(w.parts[victim].id)
	w.members = w.members.Clear(victim)
	w.dead = w.dead.Set(victim)
	w.epoch++
	w.parts[victim].die()
	w.noteDirectories()
	epoch, members := w.epoch, w.members
	members.Each(func(p ident.Part) {
		w.At(w.Now()+w.Between(0, 1500), func() { w.parts[p].members(epoch, members, false) })
	})
}

// noteDirectories notes who is the directory of each page now: it may grant the page to itself without anybody's knowing.
func (w *world) noteDirectories() {
	regionPages := int(w.parts[0].core.RegionPages())
	for page := range w.touched {
		w.touched[page] = w.touched[page].Set(w.members.Nth(page / regionPages % w.members.Len()))
	}
}

// heal ends all faults: from here on everything must come to its end.
func (w *world) heal() {
	w.Tracef("HEAL")
	w.SetNetwork(kernel.Reliable())
	w.HealAll()
	for _, p := range w.parts {
		if !w.Crashed(p.id) && !w.Running(p.id) {
			w.resume(p.id)
		}
	}
}
