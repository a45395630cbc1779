package server

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// leaseSteps is in how many steps at least workers are told of a lease that is renewed all the time. Each wakes them, and a server may have hundreds that do nothing.
const leaseSteps = 6

// renew passes the lease on to every worker of its incarnation, unless what that has is nearly as good.
func (s *supervisor) renew(l monitor.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = l
	for _, w := range s.workers {
		if w.incarnation == l.Incarnation && w.leasedUntil()+s.leaseStep <= l.Until {
			w.post(func() { w.lease = &wire.WorkerLease{UntilBootMicros: l.Until} })
		}
	}
}

// leasedUntil is until when the worker has been told that its lease holds.
func (w *worker) leasedUntil() ident.Micros {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lease == nil {
		return 0
	}
	return w.lease.UntilBootMicros
}
