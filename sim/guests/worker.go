package guests

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/wire"
)

// worker is a simulated worker process: a member of a VM, perhaps its home, or a standby.
type worker struct {
	w      *World
	server *cluster.Server
	inc    ident.Incarnation
	first  ident.Epoch // the VM's, in which it was created
	vm     ident.VMID
	part   ident.Part
	pid    int
	epoch  ident.Epoch // of its members; 0 before its start, and while it is a standby
	lease  ident.Micros
	paused bool // its process is stopped
	still  bool // its VM is paused by an operator
	dead   bool
	home   bool
	ended  *wire.WorkerEnded
	due    ident.Micros // when the last message to it arrives
	looked ident.Micros // when it last looked at the time

	members  wire.WorkerMembers
	whole    bool // all members have come
	ran      bool // as home of a VM that went back: the image is no longer whole
	restored *wire.WorkerRestored

	guest    guest // at home
	released int   // of its records, how many have left
	protect  wire.WorkerProtect
	busy     bool // a checkpoint is on its way
	safe     ident.PartSet
	told     uint64 // the Seq that serve was told complete
	asked    uint64 // the Seq under which a switchover is wanted
	frozen   bool   // for a switchover: only the registry's word ends it
	switched *wire.WorkerSwitched

	replica, before guest // of a standby: as of the last checkpoint, and of the one before
	has             bool
	taken           bool
}

// acts tells whether it may do anything now.
func (x *worker) acts() bool {
	return !x.dead && !x.paused && !x.still && x.epoch > 0 && x.ended == nil && x.leased()
}

func (x *worker) leased() bool { return x.server.Clock() < x.lease }

func (x *worker) ready() wire.WorkerReady {
	return wire.WorkerReady{VM: x.vm, Part: x.part, PID: x.pid, StartTime: uint64(x.pid), PageAddr: "sim", Replica: "sim", Epoch: x.epoch}
}

// reaches tells whether two servers' workers can talk.
func (w *World) reaches(a, b ident.ServerID) bool {
	return a == b || !w.cuts[pair(a, b)]
}

func pair(a, b ident.ServerID) [2]ident.ServerID { return [2]ident.ServerID{min(a, b), max(a, b)} }

// peer returns another part's worker if it can be reached now.
func (x *worker) peer(part ident.Part) *worker {
	for _, y := range x.w.workers {
		if y.vm == x.vm && y.part == part && !y.dead && !y.paused && x.w.reaches(x.server.ID, y.server.ID) {
			return y
		}
	}
	return nil
}

// action does what a core asks its shell to do about workers.
func (w *World) action(s *cluster.Server, a monitor.Action) bool {
	switch a := a.(type) {
	case monitor.StartWorker:
		w.start(s, a)
	case monitor.SendMembers:
		x := w.find(s, a.VM)
		w.deliver(x, func() { x.takeMembers(a.Members) })
	case monitor.SendProtect:
		x := w.find(s, a.VM)
		w.deliver(x, func() { x.takeProtect(a.Protect) })
	case monitor.SendPause:
		x := w.find(s, a.VM)
		w.deliver(x, func() {
			x.still = a.Pause.On
			s.After(w.soon(), func() monitor.Event { return monitor.WorkerPaused{VM: a.VM, Seq: a.Pause.Seq} })
		})
	case monitor.SendSwitch:
		x := w.find(s, a.VM)
		w.deliver(x, func() { x.asked = a.Seq })
	case monitor.Lease:
		for _, x := range w.on(s) {
			if x.inc == a.Incarnation {
				w.At(w.Now()+w.soon(), func() { x.lease = max(x.lease, a.Until) })
			}
		}
	case monitor.StopWorker:
		if x := w.find(s, a.VM); x != nil {
			w.At(w.Now()+w.Between(ident.Millisecond, 20*ident.Millisecond), func() {
				if a.Final && x.home {
					w.release(x, len(x.guest.log))
				}
				w.die(x, "exit status 0")
			})
		} else if c := w.starting[start{s.Boot(), a.VM}]; c != nil {
			*c = true
		}
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

// deliver has a worker do something a little later, or once it is continued: all in the order in which it was sent.
func (w *World) deliver(x *worker, f func()) {
	if x == nil {
		return
	}
	var try func()
	try = func() {
		switch {
		case x.dead:
		case x.paused:
			w.At(w.Now()+10*ident.Millisecond, try)
		default:
			f()
		}
	}
	x.due = max(x.due+1, w.Now()+w.soon())
	w.At(x.due, try)
}

// start names a worker that a serve process is starting.
type start struct {
	boot string
	vm   ident.VMID
}

func (w *World) start(s *cluster.Server, a monitor.StartWorker) {
	key, canceled := start{s.Boot(), a.Spec.VM}, false
	w.starting[key] = &canceled
	s.After(w.Between(ident.Millisecond, 100*ident.Millisecond), func() monitor.Event {
		delete(w.starting, key)
		if canceled {
			return monitor.WorkerGone{VM: a.Spec.VM, Reason: "it was stopped before it came up"}
		}
		if w.find(s, a.Spec.VM) != nil || a.Spec.Incarnation <= w.killed[s.ID] {
			return nil // it runs, or must not be started any more
		}
		model, err := Modelled(a.Spec.Builtin, a.Spec.Args)
		if err != nil {
			return monitor.WorkerGone{VM: a.Spec.VM, Reason: err.Error()}
		}
		w.pids++
		x := &worker{w: w, server: s, inc: a.Spec.Incarnation, vm: a.Spec.VM, part: a.Spec.Part, pid: w.pids, first: a.Created, guest: guest{program: model}}
		if s.Lease.Incarnation == x.inc {
			x.lease = s.Lease.Until
		}
		w.workers = append(w.workers, x)
		x.live()
		return monitor.WorkerReady{Incarnation: x.inc, Ready: x.ready()}
	})
}

// takeMembers enters an epoch: as a member, or, for the standby that is named, as the new home with its replica.
func (x *worker) takeMembers(m wire.WorkerMembers) {
	if m.Epoch <= x.epoch {
		return
	}
	x.whole = !m.Restore
	booted := x.epoch > 0 && m.Booted > x.members.Booted
	x.members, x.frozen, x.asked = m, false, 0
	if booted { // in place: a crash is not the end then
		x.ended, x.busy = nil, false
		x.guest.boot()
	}
	if m.Restore && m.Image == x.part {
		if !x.has || x.taken && x.told > 0 || x.taken && x.ran {
			x.end(wire.WorkerEnded{State: "failed", Reason: "told to take over without a replica", Host: true})
			x.w.Tracef("vm %d part %d is told to take over and has nothing", x.vm, x.part)
			return
		}
		x.taken, x.guest = true, x.replica.saved()
		if x.w.Canary == CanaryStaleReplica {
			x.guest = x.before.saved()
		}
		x.released = 0
		x.w.release(x, len(x.guest.log)) // its log file has all of it
	} else if m.Restore {
		x.busy, x.safe = false, 0
	}
	x.epoch, x.home = m.Epoch, m.Home == x.part
}

// begin lets a VM that went back run, once all its members have come.
func (x *worker) begin() bool {
	for _, m := range x.members.Members {
		if y := x.peer(m.Part); y == nil || y.epoch != x.epoch || !y.acts() {
			return false
		}
	}
	x.whole, x.ran = true, true
	x.restored = &wire.WorkerRestored{Epoch: x.epoch, RemapMicros: x.w.Between(200, 2000), ResumeMicros: x.w.Between(50, 500)}
	x.tell(monitor.WorkerRestored{VM: x.vm, Restored: *x.restored})
	return true
}

func (x *worker) tell(e monitor.Event) { x.server.After(x.w.soon(), func() monitor.Event { return e }) }

// end ends the VM as seen from this part.
func (x *worker) end(e wire.WorkerEnded) {
	if x.ended == nil {
		x.ended = &e
		x.tell(monitor.WorkerEnded{VM: x.vm, Ended: e})
	}
}

// runnable tells whether the guest can run: the part that has vCPU 0 acts and can be reached.
func (x *worker) runnable() bool {
	for _, m := range x.members.Members {
		if len(m.VCPUs) > 0 && m.VCPUs[0] == 0 {
			y := x.peer(m.Part)
			return y != nil && y.acts() && y.epoch == x.epoch
		}
	}
	return true
}

// live is the worker's own doing, every few milliseconds.
func (x *worker) live() {
	if x.dead {
		return
	}
	x.w.At(x.w.Now()+x.w.Between(5*ident.Millisecond, 25*ident.Millisecond), x.live)
	span := x.w.Now() - x.looked
	x.looked = x.w.Now()
	if !x.acts() || !x.home || !x.whole && !x.begin() {
		return
	}
	protected := x.protect.Home == x.part && x.protect.Standbys != 0
	if !x.frozen && x.runnable() {
		x.guest.run(min(span, 100*ident.Millisecond), x.epoch)
	}
	if !protected || x.safe == 0 && !x.busy {
		x.w.release(x, len(x.guest.log))
	}
	if x.guest.done && x.released == len(x.guest.log) {
		x.end(wire.WorkerEnded{State: "exited", Reason: "the guest ended the VM"})
		return
	}
	if protected && !x.busy && !x.frozen {
		x.cut()
	}
}

// adopt is what a starting serve finds in its data directory; the workers repeat what they have said.
func (w *World) adopt(s *cluster.Server) []monitor.AdoptedWorker {
	var out []monitor.AdoptedWorker
	for _, x := range w.on(s) {
		out = append(out, monitor.AdoptedWorker{Incarnation: x.inc, Ready: x.ready()})
		if x.told > 0 {
			x.tell(monitor.WorkerProtected{VM: x.vm, Protected: wire.WorkerProtected{Seq: x.told}})
		}
		if x.restored != nil {
			x.tell(monitor.WorkerRestored{VM: x.vm, Restored: *x.restored})
		}
		if x.switched != nil {
			x.tell(monitor.WorkerSwitched{VM: x.vm, Switched: *x.switched})
		}
		if x.ended != nil {
			x.tell(monitor.WorkerEnded{VM: x.vm, Ended: *x.ended})
		}
	}
	return out
}
