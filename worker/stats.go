package worker

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// stats collects the counters that serve is told about once a second.
func (w *Worker) stats() *wire.WorkerStats {
	s := &wire.WorkerStats{}
	w.vcpuMu.Lock()
	vcpus := w.vcpus
	w.vcpuMu.Unlock()
	for _, v := range vcpus {
		s.VCPUExits += v.exits.Load()
		s.RunMicros += ident.Micros(v.runMicros.Load())
	}
	if w.plane == nil {
		return s
	}
	if resident, err := w.plane.ram.Resident(); err == nil {
		s.ResidentBytes = resident
	}
	w.plane.mu.Lock()
	c := w.plane.core.Counters()
	w.plane.mu.Unlock()
	s.RemoteReads, s.RemoteWrites, s.PagesOut = c.RemoteReads, c.RemoteWrites+c.Upgrades, c.ContentsSent
	s.PagesIn, s.LocalFaults = c.RemoteReads+c.RemoteWrites, c.ZeroFills
	return s
}
