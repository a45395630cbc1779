package guests

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/wire"
)

// worker is a simulated worker process: a member of a VM, perhaps its home, or a standby.
type worker struct {
	*cluster.Process
	w      *World
	first  ident.Epoch // the VM's, in which it was created
	epoch  ident.Epoch // of its members; 0 before its start, and while it is a standby
	still  bool        // its VM is paused by an operator
	home   bool
	ended  *wire.WorkerEnded
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
	return !x.Dead && !x.Paused && !x.still && x.epoch > 0 && x.ended == nil && x.Leased()
}

// reaches tells whether two servers' workers can talk.
func (w *World) reaches(a, b ident.ServerID) bool {
	return a == b || !w.cuts[pair(a, b)]
}

func pair(a, b ident.ServerID) [2]ident.ServerID { return [2]ident.ServerID{min(a, b), max(a, b)} }

// peer returns another part's worker if it can be reached now.
func (x *worker) peer(part ident.Part) *worker {
	for _, y := range x.w.Workers {
		if y.VM == x.VM && y.Part == part && !y.Dead && !y.Paused && x.w.reaches(x.Server.ID, y.Server.ID) {
			return y
		}
	}
	return nil
}

// begin makes a worker of a process that comes up.
func (w *World) begin(p *cluster.Process, a monitor.StartWorker) (*worker, error) {
	model, err := Modelled(a.Spec.Builtin, a.Spec.Args)
	if err != nil {
		return nil, err
	}
	x := &worker{Process: p, w: w, first: a.Created, guest: guest{program: model}}
	x.live()
	return x, nil
}

// Members implements cluster.Worker.
func (x *worker) Members() ident.Epoch { return x.epoch }

// Again implements cluster.Worker.
func (x *worker) Again() {
	if x.told > 0 {
		x.Tell(monitor.WorkerProtected{VM: x.VM, Protected: wire.WorkerProtected{Seq: x.told}})
	}
	if x.restored != nil {
		x.Tell(monitor.WorkerRestored{VM: x.VM, Restored: *x.restored})
	}
	if x.switched != nil {
		x.Tell(monitor.WorkerSwitched{VM: x.VM, Switched: *x.switched})
	}
	if x.ended != nil {
		x.Tell(monitor.WorkerEnded{VM: x.VM, Ended: *x.ended})
	}
}

// do carries out what serve tells a worker.
func (w *World) do(s *cluster.Server, a monitor.Action) bool {
	switch a := a.(type) {
	case monitor.SendMembers:
		w.Deliver(s, a.VM, func(x *worker) { x.takeMembers(a.Members) })
	case monitor.SendProtect:
		w.Deliver(s, a.VM, func(x *worker) { x.takeProtect(a.Protect) })
	case monitor.SendPause:
		w.Deliver(s, a.VM, func(x *worker) {
			x.still = a.Pause.On
			x.Tell(monitor.WorkerPaused{VM: a.VM, Seq: a.Pause.Seq})
		})
	case monitor.SendSwitch:
		w.Deliver(s, a.VM, func(x *worker) { x.asked = a.Seq })
	default:
		return false
	}
	return true
}

// stopping lets the last output of a VM leave that is stopped for good.
func (w *World) stopping(x *worker, a monitor.StopWorker) {
	if a.Final && x.home {
		w.release(x, len(x.guest.log))
	}
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
	if m.Restore && m.Image == x.Part {
		if !x.has || x.taken && x.told > 0 || x.taken && x.ran {
			x.end(wire.WorkerEnded{State: "failed", Reason: "told to take over without a replica", Host: true})
			x.w.Tracef("vm %d part %d is told to take over and has nothing", x.VM, x.Part)
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
	x.epoch, x.home = m.Epoch, m.Home == x.Part
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
	x.Tell(monitor.WorkerRestored{VM: x.VM, Restored: *x.restored})
	return true
}

// end ends the VM as seen from this part.
func (x *worker) end(e wire.WorkerEnded) {
	if x.ended == nil {
		x.ended = &e
		x.Tell(monitor.WorkerEnded{VM: x.VM, Ended: e})
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
	if x.Dead {
		return
	}
	x.w.At(x.w.Now()+x.w.Between(5*ident.Millisecond, 25*ident.Millisecond), x.live)
	span := x.w.Now() - x.looked
	x.looked = x.w.Now()
	if !x.acts() || !x.home || !x.whole && !x.begin() {
		return
	}
	protected := x.protect.Home == x.Part && x.protect.Standbys != 0
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
