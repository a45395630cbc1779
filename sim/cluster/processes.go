package cluster

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// Process is a worker process of a server: what the workers of all scenarios have, each of which embeds it in its own. It is started, stopped and killed
// by its serve process, outlives it, is found by the next one, and has the lease that its server passed on.
type Process struct {
	Server      *Server
	Incarnation ident.Incarnation
	VM          ident.VMID
	Part        ident.Part
	PID         int
	Paused      bool // the operating system has stopped it
	Dead        bool

	lease ident.Micros // on the server's clock
	due   ident.Micros // when the last message to it arrives
}

// Proc implements Worker.
func (p *Process) Proc() *Process { return p }

// Leased tells whether its server's lease, as far as it knows, runs.
func (p *Process) Leased() bool { return p.Server.Clock() < p.lease }

// Tell lets its serve process know something, a little later.
func (p *Process) Tell(e monitor.Event) {
	p.Server.After(p.Server.w.Soon(), func() monitor.Event { return e })
}

// Ready is what it says of itself to each serve process.
func (p *Process) Ready(members ident.Epoch) wire.WorkerReady {
	return wire.WorkerReady{VM: p.VM, Part: p.Part, PID: p.PID, StartTime: uint64(p.PID), PageAddr: "sim", Replica: "sim", Epoch: members}
}

// Worker is a scenario's worker. It embeds a Process.
type Worker interface {
	comparable
	Proc() *Process

	// Members is the epoch of the members that it has, 0 before its start.
	Members() ident.Epoch
	// Again says again to a serve process that finds it what it has said before.
	Again()
}

// Shell is what a scenario makes of the processes.
type Shell[W Worker] struct {
	// Within bounds how long a process takes to come up.
	Within ident.Micros
	// New makes a worker of a process that comes up. An error is why it does not.
	New func(*Process, monitor.StartWorker) (W, error)
	// Do carries out what serve tells a worker; false: it is nothing for workers.
	Do func(s *Server, a monitor.Action) bool
	// Stopping, unless nil, is called when a worker was told to stop, before it is gone.
	Stopping func(W, monitor.StopWorker)
}

// Processes are the worker processes of a cluster.
type Processes[W Worker] struct {
	*World
	Workers []W // alive

	shell    Shell[W]
	pids     int
	killed   map[ident.ServerID]ident.Incarnation // up to which a server was told to kill
	starting map[start]*bool                      // that are being started; true: stopped before they came up
}

// start names a process that a serve process is starting.
type start struct {
	boot string
	vm   ident.VMID
}

// NewProcesses gives a cluster its workers.
func NewProcesses[W Worker](w *World, shell Shell[W]) *Processes[W] {
	p := &Processes[W]{World: w, shell: shell, killed: make(map[ident.ServerID]ident.Incarnation), starting: make(map[start]*bool)}
	w.OnAction, w.WorkersLeft, w.Adopt = p.action, p.left, p.adopt
	return p
}

// Soon is how long a message between serve and a worker takes.
func (w *World) Soon() ident.Micros { return w.Between(50, 2*ident.Millisecond) }

// On lists the living workers of a server.
func (p *Processes[W]) On(s *Server) []W {
	var out []W
	for _, x := range p.Workers {
		if x.Proc().Server == s {
			out = append(out, x)
		}
	}
	return out
}

// Find returns a VM's worker on a server; false: there is none.
func (p *Processes[W]) Find(s *Server, vm ident.VMID) (x W, ok bool) {
	for _, x := range p.Workers {
		if x.Proc().Server == s && x.Proc().VM == vm {
			return x, true
		}
	}
	return x, false
}

// action does what a core asks its shell to do about workers.
func (p *Processes[W]) action(s *Server, a monitor.Action) bool {
	switch a := a.(type) {
	case monitor.StartWorker:
		p.start(s, a)
	case monitor.Lease:
		for _, x := range p.On(s) {
			if o := x.Proc(); o.Incarnation == a.Incarnation {
				p.At(p.Now()+p.Soon(), func() { o.lease = max(o.lease, a.Until) })
			}
		}
	case monitor.StopWorker:
		if x, ok := p.Find(s, a.VM); ok {
			p.At(p.Now()+p.Between(ident.Millisecond, 20*ident.Millisecond), func() {
				if p.shell.Stopping != nil {
					p.shell.Stopping(x, a)
				}
				p.Die(x, "exit status 0")
			})
		} else if canceled := p.starting[start{s.Boot(), a.VM}]; canceled != nil {
			*canceled = true
		}
	case monitor.KillWorkers:
		p.killed[s.ID] = max(p.killed[s.ID], a.UpTo)
		s.After(p.Between(ident.Millisecond, 50*ident.Millisecond), func() monitor.Event {
			for _, x := range p.On(s) {
				if x.Proc().Incarnation <= a.UpTo {
					p.bury(x)
				}
			}
			return monitor.WorkersKilled{UpTo: a.UpTo}
		})
	default:
		return p.shell.Do(s, a)
	}
	return true
}

func (p *Processes[W]) start(s *Server, a monitor.StartWorker) {
	key, canceled := start{s.Boot(), a.Spec.VM}, false
	p.starting[key] = &canceled
	s.After(p.Between(ident.Millisecond, p.shell.Within), func() monitor.Event {
		delete(p.starting, key)
		if canceled {
			return monitor.WorkerGone{VM: a.Spec.VM, Reason: "it was stopped before it came up"}
		}
		if _, runs := p.Find(s, a.Spec.VM); runs || a.Spec.Incarnation <= p.killed[s.ID] {
			return nil // it runs, or must not be started any more
		}
		p.pids++
		o := &Process{Server: s, Incarnation: a.Spec.Incarnation, VM: a.Spec.VM, Part: a.Spec.Part, PID: p.pids}
		if s.Lease.Incarnation == o.Incarnation {
			o.lease = s.Lease.Until
		}
		x, err := p.shell.New(o, a)
		if err != nil {
			return monitor.WorkerGone{VM: a.Spec.VM, Reason: err.Error()}
		}
		p.Workers = append(p.Workers, x)
		return monitor.WorkerReady{Incarnation: o.Incarnation, Ready: o.Ready(0)}
	})
}

// Deliver has a server's worker for a VM, if there is one, do something a little later, or once it is continued: all in the order in which it was sent.
func (p *Processes[W]) Deliver(s *Server, vm ident.VMID, f func(W)) {
	if x, ok := p.Find(s, vm); ok {
		p.DeliverTo(x, func() { f(x) })
	}
}

// DeliverTo is Deliver for a worker that is known.
func (p *Processes[W]) DeliverTo(x W, f func()) {
	o := x.Proc()
	var try func()
	try = func() {
		switch {
		case o.Dead:
		case o.Paused:
			p.At(p.Now()+10*ident.Millisecond, try)
		default:
			f()
		}
	}
	o.due = max(o.due+1, p.Now()+p.Soon())
	p.At(o.due, try)
}

// bury takes a dead worker off the list.
func (p *Processes[W]) bury(x W) {
	x.Proc().Dead = true
	p.Workers = slices.DeleteFunc(p.Workers, func(o W) bool { return o == x })
}

// Die ends a worker; its serve notices.
func (p *Processes[W]) Die(x W, reason string) {
	o := x.Proc()
	if o.Dead {
		return
	}
	p.bury(x)
	o.Tell(monitor.WorkerGone{VM: o.VM, PID: o.PID, Reason: reason})
}

// KillAll ends all processes of a server; others may notice that connections broke.
func (p *Processes[W]) KillAll(s *Server) {
	if p.Calm() {
		return
	}
	p.CrashAll(s, false)
	for _, o := range p.Servers {
		if o != s && p.Chance(600) {
			o.After(p.Soon(), func() monitor.Event { return monitor.Hint{Server: s.ID, Source: "connection reset"} })
		}
	}
}

// CrashAll ends all processes of a server, and with power the machine, and nobody notices.
func (p *Processes[W]) CrashAll(s *Server, power bool) {
	if p.Calm() {
		return
	}
	s.Crash(power)
	for _, x := range p.On(s) {
		p.bury(x)
	}
}

// Still stops the serve process of a server, and if all is set its workers.
func (p *Processes[W]) Still(s *Server, all bool) {
	if p.Calm() {
		return
	}
	s.Pause()
	for _, x := range p.On(s) {
		x.Proc().Paused = all
	}
}

// GoOn is the end of Still.
func (p *Processes[W]) GoOn(s *Server) {
	for _, x := range p.On(s) {
		x.Proc().Paused = false
	}
	s.Resume()
}

// AllGoOn continues all workers.
func (p *Processes[W]) AllGoOn() {
	for _, x := range p.Workers {
		x.Proc().Paused = false
	}
}

// left tells whether workers of a server's incarnation are alive: then there is no proof that it is gone.
func (p *Processes[W]) left(s *Server, upTo ident.Incarnation) bool {
	return slices.ContainsFunc(p.On(s), func(x W) bool { return x.Proc().Incarnation <= upTo })
}

// adopt is what a starting serve finds in its data directory.
func (p *Processes[W]) adopt(s *Server) []monitor.AdoptedWorker {
	var out []monitor.AdoptedWorker
	for _, x := range p.On(s) {
		o := x.Proc()
		out = append(out, monitor.AdoptedWorker{Incarnation: o.Incarnation, Ready: o.Ready(x.Members())})
		x.Again()
	}
	return out
}
