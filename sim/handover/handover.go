// Package handover simulates vCPUs that go from part to part of a VM: a home that hands one after the other over, at random; a network that loses, repeats
// and reorders; parts that stop for a while or die, with or without the VM going on; the guest that goes back to a checkpoint in the midst of it. The
// cores are the production ones.
//
// It holds, after every event,
//   - no vCPU runs at two parts;
//   - a vCPU goes on from where it was: no part runs it in a state that another one has run on from;
//   - while no hand-over is under way, each vCPU is at exactly one part, unless it died with its part: so a cut has each exactly once.
//
// And in the end, when the faults are over, every hand-over has ended.
package handover

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/gang/handover"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "handover",
		Doc:      "vCPUs handed over from part to part: each runs at one part at most, goes on from where it was, and none is lost but with its part",
		Run:      Run,
		Canaries: handover.Canaries,
	})
}

// Run runs the world of a seed. If it fails, it runs it again to tell the end of its story.
func Run(seed uint64, canary string) error {
	if err := run(seed, canary, false); err == nil {
		return nil
	}
	return run(seed, canary, true)
}

func run(seed uint64, canary string, tracing bool) error {
	k := kernel.New(seed, kernel.Network{})
	k.Tracing = tracing
	w := build(k, canary)
	err := w.play()
	if err != nil && tracing {
		err = fmt.Errorf("%w\n%s", err, k.Trace())
	}
	return err
}

// Spans of a run.
const (
	runTime   = 10 * ident.Second
	faultTime = 6 * ident.Second
	askTime   = 20 * ident.Millisecond // that an answer is waited for
	viewTime  = 200 * ident.Millisecond
)

// world is a VM with its parts; part 0 is home.
type world struct {
	*kernel.World
	canary string
	epoch  ident.Epoch
	life   int
	parts  []*part
	seq    uint64
	vcpus  []vcpu
	where  []ident.Part // as the registry has it
	owner  []ident.Part // as home has decided
	over   map[uint64]bool
}

// vcpu is what the world knows of one.
type vcpu struct {
	work uint64 // how far it is
	lost bool   // it died with its part
}

// part is a worker.
type part struct {
	w       *world
	id      ident.Part
	node    kernel.NodeID
	epoch   ident.Epoch // of the members that it knows
	dead    bool
	holder  *handover.Holder
	home    *handover.Home // of part 0
	work    []uint64       // by vCPU: as far as this part has it
	waiting map[ident.VCPU]request
	tokens  map[uint64]handover.Ask // open asks of home
	token   uint64
}

// request is a message to a part; reply is its answer.
type request struct {
	epoch ident.Epoch
	token uint64
	ask   handover.Ask
}

type reply struct {
	token   uint64
	verdict handover.Verdict
	state   []byte
}

func build(k *kernel.World, canary string) *world {
	w := &world{World: k, canary: canary, epoch: 1, over: map[uint64]bool{}}
	r := k.Rand()
	loss := []int{0, 0, 20, 200}[r.IntN(4)]
	k.SetNetwork(kernel.Network{DelayMin: 20, DelayMax: 200, TailShare: r.IntN(100), TailMax: 30 * ident.Millisecond, LossShare: loss, RepeatShare: r.IntN(200)})
	n := 2 + r.IntN(3)
	w.vcpus, w.where = make([]vcpu, 1+r.IntN(4)), make([]ident.Part, 4)
	w.where = w.where[:len(w.vcpus)]
	for i := range n {
		p := &part{w: w, id: ident.Part(i), waiting: map[ident.VCPU]request{}, tokens: map[uint64]handover.Ask{}, work: make([]uint64, len(w.vcpus))}
		p.holder = handover.NewHolder(len(w.vcpus), canary)
		p.node = k.Add(p)
		w.parts = append(w.parts, p)
	}
	for i := range w.where {
		w.where[i] = ident.Part(r.IntN(n))
	}
	w.begin()
	k.Check = w.check
	return w
}

// begin begins a life, with the placement of the registry.
func (w *world) begin() {
	w.life++
	w.owner = slices.Clone(w.where)
	for _, p := range w.parts {
		var mine []ident.VCPU
		for id, at := range w.where {
			if at == p.id {
				mine = append(mine, ident.VCPU(id))
			}
			p.work[id] = w.vcpus[id].work
		}
		p.epoch = w.epoch
		p.holder.Begin(mine)
		clear(p.waiting)
		clear(p.tokens)
		p.home = nil
	}
	for id := range w.vcpus {
		w.vcpus[id].lost = false
	}
	w.parts[0].home = handover.NewHome(w.canary)
}

func (w *world) play() error {
	for _, p := range w.parts {
		w.labour(p)
	}
	w.At(w.Between(0, 10*ident.Millisecond), w.wish)
	for range w.Rand().IntN(4) {
		w.At(w.Between(0, faultTime), w.fault)
	}
	w.At(faultTime, func() { w.SetNetwork(kernel.Network{DelayMin: 20, DelayMax: 200}) })
	if err := w.Run(runTime); err != nil {
		return err
	}
	if w.parts[0].home.Busy() {
		return fmt.Errorf("a hand-over has not ended %d us after the last fault", runTime-faultTime)
	}
	return nil
}

// wish has home hand over something, again and again.
func (w *world) wish() {
	r := w.Rand()
	h := w.parts[0]
	id, to := ident.VCPU(r.IntN(len(w.vcpus))), ident.Part(r.IntN(len(w.parts)))
	if !h.home.Busy() && !w.parts[to].dead && !w.parts[w.where[id]].dead && to != w.where[id] && w.Now() < runTime-2*ident.Second {
		w.seq++
		w.Tracef("home hands vCPU %d over from %d to %d, number %d", id, w.where[id], to, w.seq)
		h.step(handover.Begin{Seq: w.seq, VCPU: id, From: w.where[id], To: to})
	}
	w.At(w.Now()+w.Between(100, 100*ident.Millisecond), w.wish)
}

// labour lets a part's vCPUs run.
func (w *world) labour(p *part) {
	if p.dead {
		return
	}
	for id := range w.vcpus {
		if w.Running(p.node) && p.holder.Runs(ident.VCPU(id)) {
			if v := &w.vcpus[id]; p.work[id] != v.work {
				w.Fail(fmt.Errorf("part %d runs vCPU %d from %d on: it is at %d already", p.id, id, p.work[id], v.work))
			}
			w.vcpus[id].work++
			p.work[id]++
		}
	}
	w.At(w.Now()+w.Between(50, 3*ident.Millisecond), func() { w.labour(p) })
}

// fault lets something go wrong.
func (w *world) fault() {
	r := w.Rand()
	p := w.parts[r.IntN(len(w.parts))]
	switch r.IntN(3) {
	case 0:
		if p.dead || !w.Running(p.node) {
			return
		}
		w.Tracef("part %d stops for a while", p.id)
		w.Pause(p.node)
		w.At(w.Now()+w.Between(ident.Millisecond, 1500*ident.Millisecond), func() { w.Resume(p.node) })
	case 1:
		if p.id != 0 && !p.dead && w.Running(p.node) {
			w.kill(p)
		}
	case 2: // home or its server fails, or the guest crashes: the VM goes on from a checkpoint
		w.Tracef("a new life")
		w.epoch++
		for id, at := range w.where {
			if w.parts[at].dead {
				w.where[id] = 0
			}
		}
		w.begin()
	}
}

// kill ends a part for good; the VM goes on without it, and the others hear of it.
func (w *world) kill(p *part) {
	w.Tracef("part %d dies", p.id)
	p.dead = true
	w.Crash(p.node)
	for id := range w.vcpus {
		w.vcpus[id].lost = w.vcpus[id].lost || w.owner[id] == p.id
	}
	w.At(w.Now()+viewTime, func() {
		w.epoch++
		for _, o := range w.parts {
			if o.dead {
				continue
			}
			life := w.life
			w.At(w.Now()+w.Between(100, 20*ident.Millisecond), func() {
				if w.life == life && o.epoch < w.epoch {
					o.epoch = w.epoch
					o.members()
				}
			})
		}
	})
}
