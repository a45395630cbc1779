// Package gang simulates the gang scheduler: servers whose clocks differ, VMs inside and across them whose vCPUs idle and wake, messages that take
// their time, serve processes that stop for a while or restart, servers that die. The cores are the production ones; a simulated worker obeys
// orders as the real one does, by its server's clock, and is free when its serve is gone or silent.
//
// It holds, at any time, but for the moments that a message takes,
//   - a slot is used by one part at a time;
//   - a VM over several servers runs on all of them or on none, as long as no fault is near;
//   - a VM that has work does not wait longer than its weight explains, whoever else there is;
//   - nobody waits for a conductor that is silent longer than the lease of a slice.
//
// In worlds without idling and faults, whose gangs exclude each other, each VM gets its weight's share within 5%.
package gang

import (
	"fmt"

	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/kernel"
	"github.com/cellvisor/cellvisor/wire"
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "gang",
		Doc:      "gangs of mixed sizes and weights on several servers: together or not at all, nobody starves, nobody waits for the dead",
		Run:      Run,
		Canaries: gang.Canaries,
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
	k := kernel.New(seed, kernel.Network{DelayMin: 30, DelayMax: 300, TailShare: 10, TailMax: 2 * ident.Millisecond, InOrder: true})
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
	runTime    = 12 * ident.Second
	sampleTime = 500 * ident.Micros(1)
	detectTime = 1700 * ident.Millisecond // from a server's death to the view without it
	controlLag = 100 * ident.Micros(1)    // from serve to worker
)

type world struct {
	*kernel.World
	canary  string
	epoch   ident.Epoch
	servers []*server
	vms     []*vm
	fair    bool         // no idling, no faults, equal sizes: shares must be right
	old     bool         // a server knows nothing of slices ahead of time
	steady  bool         // no idling: every gang that runs must have slots for all its vCPUs
	calm    ident.Micros // no fault is felt any more from then on
}

// server is a serve process with its workers.
type server struct {
	w       *world
	id      ident.ServerID
	node    kernel.NodeID
	slots   int
	core    *gang.Core
	run     int // serve processes so far
	dead    bool
	paused  ident.Micros // since when, if it is
	resumed ident.Micros
	pausing bool
	workers map[ident.VMID]*worker
}

// worker is one part of a VM.
type worker struct {
	vm       *vm
	vcpus    int
	busy     int
	mode     wire.SliceMode
	slots    []uint16
	until    ident.Micros     // server's clock
	pending  []wire.SliceTurn // what was ordered for times to come
	timers   int              // set so far; an older one means nothing
	orders   int              // how many came; an older one's time-out means nothing
	arrival  ident.Micros     // of the last order
	overlaps ident.Micros     // since when another part uses one of its slots, -1: none
}

type vm struct {
	gang.VM
	waits  ident.Micros // since when it has work and does not run, -1: it does not wait
	splits ident.Micros // since when it runs in part, -1: it does not
	ran    ident.Micros
	idles  bool // its vCPUs idle now and then
}

func build(k *kernel.World, canary string) *world {
	w := &world{World: k, canary: canary, epoch: 1}
	r := k.Rand()
	w.fair = r.IntN(4) == 0
	w.steady = w.fair || r.IntN(3) == 0
	w.old = r.IntN(4) == 0
	servers := 1 + r.IntN(4)
	for i := range servers {
		s := &server{w: w, id: ident.ServerID(i + 1), slots: 1 + r.IntN(4), workers: map[ident.VMID]*worker{}}
		s.node = k.Add(s)
		k.SetClock(s.node, k.Between(0, 5*ident.Second), int64(r.IntN(41)-20))
		w.servers = append(w.servers, s)
	}
	for i := range 2 + r.IntN(8) {
		w.addVM(ident.VMID(i + 1))
	}
	return w
}

func (w *world) addVM(id ident.VMID) {
	r := w.Rand()
	v := &vm{VM: gang.VM{ID: id, Weight: []int{100, 100, 50, 200, 400}[r.IntN(5)]}, waits: -1, splits: -1}
	v.idles = !w.steady && r.IntN(2) == 0
	spans := 1
	if r.IntN(2) == 0 {
		spans += r.IntN(len(w.servers))
	}
	if w.fair {
		spans = len(w.servers)
	}
	for _, i := range r.Perm(len(w.servers))[:spans] {
		s := w.servers[i]
		n := 1 + r.IntN(s.slots)
		if w.fair {
			n = s.slots
		}
		v.Parts = append(v.Parts, gang.Part{Server: s.id, VCPUs: n})
		s.workers[id] = &worker{vm: v, vcpus: n, busy: n, overlaps: -1}
	}
	w.vms = append(w.vms, v)
}

// view is what the replicated state would say now.
func (w *world) view() gang.View {
	v := gang.View{Epoch: w.epoch}
	for _, s := range w.servers {
		if !s.dead {
			v.Servers = append(v.Servers, gang.Server{ID: s.id, Slots: s.slots})
		}
	}
	for _, vm := range w.vms {
		v.VMs = append(v.VMs, vm.VM)
	}
	return v
}

func (w *world) play() error {
	for _, s := range w.servers {
		s.start()
	}
	for _, s := range w.servers {
		for _, vm := range w.vms {
			if k := s.workers[vm.ID]; k != nil && vm.idles {
				w.live(s, k)
			}
		}
	}
	if !w.fair {
		for range w.Rand().IntN(4) {
			w.At(w.Between(ident.Second, runTime-4*ident.Second), w.fault)
		}
	}
	w.sample()
	if err := w.Run(runTime); err != nil {
		return err
	}
	return w.checkShares()
}

// live lets the vCPUs of a part idle and work at random.
func (w *world) live(s *server, k *worker) {
	for range k.vcpus {
		working := true
		var next func()
		next = func() {
			if s.dead {
				return
			}
			working = !working
			if working {
				k.busy++
			} else {
				k.busy--
			}
			s.note(k)
			d := w.Between(ident.Millisecond, 60*ident.Millisecond)
			if w.Chance(10) {
				d = w.Between(ident.Second, 5*ident.Second)
			}
			w.At(w.Now()+d, next)
		}
		w.At(w.Between(0, 100*ident.Millisecond), next)
	}
}

// fault lets something go wrong.
func (w *world) fault() {
	s := w.servers[w.Rand().IntN(len(w.servers))]
	if s.dead || s.pausing {
		return
	}
	switch w.Rand().IntN(3) {
	case 0: // SIGSTOP of serve, shorter than its lease
		d := w.Between(10*ident.Millisecond, 1400*ident.Millisecond)
		w.Tracef("server %d: serve stops for %d us", s.id, d)
		w.felt(d + gang.OrderLease)
		s.pausing, s.paused = true, w.Now()
		w.Pause(s.node)
		w.At(w.Now()+d, func() {
			if !s.dead {
				s.pausing, s.resumed = false, w.Now()
				w.Resume(s.node)
			}
		})
	case 1: // serve is killed and started again
		w.Tracef("server %d: serve restarts", s.id)
		w.felt(gang.OrderLease)
		w.Crash(s.node)
		s.core = nil
		for _, vm := range w.vms {
			if k := s.workers[vm.ID]; k != nil {
				k.free()
			}
		}
		w.Restart(s.node, s)
		w.At(w.Now()+w.Between(ident.Millisecond, 300*ident.Millisecond), s.start)
	case 2:
		w.kill(s)
	}
}

// felt says that a fault happens whose effects last for d.
func (w *world) felt(d ident.Micros) { w.calm = max(w.calm, w.Now()+d) }

// kill ends a server with its workers; the view follows, and the VMs of the server go on without it.
func (w *world) kill(s *server) {
	alive := 0
	for _, o := range w.servers {
		if !o.dead {
			alive++
		}
	}
	if alive == 1 {
		return
	}
	w.Tracef("server %d dies", s.id)
	w.felt(detectTime + gang.OrderLease)
	s.dead = true
	w.Crash(s.node)
	w.At(w.Now()+detectTime, func() {
		w.epoch++
		var left []*vm
		for _, vm := range w.vms {
			var parts []gang.Part
			for _, p := range vm.Parts {
				if p.Server != s.id {
					parts = append(parts, p)
				}
			}
			if vm.Parts = parts; len(parts) > 0 {
				left = append(left, vm)
			}
		}
		w.vms = left
		for _, o := range w.servers {
			if !o.dead {
				w.At(w.Now()+w.Between(100, 5*ident.Millisecond), o.learnView)
			}
		}
	})
}
