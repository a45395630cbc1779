package monitor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/recovery"
)

// recoveryRun follows one recovery on this server: from the view change until its own workers have done their part.
type recoveryRun struct {
	epoch  ident.Epoch
	begun  ident.Micros
	clock  recovery.Clock
	leader bool // this server decided the view: it knows the first stages
	stop   []ident.VMID
	remap  []ident.VMID
	remaps bool
	stops  bool
	cause  uint64
}

func (r *recoveryRun) take(c *recovery.Clock) {
	r.clock, r.leader = *c, true
}

// viewChanged begins to follow a recovery if the view lost someone.
func (c *Core) viewChanged(a *cells.Applied) {
	if a.Command == nil || a.Command.Exclude == nil {
		return
	}
	st := c.rep.State()
	r := &recoveryRun{epoch: st.View.Epoch, begun: c.now}
	for _, e := range a.Events {
		if e.Kind == cells.EventServerDead || e.Kind == cells.EventCellLost {
			r.cause = e.Seq
		}
	}
	for _, w := range c.workers {
		vm := st.VM(w.vm)
		switch {
		case vm == nil || w.inc != c.incarnation:
		case vm.State == cells.VMLost && vm.PartOn(c.cfg.Server, w.inc) != nil:
			r.stop, r.stops = append(r.stop, w.vm), true
		case vm.State == cells.VMRunning && vm.Epoch == r.epoch && w.members < vm.Epoch && runsPart(vm, c.cfg.Server, w.inc):
			r.remap, r.remaps = append(r.remap, w.vm), true
		}
	}
	c.recoveries = append(c.recoveries, r)
}

// runsPart tells whether an incarnation of a server runs a part of the VM, as against keeping a replica.
func runsPart(vm *cells.VM, server ident.ServerID, inc ident.Incarnation) bool {
	p := vm.PartOn(server, inc)
	return p != nil && !p.Standby
}

// tendRecoveries reports those that are over.
func (c *Core) tendRecoveries() {
	for _, r := range slices.Clone(c.recoveries) {
		r.stop = slices.DeleteFunc(r.stop, func(vm ident.VMID) bool { return c.workerOf(vm) == nil || c.workerOf(vm).gone })
		if len(r.stop) == 0 && r.stops {
			r.clock.Span(recovery.Unwedge, r.begun, c.now)
			r.stops = false
		}
		r.remap = slices.DeleteFunc(r.remap, func(vm ident.VMID) bool { w := c.workerOf(vm); return w == nil || w.members >= r.epoch })
		if len(r.remap) == 0 && r.remaps {
			r.clock.Span(recovery.Remap, r.begun, c.now)
			r.remaps = false
		}
		if r.stops || r.remaps {
			continue
		}
		c.recoveries = slices.DeleteFunc(c.recoveries, func(o *recoveryRun) bool { return o == r })
		c.reportStages(r)
	}
}

func (c *Core) reportStages(r *recoveryRun) {
	fields := map[string]string{"server": string(c.cfg.Info.Name), "epoch": strconv.FormatUint(uint64(r.epoch), 10)}
	var parts []string
	for _, s := range recovery.Stages() {
		if took, ok := r.clock.Took(s); ok {
			fields[s.String()+"_us"] = strconv.FormatInt(int64(took), 10)
			parts = append(parts, fmt.Sprintf("%s %d ms", s, took/ident.Millisecond))
		}
	}
	if len(parts) == 0 {
		return // nothing of it happened here
	}
	c.propose("", cells.Command{Report: &cells.Report{
		Kind: cells.EventRecoveryStages, Subject: "server " + string(c.cfg.Info.Name), Fields: fields, Cause: r.cause,
		Text: fmt.Sprintf("recovery of epoch %d on server %s: %s", r.epoch, c.cfg.Info.Name, strings.Join(parts, ", ")),
	}})
}
