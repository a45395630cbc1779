package balance

import (
	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// learn takes over what the log says now.
func (s *server) learn() {
	if !s.dead {
		s.reporter.SetView(s.w.Now()+1, monitor.LoadView(s.w.fsm.State()))
		s.flush()
	}
}

// Receive implements kernel.Node.
func (s *server) Receive(_ ident.Micros, _ kernel.NodeID, msg any) {
	e := msg.(envelope)
	s.reporter.Receive(s.w.Now()+1, balancer.LoadMessage{Peer: e.from, Epoch: e.message.Epoch, Report: e.message.Report})
	s.flush()
}

// Wake implements kernel.Node: a sample of the parts here.
func (s *server) Wake(ident.Micros) {
	w := s.w
	var sample balancer.Sample
	st := w.fsm.State()
	for i := range st.VMs {
		vm := &st.VMs[i]
		for _, p := range vm.Members() {
			if p.Server == s.id && vm.State == cells.VMRunning {
				sample.Parts = append(sample.Parts, balancer.PartSample{VM: vm.ID, IdlePermille: 1000 * w.idles(vm.ID, &p)})
			}
		}
	}
	s.learn()
	s.reporter.Take(w.Now()+1, sample)
	s.flush()
	w.WakeAt(s.node, w.Now()+balancer.ReportGap)
}

// idles counts the vCPUs of a part that idle.
func (w *world) idles(vm ident.VMID, p *cells.VMPart) int {
	n := 0
	for _, c := range p.VCPUs {
		n += w.idle[key{vm, c}]
	}
	return n
}

func (s *server) flush() {
	w := s.w
	for _, m := range s.reporter.Messages() {
		if int(m.Peer) != 0 {
			for _, o := range w.servers {
				if o.id == m.Peer {
					w.Send(s.node, o.node, envelope{s.id, m})
				}
			}
		}
	}
	for _, changes := range s.reporter.Proposals() {
		cmd := &cells.Loads{}
		for _, p := range changes {
			cmd.Parts = append(cmd.Parts, cells.PartIdle{VM: p.VM, Server: p.Server, VCPUs: p.Idle})
		}
		if !w.Chance(100) {
			w.At(w.Now()+w.Between(ident.Millisecond, 50*ident.Millisecond), func() { _, _ = w.apply(cells.Command{Loads: cmd}) })
		}
	}
	if err := s.reporter.Check(); err != nil {
		w.Fail(err)
	}
}

// shift lets vCPUs idle and work.
func (w *world) shift() {
	r := w.Rand()
	st := w.fsm.State()
	for i := range st.VMs {
		if r.IntN(4) != 0 {
			continue
		}
		idle := r.IntN(2)
		for c := range st.VMs[i].Spec.VCPUs {
			w.idle[key{st.VMs[i].ID, ident.VCPU(c)}] = idle
		}
	}
	if w.Now() < restless {
		w.At(w.Now()+w.Between(ident.Second, 15*ident.Second), w.shift)
	}
}

// fault lets something go wrong, or an operator do something.
func (w *world) fault() {
	s := w.servers[w.Rand().IntN(len(w.servers))]
	if s.dead {
		return
	}
	sv := w.fsm.State().Server(s.id)
	what := w.Rand().IntN(3)
	if what == 0 {
		if all := w.fsm.State().VMs; len(all) > 0 {
			vm := &all[w.Rand().IntN(len(all))]
			w.order(vm, ident.VCPU(w.Rand().IntN(vm.Spec.VCPUs)), sv)
		}
		return
	}
	if what == 1 {
		on := true
		_, _ = w.apply(cells.Command{Cordon: &cells.Cordon{Server: sv.Name, On: on}})
		w.At(w.Now()+w.Between(ident.Second, 30*ident.Second), func() {
			_, _ = w.apply(cells.Command{Cordon: &cells.Cordon{Server: sv.Name, On: false}})
		})
		return
	}
	if len(w.fsm.State().View.Live) < 2 {
		return
	}
	w.Tracef("server %d dies", s.id)
	s.dead = true
	w.Crash(s.node)
	w.At(w.Now()+detectTime, func() {
		sv := w.fsm.State().Server(s.id)
		_, _ = w.apply(cells.Command{Exclude: &cells.Exclude{Term: term, Targets: []cells.Excluded{{Server: s.id, Incarnation: sv.Incarnation, Boot: sv.Process.Boot, Cause: "it died"}}}})
		for _, o := range w.servers {
			w.At(w.Now()+w.Between(100, 50*ident.Millisecond), o.learn)
		}
	})
}

// order has an operator send a vCPU to a server, whether its VM has a part there or not.
func (w *world) order(vm *cells.VM, id ident.VCPU, to *cells.Server) {
	_, _ = w.apply(cells.Command{StartOperation: &cells.StartOperation{Kind: cells.OpMigrate, VM: vm.Spec.Name, VCPU: &id, ToServer: to.Name, MaxParallel: 1}})
}

// spread has an operator send a vCPU to another server of the cell that it is in, so that VMs have several parts in one cell.
func (w *world) spread() {
	st := w.fsm.State()
	if len(st.VMs) == 0 {
		return
	}
	vm := &st.VMs[w.Rand().IntN(len(st.VMs))]
	at := vm.Parts[w.Rand().IntN(len(vm.Parts))]
	for _, i := range w.Rand().Perm(len(st.Servers)) {
		if to := &st.Servers[i]; to.Cell == at.Cell && to.ID != at.Server && len(at.VCPUs) > 1 {
			w.order(vm, at.VCPUs[0], to)
			return
		}
	}
}

// scan is the leader's look, and what workers report of moves.
func (w *world) scan() {
	if cmd := w.watch.Look(w.Now(), int64(w.Now()/ident.Millisecond)+1, w.fsm.State()); cmd != nil {
		before := w.fsm.State().Clone()
		if _, err := w.apply(*cmd); err == nil && cmd.StartOperation != nil && cmd.StartOperation.Idle {
			w.Fail(w.checkStolen(&before, w.fsm.State()))
		}
	}
	st := w.fsm.State()
	for i := range st.VMs {
		if w.Chance(500) {
			w.moveOn(&st.VMs[i])
		}
	}
	w.At(w.Now()+scanTime, w.scan)
}

// moveOn takes a VM's move one stage on.
func (w *world) moveOn(vm *cells.VM) {
	for _, s := range w.servers {
		for _, p := range vm.Parts {
			if p.Server == s.id && s.dead {
				return // its workers say nothing until the view is without them
			}
		}
	}
	var home *cells.VMPart
	for i := range vm.Parts {
		if vm.Parts[i].Part == vm.Home {
			home = &vm.Parts[i]
		}
	}
	switch m := vm.Move; {
	case home == nil || vm.State != cells.VMRunning:
	case m == nil && vm.Moved.Epoch == vm.Epoch && !vm.Resumed && vm.Restored:
		_, _ = w.apply(cells.Command{VMMoved: &cells.VMMoved{VM: vm.ID, Epoch: vm.Epoch, ResumeMicros: 1000}})
	case m == nil && vm.Hand != nil:
		_, _ = w.apply(cells.Command{VCPUHanded: &cells.VCPUHanded{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: vm.Hand.Seq,
			Moved: !w.Chance(100), Why: "it took too long", DownMicros: 300}})
	case m == nil:
	case !m.Ready(vm):
		for _, p := range vm.Parts {
			if p.Part == m.Image {
				w.ready(vm.ID, p)
			}
		}
	case m.Switching != 0:
		_, _ = w.apply(cells.Command{SwitchVM: &cells.SwitchVM{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: m.Switching, CutMicros: 1000}})
	case vm.SafeSeq != vm.ProtectSeq:
		_, _ = w.apply(cells.Command{VMProtected: &cells.VMProtected{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: vm.ProtectSeq}})
	}
}
