package locality

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// world is one run of a shape under a policy. Part 0 is home.
type world struct {
	*kernel.World
	shape    Shape
	parts    []*part
	vcpus    []*vcpu
	latest   []uint64
	chooser  *locality.Chooser
	registry *registry
	rng      *rand.Rand // of the programs: the same under each policy

	round, phase int // the phase that runs
	began        ident.Micros
	busy         int // vCPUs that are not done with the phase
	over         bool
	moves, homes []ident.Micros
	result       Result
}

// Play runs the shape under a policy.
func (s Shape) Play(policy locality.Policy) (Result, error) {
	canary := s.Canary
	if canary == canaryUnasked {
		canary = ""
	}
	w := &world{World: kernel.New(s.Seed, s.Network), shape: s, latest: make([]uint64, allPages), rng: rand.New(rand.NewPCG(s.Seed, 7)), round: -1,
		registry: newRegistry(s), chooser: locality.NewChooser(policy, s.VCPUs, canary)}
	w.build(policy)
	if s.Told {
		for i := range s.Parts {
			w.chooser.Room(ident.Part(i), s.Slots)
		}
	}
	end := longest
	if s.Class == Steady {
		end = steadyTime
	}
	if err := w.RunUntil(end, func() bool { return w.over }); err != nil {
		return w.result, err
	}
	if !w.over && s.Class != Steady {
		return w.result, fmt.Errorf("round %d, phase %v has not ended after %d us", w.round, s.Phases[w.phase], w.Now())
	}
	for _, p := range w.parts {
		if err := p.core.Check(); err != nil {
			return w.result, err
		}
	}
	return w.summary(), nil
}

func (w *world) build(policy locality.Policy) {
	s := &w.shape
	var members ident.PartSet
	for i := range s.Parts {
		self := ident.Part(i)
		members = members.Set(self)
		p := &part{w: w, self: self, observer: locality.NewObserver(policy, s.VCPUs), memfd: make([]uint64, allPages), readable: make([]bool, allPages), writable: make([]bool, allPages),
			core: mem.New(mem.Config{Self: self, Pages: allPages, RegionPages: apart, Window: mem.DefaultWindow, ReadAhead: mem.DefaultReadAhead, Observe: true,
				Rehome: policy.Rehomes()})}
		p.id = w.Add(p)
		w.parts = append(w.parts, p)
	}
	for i := range s.VCPUs {
		w.vcpus = append(w.vcpus, &vcpu{w: w, id: ident.VCPU(i), part: w.parts[i%s.Parts], done: true})
	}
	for _, p := range w.parts {
		p.step(0, mem.Event{Kind: mem.EventMembers, Epoch: 1, Members: members, Fresh: true}, 0)
		w.At(tickTime+ident.Micros(p.self), func() { w.report(p, 0) })
	}
	for range s.Cordons {
		w.planCordon(ident.Part(w.Rand().IntN(s.Parts)))
	}
	w.At(tickTime+tickTime/2, w.tick)
	w.phase = len(s.Phases) - 1
	w.nextPhase()
}

// planCordon cordons a part's server for a while.
func (w *world) planCordon(p ident.Part) {
	from := w.Between(0, ident.Second)
	w.At(from, func() { w.Fail(w.registry.cordon(p, true)) })
	w.At(from+w.Between(0, ident.Second), func() { w.Fail(w.registry.cordon(p, false)) })
}

func (w *world) summary() Result {
	r := w.result
	r.Total, r.Moves = w.Now(), len(w.moves)
	for _, at := range w.moves {
		if at > w.Now()/2 {
			r.Late++
		}
	}
	r.Homes = len(w.homes)
	for _, at := range w.homes {
		if at > w.Now()/2 {
			r.LateHomes++
		}
	}
	for _, p := range w.parts {
		c := p.core.Counters()
		r.Remote += c.RemoteReads + c.RemoteWrites + c.Upgrades
	}
	return r
}

// nextPhase begins the next phase, when all vCPUs are done with the last.
func (w *world) nextPhase() {
	s := &w.shape
	if w.phase++; w.phase == len(s.Phases) {
		w.round, w.phase = w.round+1, 0
	}
	if w.round == s.Rounds {
		w.over = true
		return
	}
	turn := 0
	if s.Shift {
		turn = w.round
	}
	w.began, w.busy = w.Now(), len(w.vcpus)
	for _, v := range w.vcpus {
		v.program, v.has, v.done = w.programOf(int(v.id), s.VCPUs, turn, s.Phases[w.phase]), false, false
		w.At(w.Now()+ident.Micros(v.id), v.resume)
	}
}

// finished notes that a vCPU is done with the phase.
func (w *world) finished() {
	if w.busy--; w.busy > 0 {
		return
	}
	w.result.Times[w.shape.Phases[w.phase]] += w.Now() - w.began
	w.At(w.Now()+1, w.nextPhase)
}

// report tells home what a part's vCPUs waited for.
func (w *world) report(p *part, aged ident.Micros) {
	if aged += tickTime; aged >= ageTime {
		aged = 0
		p.observer.Age()
	}
	var here []ident.VCPU
	for _, v := range w.vcpus {
		if v.part == p {
			here = append(here, v.id)
		}
	}
	if b := p.observer.AppendReport(nil, here); len(b) > 0 && !w.Chance(w.shape.LostReports) {
		w.At(w.Now()+w.Between(0, 300), func() {
			r, err := locality.ParseReport(p.self, b)
			if err != nil {
				w.Fail(err)
				return
			}
			w.chooser.Take(w.Now(), &r)
		})
	}
	w.At(w.Now()+tickTime, func() { w.report(p, aged) })
}

func (w *world) tick() {
	if wish, ok := w.chooser.Tick(w.Now()); ok {
		w.result.Asked++
		if !w.Chance(w.shape.LostWishes) {
			w.At(w.Now()+agreeTime, func() { w.ask(wish) })
		}
	}
	w.At(w.Now()+tickTime, w.tick)
}

// ask has the registry decide on a wish. One that is not granted is not answered: home wishes anew when it still would.
func (w *world) ask(wish locality.Wish) {
	hand := &cells.Hand{VCPU: wish.VCPU, From: wish.From, To: wish.To}
	if w.shape.Canary != canaryUnasked {
		var err error
		if hand, err = w.registry.pull(wish); err != nil || hand == nil {
			w.Fail(err)
			return
		}
	}
	v := w.vcpus[hand.VCPU]
	switch {
	case int(hand.To) >= len(w.parts) || v.part.self != hand.From || v.to != nil:
		w.Fail(fmt.Errorf("vCPU %d of %v is to go from %v to %v", hand.VCPU, v.part.self, hand.From, hand.To))
	case w.registry.cordoned[hand.To]:
		w.Fail(fmt.Errorf("vCPU %d is to go to %v, whose server is cordoned", hand.VCPU, hand.To))
	}
	v.hand, v.to = *hand, w.parts[hand.To]
	if v.done {
		v.transfer()
	}
}

// homed notes that a region's directory is to go elsewhere.
func (w *world) homed(now ident.Micros) { w.homes = append(w.homes, now) }

// transferred notes that a vCPU runs at another part now.
func (w *world) transferred(v *vcpu) {
	w.moves = append(w.moves, w.Now())
	if w.shape.Canary != canaryUnasked {
		w.Fail(w.registry.handed(v.hand))
	}
	w.chooser.Moved(w.Now(), v.id, v.part.self)
	n := 0
	for _, u := range w.vcpus {
		if u.part == v.part {
			n++
		}
	}
	if n > w.shape.Slots {
		w.Fail(errors.New(fmt.Sprint(v.part.self, " runs ", n, " vCPUs on ", w.shape.Slots, " slots")))
	}
}
