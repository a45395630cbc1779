package worker

import (
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// stats collects the counters that serve is told about once a second.
func (w *Worker) stats() *wire.WorkerStats {
	s := &wire.WorkerStats{At: bootMicros()}
	for _, v := range w.residents() {
		s.VCPUExits += v.exits.Load()
		s.RunMicros += ident.Micros(v.runMicros.Load())
		s.IdleMicros += v.idled(s.At)
	}
	if w.plane == nil {
		return s
	}
	if resident, err := w.plane.ram.Resident(); err == nil {
		s.ResidentBytes = resident
	}
	s.Paging = w.pagingStats()
	s.Scrub = w.scrubStats()
	w.plane.mu.Lock()
	c := w.plane.core.Counters()
	w.plane.mu.Unlock()
	s.RemoteReads, s.RemoteWrites, s.PagesOut = c.RemoteReads, c.RemoteWrites+c.Upgrades, c.ContentsSent
	w.checkpointStats(s)
	s.DiskReadBytes, s.DiskCachedBytes = w.plane.diskCounters()
	s.PagesIn, s.LocalFaults = c.RemoteReads+c.RemoteWrites, c.ZeroFills
	return s
}

// checkpointStats adds what protection by replicas costs.
func (w *Worker) checkpointStats(s *wire.WorkerStats) {
	w.cutter.mu.Lock()
	s.DirtyPages, s.DirtyPagesSum = uint64(w.cutter.last), w.cutter.sum
	sent := w.cutter.sent
	s.PagesWhole, s.PagesChanged, s.PagesZero, s.PagesSame = uint64(sent.full), uint64(sent.changed), uint64(sent.zero), uint64(sent.same)
	s.ShareBytesSum, s.PagesOnDisk = uint64(sent.bytes), uint64(sent.onDisk)
	w.cutter.mu.Unlock()
	if w.replica != nil {
		w.replica.mu.Lock()
		if r := w.replica; r.syncing > 0 {
			s.SyncPermille = int(min(1000, r.synced*1000/r.syncing))
		}
		w.replica.mu.Unlock()
	}
	if b := w.standby.Load(); b != nil {
		s.PagesLeft = b.left.Load()
	}
	h := w.home.Load()
	if h == nil {
		return
	}
	s.HeldBytes = h.heldBytes()
	c := &w.checkpoints
	c.pauseStats(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	s.EveryMicros, s.SafeAfter = ident.Micros(c.every.Microseconds()), ident.Micros(c.lag.Microseconds())
	if !c.safeAt.IsZero() {
		s.LagMicros = ident.Micros(time.Since(c.safeAt).Microseconds())
	}
}
