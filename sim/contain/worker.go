package contain

import (
	"errors"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/wire"
)

// worker is a simulated worker process.
type worker struct {
	*cluster.Process
	epoch ident.Epoch // of its members; 0 before its start
	ended *wire.WorkerEnded
}

// begin makes a worker of a process that comes up; some do not.
func (w *world) begin(p *cluster.Process, _ monitor.StartWorker) (*worker, error) {
	if w.Chance(10) {
		w.ended[p.VM] = "its worker did not start"
		return nil, errors.New("out of memory")
	}
	return &worker{Process: p}, nil
}

// Members implements cluster.Worker.
func (x *worker) Members() ident.Epoch { return x.epoch }

// Again implements cluster.Worker.
func (x *worker) Again() {
	if x.ended != nil {
		x.Tell(monitor.WorkerEnded{VM: x.VM, Ended: *x.ended})
	}
}

// runs tells whether its vCPUs run now.
func (x *worker) runs() bool {
	return !x.Dead && !x.Paused && x.ended == nil && x.epoch > 0 && x.Leased()
}

// end lets the guest end: home says that it exited, another part that it failed.
func (x *worker) end() {
	x.ended = &wire.WorkerEnded{State: "failed", Reason: "triple fault"}
	if x.Part == 0 {
		x.ended = &wire.WorkerEnded{State: "exited"}
	}
	x.Again()
}

// do carries out what serve tells a worker.
func (w *world) do(s *cluster.Server, a monitor.Action) bool {
	m, ok := a.(monitor.SendMembers)
	if ok {
		w.Deliver(s, m.VM, func(x *worker) { x.epoch = max(x.epoch, m.Members.Epoch) })
	}
	return ok
}
