package recover

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/wire"
)

// record is a record that a guest has made: in which life of the VM, and, if flushed, what is durable on its disk.
type record struct {
	epoch   ident.Epoch
	flushed bool
	durable contents
}

// worker is a simulated worker process: a member of a VM, perhaps its home, or a standby.
type worker struct {
	*cluster.Process
	w     *world
	epoch ident.Epoch // of its members; 0 before its start, and while it is a standby
	home  bool

	log      []record // at home: all that was made
	released int      // of these, how many have left
	holding  bool
	protect  wire.WorkerProtect
	busy     bool // a checkpoint is on its way
	safe     ident.PartSet
	fallback ident.PartSet // standbys that it may be gone back to, and that have nothing of this life yet
	told     uint64        // the Seq that serve was told complete

	replica, before []record // of a standby: as of the last checkpoint, and of the one before
	has             bool
	taken           bool
	members         wire.WorkerMembers
	whole           bool // all members have come
	ran             bool // as home of a VM that went back: the image is no longer whole
	restored        *wire.WorkerRestored

	disks    []wire.WorkerDisk // at most one
	disk     *guestDisk        // at home, if the VM has one
	compared map[ident.Part]int
	applied  uint64   // of a standby: number of the last checkpoint
	truth    contents // of that
	memory   *replicaPages
	inStep   ident.PartSet // mirrors that the guest's flushes wait for
	flushing *record       // that the guest emits when they have what it wrote; it waits
}

// replicaPages returns a standby's copy of guest memory.
func (x *worker) replicaPages() *replicaPages {
	if x.memory == nil {
		canary := ""
		if slices.Contains(srt.RefCanaries, x.w.canary) {
			canary = x.w.canary
		}
		x.memory = &replicaPages{refs: srt.NewRefs(leftMost, canary)}
	}
	return x.memory
}

// acts tells whether it may do anything now.
func (x *worker) acts() bool {
	return !x.Dead && !x.Paused && x.epoch > 0 && (x.Leased() || x.w.canary == canaryLeaseForgotten)
}

// peer returns another part's worker if it can be reached now.
func (x *worker) peer(part ident.Part) *worker {
	for _, y := range x.w.Workers {
		if y.VM == x.VM && y.Part == part && !y.Dead && !y.Paused && (y.Server == x.Server || !x.w.cutOff[x.Server.ID] && !x.w.cutOff[y.Server.ID]) {
			return y
		}
	}
	return nil
}

// begin makes a worker of a process that comes up.
func (w *world) begin(p *cluster.Process, a monitor.StartWorker) (*worker, error) {
	x := &worker{Process: p, w: w, disks: a.Spec.Disks, compared: map[ident.Part]int{}}
	x.live()
	return x, nil
}

// Members implements cluster.Worker.
func (x *worker) Members() ident.Epoch { return x.epoch }

// Again implements cluster.Worker.
func (x *worker) Again() {
	if x.disk != nil {
		x.Tell(monitor.WorkerDisks{VM: x.VM, Disks: wire.WorkerDisks{Opened: true}})
	}
	if x.told > 0 {
		x.Tell(monitor.WorkerProtected{VM: x.VM, Protected: wire.WorkerProtected{Seq: x.told}})
	}
	if x.restored != nil {
		x.Tell(monitor.WorkerRestored{VM: x.VM, Restored: *x.restored})
	}
}

// do carries out what serve tells a worker.
func (w *world) do(s *cluster.Server, a monitor.Action) bool {
	switch a := a.(type) {
	case monitor.SendMembers:
		w.Deliver(s, a.VM, func(x *worker) { x.takeMembers(a.Members) })
	case monitor.SendProtect:
		w.Deliver(s, a.VM, func(x *worker) { x.takeProtect(a.Protect) })
	default:
		return false
	}
	return true
}

// takeMembers enters an epoch: as a member, or, for the standby that is named, as the new home with its replica.
func (x *worker) takeMembers(m wire.WorkerMembers) {
	if m.Epoch <= x.epoch {
		return
	}
	if len(x.disks) > 0 && x.epoch == 0 && !m.Restore && m.Home == x.Part {
		if !x.openDisk() {
			return
		}
		x.w.seen[x.VM] = nil // a VM that starts again from its spec begins its output anew
	}
	x.whole = !m.Restore
	x.members = m
	if m.Restore && m.Image == x.Part {
		if !x.has || x.taken && x.told > 0 || x.taken && x.ran {
			x.Tell(monitor.WorkerEnded{VM: x.VM, Ended: wire.WorkerEnded{State: "failed", Reason: "told to take over without a replica", Host: true}})
			x.w.Tracef("vm %d part %d is told to take over and has nothing", x.VM, x.Part)
			return
		}
		x.taken, x.log, x.fallback = true, slices.Clone(x.replica), m.Fallback
		if x.w.canary == canaryFallback {
			x.fallback = 0
		}
		x.holding = x.fallback != 0
		if x.w.canary == canaryStaleReplica {
			x.log = slices.Clone(x.before)
		}
		x.released = 0
		x.epoch = m.Epoch
		x.goOnWith(x.truth)
		if x.disk != nil && x.fallback != 0 { // what is written from now on is all that the other standbys lack
			x.disk.layers.Note(true)
		}
		if !x.holding {
			x.w.release(x, len(x.log)) // its log file has all of it
		} else {
			x.w.release(x, len(x.before)) // the others may not know of the last checkpoint
		}
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
	x.restored = &wire.WorkerRestored{Epoch: x.epoch}
	x.Tell(monitor.WorkerRestored{VM: x.VM, Restored: *x.restored})
	return true
}

func (x *worker) takeProtect(p wire.WorkerProtect) {
	if p.Seq > x.protect.Seq {
		x.protect, x.busy = p, false
		clear(x.compared)
		x.safe &= p.Standbys
		x.fallback &= p.Standbys
		x.inStep &= p.Mirrors
	}
}

// live is the worker's own doing, every few milliseconds.
func (x *worker) live() {
	if x.Dead {
		return
	}
	x.w.At(x.w.Now()+x.w.Between(5*ident.Millisecond, 40*ident.Millisecond), x.live)
	if !x.acts() || !x.home || !x.whole && !x.begin() {
		return
	}
	for range 1 + x.w.Rand().IntN(3) {
		if x.flushing != nil {
			break
		}
		r := record{epoch: x.epoch}
		if x.disk != nil {
			r = x.useDisk()
		}
		if x.goesWithout(r) {
			break
		}
		x.log = append(x.log, r)
	}
	x.hold(x.fallback != 0 || x.protect.Home == x.Part && x.protect.Standbys != 0 && (x.safe != 0 || x.busy) && x.w.canary != canaryHoldSkipped)
	if !x.holding {
		x.w.release(x, len(x.log))
	}
	if x.protect.Home == x.Part && x.protect.Standbys != 0 && !x.busy && x.compare() {
		x.cut()
	}
	x.keepMirrors()
}

func (x *worker) sayProtected(seq uint64) {
	if x.told < seq {
		x.told = seq
		x.Tell(monitor.WorkerProtected{VM: x.VM, Protected: wire.WorkerProtected{Seq: seq}})
	}
}
