package contain

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/wire"
)

// worker is a simulated worker process.
type worker struct {
	w       *world
	server  *cluster.Server
	inc     ident.Incarnation
	vm      ident.VMID
	part    ident.Part
	home    bool
	pid     int
	members ident.Epoch  // 0 before its start
	lease   ident.Micros // on the server's clock
	paused  bool
	dead    bool
	ended   *wire.WorkerEnded
}

// runs tells whether its vCPUs run now.
func (x *worker) runs() bool {
	return !x.dead && !x.paused && x.ended == nil && x.members > 0 && x.server.Clock() < x.lease
}

func (x *worker) ready() wire.WorkerReady {
	return wire.WorkerReady{VM: x.vm, Part: x.part, PID: x.pid, StartTime: uint64(x.pid), PageAddr: "sim", Epoch: x.members}
}

// end lets the guest end: home says that it exited, another part that it failed.
func (x *worker) end() {
	x.ended = &wire.WorkerEnded{State: "failed", Reason: "triple fault"}
	if x.home {
		x.ended = &wire.WorkerEnded{State: "exited"}
	}
	x.tellEnd()
}

func (x *worker) tellEnd() {
	e := *x.ended
	x.server.After(x.w.Between(50, 2000), func() monitor.Event { return monitor.WorkerEnded{VM: x.vm, Ended: e} })
}

// soon is how long a message between serve and a worker takes.
func (w *world) soon() ident.Micros { return w.Between(50, 2*ident.Millisecond) }

// on lists the living workers of a server.
func (w *world) on(s *cluster.Server) []*worker {
	var out []*worker
	for _, x := range w.workers {
		if x.server == s {
			out = append(out, x)
		}
	}
	return out
}

func (w *world) find(s *cluster.Server, vm ident.VMID) *worker {
	for _, x := range w.workers {
		if x.server == s && x.vm == vm {
			return x
		}
	}
	return nil
}

// action does what a core asks its shell to do about workers.
func (w *world) action(s *cluster.Server, a monitor.Action) bool {
	switch a := a.(type) {
	case monitor.StartWorker:
		w.start(s, a)
	case monitor.SendMembers:
		x := w.find(s, a.VM)
		w.At(w.Now()+w.soon(), func() {
			if x != nil && !x.dead && a.Members.Epoch > x.members {
				x.members = a.Members.Epoch
			}
		})
	case monitor.Lease:
		for _, x := range w.on(s) {
			if x.inc == a.Incarnation {
				w.At(w.Now()+w.soon(), func() { x.lease = max(x.lease, a.Until) })
			}
		}
	case monitor.StopWorker:
		x := w.find(s, a.VM)
		if x == nil {
			if c := w.starting[start{s.Boot(), a.VM}]; c != nil {
				*c = true
			}
			break
		}
		w.At(w.Now()+w.Between(ident.Millisecond, 20*ident.Millisecond), func() { w.die(x, "exit status 0") })
	case monitor.KillWorkers:
		w.killed[s.ID] = max(w.killed[s.ID], a.UpTo)
		s.After(w.Between(ident.Millisecond, 50*ident.Millisecond), func() monitor.Event {
			for _, x := range w.on(s) {
				if x.inc <= a.UpTo {
					w.bury(x)
				}
			}
			return monitor.WorkersKilled{UpTo: a.UpTo}
		})
	default:
		return false
	}
	return true
}

// start names a worker that a serve process is starting.
type start struct {
	boot string
	vm   ident.VMID
}

func (w *world) start(s *cluster.Server, a monitor.StartWorker) {
	key, canceled := start{s.Boot(), a.Spec.VM}, false
	w.starting[key] = &canceled
	s.After(w.Between(ident.Millisecond, 30*ident.Millisecond), func() monitor.Event {
		delete(w.starting, key)
		if canceled {
			return monitor.WorkerGone{VM: a.Spec.VM, Reason: "it was stopped before it came up"}
		}
		if w.find(s, a.Spec.VM) != nil || a.Spec.Incarnation <= w.killed[s.ID] {
			return nil // it runs, or must not be started any more
		}
		if w.Chance(10) {
			w.ended[a.Spec.VM] = "its worker did not start"
			return monitor.WorkerGone{VM: a.Spec.VM, Reason: "out of memory"}
		}
		w.pids++
		x := &worker{w: w, server: s, inc: a.Spec.Incarnation, vm: a.Spec.VM, part: a.Spec.Part, home: a.Spec.Part == 0, pid: w.pids}
		if s.Lease.Incarnation == x.inc {
			x.lease = s.Lease.Until
		}
		w.workers = append(w.workers, x)
		return monitor.WorkerReady{Incarnation: x.inc, Ready: x.ready()}
	})
}

// bury takes a dead worker off the list.
func (w *world) bury(x *worker) {
	x.dead = true
	w.workers = slices.DeleteFunc(w.workers, func(o *worker) bool { return o == x })
}

// die ends a worker; its serve notices.
func (w *world) die(x *worker, reason string) {
	if x.dead {
		return
	}
	w.bury(x)
	x.server.After(w.soon(), func() monitor.Event { return monitor.WorkerGone{VM: x.vm, PID: x.pid, Reason: reason} })
}

// kill ends all processes of a server.
func (w *world) kill(s *cluster.Server) {
	if w.Calm() {
		return
	}
	s.Crash(false)
	for _, x := range w.on(s) {
		w.bury(x)
	}
	for _, o := range w.Servers {
		if o != s && w.Chance(600) {
			o.After(w.soon(), func() monitor.Event { return monitor.Hint{Server: s.ID, Source: "connection reset"} })
		}
	}
}

func (w *world) still(s *cluster.Server, all bool) {
	if w.Calm() {
		return
	}
	s.Pause()
	for _, x := range w.on(s) {
		x.paused = all
	}
}

func (w *world) goOn(s *cluster.Server) {
	for _, x := range w.on(s) {
		x.paused = false
	}
	s.Resume()
}

// left tells whether workers of a server's incarnation are alive: then there is no proof that it is gone.
func (w *world) left(s *cluster.Server, upTo ident.Incarnation) bool {
	return slices.ContainsFunc(w.on(s), func(x *worker) bool { return x.inc <= upTo })
}

// adopt is what a starting serve finds in its data directory.
func (w *world) adopt(s *cluster.Server) []monitor.AdoptedWorker {
	var out []monitor.AdoptedWorker
	for _, x := range w.on(s) {
		out = append(out, monitor.AdoptedWorker{Incarnation: x.inc, Ready: x.ready()})
		if x.ended != nil {
			x.tellEnd() // it repeats this on each new connection
		}
	}
	return out
}
