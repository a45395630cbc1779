package monitor

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// worker is what this server knows of one of its workers.
type worker struct {
	vm       ident.VMID
	inc      ident.Incarnation
	part     ident.Part // that it is or was started as
	up       bool       // it has reported
	ready    wire.WorkerReady
	members  ident.Epoch         // VM epoch of the members it was last sent
	protect  uint64              // ProtectSeq it was last sent
	safe     uint64              // ProtectSeq that it has reported complete
	restored wire.WorkerRestored // the VM epoch whose begin it has reported
	retold   ident.Epoch         // and that was passed on
	swtch    uint64              // ProtectSeq under which it was asked for a switchover
	switched wire.WorkerSwitched
	hand     uint64 // number of the last hand-over that it was asked for
	handed   wire.WorkerHanded
	ended    *wire.WorkerEnded
	gone     bool // its process has ended
	goneAt   ident.Micros
	disks    bool // as home it has opened its copies of disks
	reason   string
	stopAt   ident.Micros // when to ask it (again) to stop
	pause    uint64       // PauseSeq that it was last sent
	paused   uint64       // and that it has carried out
}

// Spans of the reconciler.
const (
	reconcileEvery = ident.Second
	stopEvery      = 2 * ident.Second
	// A server that dies loses its workers and its serve process one after the other. A VM that nothing can save is given so long, so that the
	// loss of the server says what happened to it, rather than that of one process.
	goneGrace = 250 * ident.Millisecond
)

func (c *Core) workerOf(vm ident.VMID) *worker {
	i, ok := c.findWorker(vm)
	if !ok {
		return nil
	}
	return c.workers[i]
}

func (c *Core) findWorker(vm ident.VMID) (int, bool) {
	return slices.BinarySearchFunc(c.workers, vm, func(w *worker, vm ident.VMID) int {
		switch {
		case w.vm < vm:
			return -1
		case w.vm > vm:
			return 1
		}
		return 0
	})
}

func (c *Core) addWorker(vm ident.VMID, inc ident.Incarnation) *worker {
	i, ok := c.findWorker(vm)
	w := &worker{vm: vm, inc: inc}
	if ok {
		c.workers[i] = w
	} else {
		c.workers = slices.Insert(c.workers, i, w)
	}
	return w
}

func (c *Core) adopt(e Adopted) {
	c.adopted = true
	for _, a := range e.Workers {
		c.workerReady(a.Incarnation, a.Ready)
	}
}

func (c *Core) workerReady(inc ident.Incarnation, r wire.WorkerReady) {
	c.dirty = true
	if inc <= c.killedUpTo && c.killedUpTo != 0 {
		c.act(KillWorkers{UpTo: c.killedUpTo}) // a straggler of an incarnation that is over
		return
	}
	w := c.workerOf(r.VM)
	if w == nil || w.inc < inc || w.gone {
		w = c.addWorker(r.VM, inc)
	}
	w.up, w.ready, w.part = true, r, r.Part
	w.members = r.Epoch
}

func (c *Core) workerEnded(e WorkerEnded) {
	if w := c.workerOf(e.VM); w != nil && (w.ended == nil || w.ended.Crash) {
		ended := e.Ended
		w.ended = &ended
		c.dirty = true
	}
}

func (c *Core) workerHint(e WorkerHint) {
	vm := c.rep.State().VM(e.VM)
	if vm == nil {
		return
	}
	if own := vm.PartOn(c.cfg.Server, c.incarnation); e.Hint.GiveUp && own != nil {
		c.propose(fmt.Sprintf("give-up/%d", vm.ID), cells.Command{GiveUpPart: &cells.GiveUpPart{
			VM: vm.ID, Part: own.Part, Server: own.Server, Incarnation: own.Incarnation, Silent: e.Hint.Part, Seq: vm.ProtectSeq, Reason: e.Hint.Reason}})
	}
	for i := range vm.Parts {
		if p := &vm.Parts[i]; p.Part == e.Hint.Part && !p.Gone {
			c.hint(p.Server, "page plane")
		}
	}
}

func (c *Core) workerGone(e WorkerGone) {
	if w := c.workerOf(e.VM); w != nil && (!w.up || w.ready.PID == e.PID) {
		w.gone, w.goneAt, w.reason = true, c.now, e.Reason
		c.dirty = true
	}
}

// reconcile compares the registry with the workers that exist, and asks for what is missing.
func (c *Core) reconcile() {
	c.dirty = false
	c.reconcileAt = c.now + reconcileEvery
	if !c.rep.Leading() {
		c.tendSuspects()
	}
	c.forgetVMs()
	if c.adopted && c.phase == PhaseActing {
		st := c.rep.State()
		for i := range st.VMs {
			vm := &st.VMs[i]
			if p := vm.PartOn(c.cfg.Server, c.incarnation); p != nil && vm.State.Active() {
				c.tend(vm, p)
			}
		}
		for _, w := range slices.Clone(c.workers) {
			c.tendEnded(w)
		}
	}
	c.tendRecoveries()
}

// tend brings one active part to where the registry wants it.
func (c *Core) tend(vm *cells.VM, p *cells.VMPart) {
	w := c.workerOf(vm.ID)
	if w != nil && w.part == p.Part {
		c.tellRestored(vm, w)
	}
	switch {
	case w == nil && !p.Ready && (vm.State == cells.VMStarting || p.Standby):
		if c.holdsLease() {
			c.addWorker(vm.ID, c.incarnation).part = p.Part
			c.startWorker(vm, p)
		}
	case w == nil:
		c.reportGone(vm, p, p.PID, "it was not there when serve came back")
	case w.part != p.Part:
		c.replaceWorker(w)
	case w.safe != 0 && w.safe == vm.ProtectSeq && vm.SafeSeq != w.safe && vm.Home == p.Part && vm.State == cells.VMRunning: // before its end: which copies of its disks are good hangs on it
		c.propose(fmt.Sprintf("protected/%d", vm.ID), cells.Command{VMProtected: &cells.VMProtected{
			VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, Seq: w.safe}})
	case w.ended != nil && !(w.ended.Crash && w.ended.Booted < vm.BootEpoch()):
		c.reportEnded(vm, p, w)
	case w.gone && w.up && !p.Standby && !vm.Held() && c.now < w.goneAt+goneGrace:
		c.reconcileAt = min(c.reconcileAt, w.goneAt+goneGrace)
	case w.gone:
		c.reportGone(vm, p, w.ready.PID, w.reason)
	case !w.up:
	case p.Ready && p.PID != w.ready.PID:
		c.reportGone(vm, p, p.PID, "another worker is in its place")
	case !p.Ready:
		c.propose(fmt.Sprintf("ready/%d", vm.ID), cells.Command{PartReady: &cells.PartReady{
			VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation,
			PID: w.ready.PID, StartTime: w.ready.StartTime, Addr: w.ready.PageAddr, ReplicaAddr: w.ready.Replica, NetAddr: w.ready.NetAddr, Level: w.ready.Level}})
	case vm.State != cells.VMRunning || !c.holdsLease():
	case w.pause < vm.PauseSeq: // before its members: what is to stand still must not begin to run
		w.pause = vm.PauseSeq
		c.act(SendPause{VM: vm.ID, Pause: wire.WorkerPause{On: vm.Pausing(), Seq: vm.PauseSeq}})
		c.dirty = true
	case !p.Standby && w.members < vm.Epoch:
		w.members = vm.Epoch
		c.act(SendMembers{VM: vm.ID, Members: c.members(vm)})
		c.dirty = true
	case w.protect < vm.ProtectSeq:
		w.protect = vm.ProtectSeq
		c.act(SendProtect{VM: vm.ID, Protect: protection(vm)})
	case w.disks && vm.Home == p.Part && c.rep.State().Unconfirmed(vm):
		c.propose(fmt.Sprintf("disks/%d", vm.ID), cells.Command{DisksOpened: &cells.DisksOpened{VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation}})
	case w.paused == vm.PauseSeq && p.PausedSeq != w.paused && !p.Standby:
		c.propose(fmt.Sprintf("paused/%d", vm.ID), cells.Command{PartPaused: &cells.PartPaused{
			VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, Seq: w.paused}})
	case vm.Hand != nil && vm.Home == p.Part:
		c.tendHand(vm, p, w)
	case vm.Move != nil && vm.Home == p.Part:
		c.tendMove(vm, p, w)
	}
}

// replaceWorker ends a worker that was another part of the VM, in whose place a new one is to start.
func (c *Core) replaceWorker(w *worker) {
	switch {
	case w.gone:
		c.workers = slices.DeleteFunc(c.workers, func(o *worker) bool { return o == w })
		c.dirty = true
	case c.now >= w.stopAt:
		w.stopAt = c.now + stopEvery
		c.act(StopWorker{VM: w.vm, Reason: "another part of the vm takes its place"})
	}
}

func (c *Core) workerProtected(e WorkerProtected) {
	if w := c.workerOf(e.VM); w != nil && e.Protected.Seq > w.safe {
		w.safe = e.Protected.Seq
		c.dirty = true
	}
}

func (c *Core) workerPaused(e WorkerPaused) {
	if w := c.workerOf(e.VM); w != nil && e.Seq > w.paused {
		w.paused = e.Seq
		c.dirty = true
	}
}

// workerStalled makes an event of it.
func (c *Core) workerStalled(e WorkerStalled) {
	vm := c.rep.State().VM(e.VM)
	if vm == nil {
		return
	}
	kind, text := cells.EventVMStalled, fmt.Sprintf("vm %s is paused: %d MiB of its output wait for a checkpoint to be safe, which is the most that is held back",
		vm.Spec.Name, e.Stalled.LimitBytes>>20)
	if !e.Stalled.On {
		kind, text = cells.EventVMUnstalled, fmt.Sprintf("vm %s goes on: the output that was held back has left", vm.Spec.Name)
	}
	c.propose("", cells.Command{Report: &cells.Report{Kind: kind, Subject: "vm " + vm.Spec.Name, Text: text}})
}

// workerShort makes an event of it.
func (c *Core) workerShort(e WorkerShort) {
	vm := c.rep.State().VM(e.VM)
	if vm == nil {
		return
	}
	kind, text := cells.EventVMShort, fmt.Sprintf("vm %s holds %s of memory on %s, its limit there is %s: %s", vm.Spec.Name, e.Resident, c.cfg.Info.Name, e.Limit, e.Reason)
	if !e.On {
		kind, text = cells.EventVMFits, fmt.Sprintf("vm %s keeps to its limit of %s on %s again", vm.Spec.Name, e.Limit, c.cfg.Info.Name)
	}
	c.propose("", cells.Command{Report: &cells.Report{Kind: kind, Subject: "vm " + vm.Spec.Name, Text: text}})
}

// workerRestored keeps a new home's word that the VM runs again until the registry here, which may lag after a restart, knows of that epoch.
func (c *Core) workerRestored(e WorkerRestored) {
	if w := c.workerOf(e.VM); w != nil && e.Restored.Epoch > w.restored.Epoch {
		w.restored = e.Restored
		c.dirty = true
	}
}

// tellRestored reports a recovery or a move that has ended, with its stages as the new home saw them.
func (c *Core) tellRestored(vm *cells.VM, w *worker) {
	r := w.restored
	if r.Epoch <= w.retold || r.Epoch > vm.Epoch {
		return
	}
	w.retold = r.Epoch
	if vm.Moved.Epoch == r.Epoch {
		c.propose("", cells.Command{VMMoved: &cells.VMMoved{VM: vm.ID, Epoch: r.Epoch, ResumeMicros: r.SinceMicros}})
		return
	}
	c.propose("", cells.Command{VMResumed: &cells.VMResumed{
		VM: vm.ID, Epoch: r.Epoch,
		Text: fmt.Sprintf("vm %s runs again on %s from checkpoint %d: remap %d us, resume %d us", vm.Spec.Name, c.cfg.Info.Name, r.Checkpoint, r.RemapMicros, r.ResumeMicros),
		Fields: map[string]string{"vm_epoch": fmt.Sprint(r.Epoch), "checkpoint": fmt.Sprint(r.Checkpoint),
			"remap_us": fmt.Sprint(int64(r.RemapMicros)), "resume_us": fmt.Sprint(int64(r.ResumeMicros))},
	}})
}

// tendEnded stops a worker that should no longer run, and forgets one that does not.
func (c *Core) tendEnded(w *worker) {
	vm := c.rep.State().VM(w.vm)
	if vm != nil && vm.State.Active() && vm.PartOn(c.cfg.Server, w.inc) != nil && w.inc == c.incarnation {
		return
	}
	if w.gone {
		c.workers = slices.DeleteFunc(c.workers, func(o *worker) bool { return o == w })
		return
	}
	if c.now < w.stopAt {
		return
	}
	reason, final := "the vm was removed", false
	if vm != nil {
		p := vm.PartOn(c.cfg.Server, w.inc)
		reason, final = vm.Reason, !vm.State.Active() && p != nil && p.Part == vm.Home && w.up && w.ready.Part == vm.Home
	}
	w.stopAt = c.now + stopEvery
	c.act(StopWorker{VM: w.vm, Reason: reason, Final: final})
}

func (c *Core) startWorker(vm *cells.VM, p *cells.VMPart) {
	payload := Payload{SHA256: vm.Spec.PayloadSHA256, Bytes: vm.Spec.PayloadBytes, Server: vm.Spec.PayloadServer}
	if s := vm.Spec.Saved; s != nil && vm.State == cells.VMStarting && vm.Home == p.Part {
		payload.Saved, payload.SavedBytes = s.SHA256, s.Bytes
	}
	var linux *wire.WorkerLinux
	if l := vm.Spec.Linux; l != nil {
		linux = &wire.WorkerLinux{Cmdline: l.Cmdline, CPU: l.CPU}
		for i, n := range l.Nets {
			linux.Nets = append(linux.Nets, wire.WorkerNet{Switch: n.Switch, TAP: n.TAP, MAC: vm.MAC(i)})
		}
		payload.Initrd, payload.InitrdBytes = l.InitrdSHA256, l.InitrdBytes
	}
	c.act(StartWorker{
		Spec: wire.WorkerSpec{
			ClusterID: c.cfg.ClusterID, Server: c.cfg.Server, ServerName: c.cfg.Info.Name, Cell: c.cfg.Info.Cell, Incarnation: c.incarnation,
			VM: vm.ID, Name: vm.Spec.Name, Part: p.Part, VCPUs: vm.Spec.VCPUs, LocalVCPUs: slices.Clone(p.VCPUs), MemoryBytes: vm.Spec.MemoryBytes, Standby: p.Standby,
			Builtin: vm.Spec.Builtin, Args: vm.Spec.Args, OnLossTouch: vm.Spec.OnLoss == cells.OnLossTouch, Secret: vm.Secret,
			Options: maps.Clone(vm.Spec.Options), Linux: linux, Disks: DisksOf(c.rep.State(), vm, p.Server),
		},
		Created: vm.Created,
		Payload: payload,
	})
}

func (c *Core) members(vm *cells.VM) wire.WorkerMembers {
	m := wire.WorkerMembers{Epoch: vm.Epoch, Fresh: vm.Epoch == vm.BootEpoch(), Booted: vm.BootEpoch(), Home: vm.Home, Restore: vm.Restored, Image: vm.Image}
	for _, p := range vm.Parts {
		if vm.Restored && p.Standby && vm.CanGoBackTo(&p) {
			m.Fallback = m.Fallback.Set(p.Part)
		}
		if !p.Gone && !p.Standby {
			one := wire.WorkerMember{Part: p.Part, Server: p.Server, Name: p.ServerName, Addr: p.Addr, Level: p.Level, VCPUs: slices.Clone(p.VCPUs)}
			if sv := c.rep.State().Server(p.Server); sv != nil {
				one.Slots = sv.Slots
			}
			m.Members = append(m.Members, one)
		}
	}
	return m
}

func (c *Core) reportGone(vm *cells.VM, p *cells.VMPart, pid int, reason string) {
	c.propose(fmt.Sprintf("gone/%d", vm.ID), cells.Command{PartGone: &cells.PartGone{
		VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, PID: pid, Reason: reason}})
}

func (c *Core) reportEnded(vm *cells.VM, p *cells.VMPart, w *worker) {
	c.propose(fmt.Sprintf("end/%d", vm.ID), cells.Command{EndVM: &cells.EndVM{
		VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, State: cells.VMState(w.ended.State),
		ExitStatus: w.ended.ExitStatus, Reason: w.ended.Reason, Registers: w.ended.Registers, Host: w.ended.Host,
		Crash: w.ended.Crash, Booted: w.ended.Booted, UpMicros: w.ended.UpMicros}})
}

func (c *Core) noteVMs() {
	c.knownVMs = c.knownVMs[:0]
	st := c.rep.State()
	for i := range st.VMs {
		c.knownVMs = append(c.knownVMs, st.VMs[i].ID)
	}
}

// forgetVMs has the files of removed VMs deleted, once no worker of theirs is left.
func (c *Core) forgetVMs() {
	kept := c.knownVMs[:0:0]
	for _, id := range c.knownVMs {
		if c.rep.State().VM(id) != nil {
			continue
		}
		if c.workerOf(id) != nil {
			kept = append(kept, id) // later
			continue
		}
		c.act(RemoveFiles{VM: id})
	}
	c.noteVMs()
	c.knownVMs = append(kept, c.knownVMs...)
}
