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
	w      *world
	server *cluster.Server
	inc    ident.Incarnation
	vm     ident.VMID
	part   ident.Part
	pid    int
	epoch  ident.Epoch // of its members; 0 before its start, and while it is a standby
	lease  ident.Micros
	paused bool
	dead   bool
	home   bool

	log      []record // at home: all that was made
	released int      // of these, how many have left
	holding  bool
	protect  wire.WorkerProtect
	busy     bool // a checkpoint is on its way
	safe     ident.PartSet
	fallback ident.PartSet // standbys that it may be gone back to, and that have nothing of this life yet
	due      ident.Micros  // when the last message to it arrives
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
	return !x.dead && !x.paused && x.epoch > 0 && (x.leased() || x.w.canary == canaryLeaseForgotten)
}

func (x *worker) leased() bool { return x.server.Clock() < x.lease }

func (x *worker) ready() wire.WorkerReady {
	return wire.WorkerReady{VM: x.vm, Part: x.part, PID: x.pid, StartTime: uint64(x.pid), PageAddr: "sim", Replica: "sim", Epoch: x.epoch}
}

func (w *world) soon() ident.Micros { return w.Between(50, 2*ident.Millisecond) }

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

// peer returns another part's worker if it can be reached now.
func (x *worker) peer(part ident.Part) *worker {
	for _, y := range x.w.workers {
		if y.vm == x.vm && y.part == part && !y.dead && !y.paused && (y.server == x.server || !x.w.cutOff[x.server.ID] && !x.w.cutOff[y.server.ID]) {
			return y
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
		w.deliver(x, func() { x.takeMembers(a.Members) })
	case monitor.SendProtect:
		x := w.find(s, a.VM)
		w.deliver(x, func() { x.takeProtect(a.Protect) })
	case monitor.Lease:
		for _, x := range w.on(s) {
			if x.inc == a.Incarnation {
				w.At(w.Now()+w.soon(), func() { x.lease = max(x.lease, a.Until) })
			}
		}
	case monitor.StopWorker:
		if x := w.find(s, a.VM); x != nil {
			w.At(w.Now()+w.Between(ident.Millisecond, 20*ident.Millisecond), func() { w.die(x, "exit status 0") })
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
func (w *world) deliver(x *worker, f func()) {
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
		w.pids++
		x := &worker{w: w, server: s, inc: a.Spec.Incarnation, vm: a.Spec.VM, part: a.Spec.Part, pid: w.pids, disks: a.Spec.Disks, compared: map[ident.Part]int{}}
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
	if len(x.disks) > 0 && x.epoch == 0 && !m.Restore && m.Home == x.part {
		if !x.openDisk() {
			return
		}
		x.w.seen[x.vm] = nil // a VM that starts again from its spec begins its output anew
	}
	x.whole = !m.Restore
	x.members = m
	if m.Restore && m.Image == x.part {
		if !x.has || x.taken && x.told > 0 || x.taken && x.ran {
			x.tell(monitor.WorkerEnded{VM: x.vm, Ended: wire.WorkerEnded{State: "failed", Reason: "told to take over without a replica", Host: true}})
			x.w.Tracef("vm %d part %d is told to take over and has nothing", x.vm, x.part)
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
		if !x.holding {
			x.w.release(x, len(x.log)) // its log file has all of it
		} else {
			x.w.release(x, len(x.before)) // the others may not know of the last checkpoint
		}
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
	x.restored = &wire.WorkerRestored{Epoch: x.epoch}
	x.tell(monitor.WorkerRestored{VM: x.vm, Restored: *x.restored})
	return true
}

func (x *worker) tell(e monitor.Event) { x.server.After(x.w.soon(), func() monitor.Event { return e }) }

func (x *worker) takeProtect(p wire.WorkerProtect) {
	if p.Seq > x.protect.Seq {
		x.protect, x.busy = p, false
		clear(x.compared)
		x.safe &= p.Standbys
		x.fallback &= p.Standbys
	}
}

// live is the worker's own doing, every few milliseconds.
func (x *worker) live() {
	if x.dead {
		return
	}
	x.w.At(x.w.Now()+x.w.Between(5*ident.Millisecond, 40*ident.Millisecond), x.live)
	if !x.acts() || !x.home || !x.whole && !x.begin() {
		return
	}
	for range 1 + x.w.Rand().IntN(3) {
		r := record{epoch: x.epoch}
		if x.disk != nil {
			r = x.useDisk()
		}
		x.log = append(x.log, r)
	}
	x.hold(x.fallback != 0 || x.protect.Home == x.part && x.protect.Standbys != 0 && (x.safe != 0 || x.busy) && x.w.canary != canaryHoldSkipped)
	if !x.holding {
		x.w.release(x, len(x.log))
	}
	if x.protect.Home == x.part && x.protect.Standbys != 0 && !x.busy && x.compare() {
		x.cut()
	}
}

func (x *worker) sayProtected(seq uint64) {
	if x.told < seq {
		x.told = seq
		x.tell(monitor.WorkerProtected{VM: x.vm, Protected: wire.WorkerProtected{Seq: seq}})
	}
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

// adopt is what a starting serve finds in its data directory; the workers repeat what they have said.
func (w *world) adopt(s *cluster.Server) []monitor.AdoptedWorker {
	var out []monitor.AdoptedWorker
	for _, x := range w.on(s) {
		out = append(out, monitor.AdoptedWorker{Incarnation: x.inc, Ready: x.ready()})
		if x.disk != nil {
			x.tell(monitor.WorkerDisks{VM: x.vm, Disks: wire.WorkerDisks{Opened: true}})
		}
		if x.told > 0 {
			x.tell(monitor.WorkerProtected{VM: x.vm, Protected: wire.WorkerProtected{Seq: x.told}})
		}
		if x.restored != nil {
			x.tell(monitor.WorkerRestored{VM: x.vm, Restored: *x.restored})
		}
	}
	return out
}
