package worker

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// statsEvery is how often serve is told the counters. They take locks, one of which may be held until a disk has answered: for statsLate ticks a worker
// that lives says so instead. After that it is taken for one that hangs.
const (
	statsEvery = time.Second
	statsLate  = 60
)

// watch waits for serve's stop, sending counters meanwhile. A worker whose serve never comes back ends by itself.
func (w *Worker) watch() {
	ticker := time.NewTicker(statsEvery)
	defer ticker.Stop()
	counted := make(chan *wire.WorkerStats, 1)
	late := -1 // for how many ticks the counters have been due; -1: they are not
	for {
		select {
		case <-w.stopped:
			return
		case s := <-counted:
			w.control.send(wire.FromWorker{Stats: s})
			late = -1
		case <-ticker.C:
			if w.control.orphaned() && !w.guard.leased() {
				w.log.Error().Msg("no serve has adopted this worker: ending")
				return
			}
			switch late++; {
			case late == 0:
				go func() { counted <- w.stats() }()
			case late < statsLate:
				w.control.send(wire.FromWorker{})
			}
		}
	}
}

// stats collects the counters that serve is told about once a second.
func (w *Worker) stats() *wire.WorkerStats {
	s := &wire.WorkerStats{At: bootMicros()}
	for _, v := range w.residents() {
		s.VCPUExits += v.exits.Load()
		s.RunMicros += ident.Micros(v.runMicros.Load())
		s.IdleMicros += v.idled(s.At)
		s.CPUMicros += cpuTime(v.cpu.TID())
	}
	s.SlotMicros, s.TurnMicros = w.slices.slotTime(s.At), ident.Micros(w.slices.turnNanos.Load()/1000)
	if w.plane == nil {
		return s
	}
	if resident, err := w.plane.ram.Resident(); err == nil {
		s.ResidentBytes = resident
	}
	s.Paging, s.Locality = w.pagingStats(), w.localityStats()
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

// cpuTime is the CPU time that a thread of this process has used, in the guest and outside, 0 if there is none of that number. The clock's number is
// what pthread_getcpuclockid(3) makes of a thread's: all bits of it turned, and below them "of one thread, as the scheduler counts".
func cpuTime(tid uint32) ident.Micros {
	const oneThread, asScheduled = 4, 2
	var ts unix.Timespec
	if tid == 0 || unix.ClockGettime(^int32(tid)<<3|oneThread|asScheduled, &ts) != nil {
		return 0
	}
	return ident.Micros(ts.Nano() / 1000)
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
