package monitor

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Spans after which the leader gives a move up. The VM stands still while it is switched, so that one is short.
const (
	switchAtMost = 3 * ident.Second
	startAtMost  = 30 * ident.Second // of the worker that is to take the VM over
)

// moveWatch is what the leader has seen of a move since it stands where it stands.
type moveWatch struct {
	vm    ident.VMID
	stage moveStage
	since ident.Micros
}

// moveStage tells one stage of one move from all others.
type moveStage struct {
	image     ident.Part
	ready     bool
	switching uint64 // ProtectSeq of the switchover, 0 if the copy is not complete
}

// tendMove takes home through the switchover of a move.
func (c *Core) tendMove(vm *cells.VM, p *cells.VMPart, w *worker) {
	seq := vm.Move.Switching
	switch {
	case seq == 0:
	case w.switched.Seq == seq:
		c.propose(fmt.Sprintf("switched/%d", vm.ID), cells.Command{SwitchVM: &cells.SwitchVM{
			VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, Seq: seq, CutMicros: w.switched.CutMicros}})
	case w.swtch < seq:
		w.swtch = seq
		c.act(SendSwitch{VM: vm.ID, Seq: seq})
	}
}

// tendHand has home hand a vCPU over, and says how that ended.
func (c *Core) tendHand(vm *cells.VM, p *cells.VMPart, w *worker) {
	h := vm.Hand
	switch {
	case w.handed.Seq == h.Seq:
		c.propose(fmt.Sprintf("handed/%d", vm.ID), cells.Command{VCPUHanded: &cells.VCPUHanded{VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation,
			Seq: h.Seq, Moved: w.handed.Moved, Why: w.handed.Why, DownMicros: w.handed.DownMicros}})
	case w.hand < h.Seq:
		w.hand = h.Seq
		c.act(SendHand{VM: vm.ID, Hand: wire.WorkerHand{Seq: h.Seq, VCPU: h.VCPU, From: h.From, To: h.To}})
	}
}

func (c *Core) workerHanded(e WorkerHanded) {
	if w := c.workerOf(e.VM); w != nil && e.Handed.Seq > w.handed.Seq {
		w.handed = e.Handed
		c.dirty = true
	}
}

// workerWished passes home's wish on. One that comes to nothing is not repeated: home wishes anew when it still would.
func (c *Core) workerWished(e WorkerWished) {
	vm := c.rep.State().VM(e.VM)
	if vm == nil || vm.Hand != nil || !c.holdsLease() {
		return
	}
	if p := vm.PartOn(c.cfg.Server, c.incarnation); p != nil && p.Part == vm.Home {
		c.propose(fmt.Sprintf("pull/%d", vm.ID), cells.Command{PullVCPU: &cells.PullVCPU{VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation,
			VCPU: e.Wish.VCPU, To: e.Wish.To}})
	}
}

func (c *Core) workerSwitched(e WorkerSwitched) {
	if w := c.workerOf(e.VM); w != nil && e.Switched.Seq > w.switched.Seq {
		w.switched = e.Switched
		c.dirty = true
	}
}

// tendOperations is the leader's share in operations: it has the clock. All else follows from the log.
func (c *Core) tendOperations() {
	st := c.rep.State()
	for i := range st.Operations {
		op := &st.Operations[i]
		if op.State == cells.OpRunning && op.DeadlineMs != 0 && c.unixMs() >= op.DeadlineMs {
			c.propose(fmt.Sprintf("expire/%d", op.ID), cells.Command{EndOperation: &cells.EndOperation{ID: op.ID, Expired: true}})
		}
	}
	var seen []moveWatch
	for i := range st.VMs {
		vm := &st.VMs[i]
		if vm.Move == nil {
			continue
		}
		now := moveWatch{vm: vm.ID, stage: moveStage{image: vm.Move.Image, ready: vm.Move.Ready(vm), switching: vm.Move.Switching}, since: c.now}
		if j := slices.IndexFunc(c.moves, func(m moveWatch) bool { return m.vm == vm.ID }); j >= 0 && c.moves[j].stage == now.stage {
			now.since = c.moves[j].since
		}
		seen = append(seen, now)
		late := ""
		switch waited := c.now - now.since; {
		case now.stage.switching != 0 && waited > max(switchAtMost, 2*c.t.LeaseLength): // on a slow machine leases are long, too
			late = "the switchover took too long"
		case !now.stage.ready && waited > max(startAtMost, 4*c.t.LeaseLength):
			late = "its worker on the target did not start in time"
		}
		if late != "" {
			c.propose(fmt.Sprintf("abandon/%d", vm.ID), cells.Command{AbandonMove: &cells.AbandonMove{
				VM: vm.ID, Image: vm.Move.Image, Switching: vm.Move.Switching, Reason: late}})
		}
	}
	c.moves = seen
}
