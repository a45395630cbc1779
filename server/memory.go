package server

import (
	"maps"
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/paging"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// memoryRule is what this server has for its guests, where it promises them more than that: `overcommit` above 1. Without, placement promises each
// part no more than there is for it, and nobody is told anything.
type memoryRule struct {
	on     bool
	memory ident.Bytes
	file   ident.Bytes // of all paging files
	lend   bool        // memory of other servers may be borrowed
	lent   ident.Bytes // of memory, to other servers
}

// ofGuest is what the division of memory is about.
type ofGuest struct {
	bytes ident.Bytes        // the VM's memory
	limit *wire.WorkerMemory // what the worker was told last; nil: it may hold all
	short bool               // it said that it cannot obey
}

// divideMemory tells each worker how much it may hold now. It requires mu; starting, if not nil, is a worker that is about to be told by its spec.
func (s *supervisor) divideMemory(starting *worker) {
	if !s.rule.on {
		return
	}
	var parts []paging.Part
	var told []*worker
	for _, vm := range slices.Sorted(maps.Keys(s.workers)) {
		w := s.workers[vm]
		w.mu.Lock()
		p := paging.Part{VM: vm, Bytes: w.guest.bytes}
		limit := w.guest.limit
		if w.stats != nil {
			p.Resident = w.stats.ResidentBytes
			if w.stats.Paging != nil {
				p.FileUsed = w.stats.Paging.FileBytes
			}
		}
		w.mu.Unlock()
		if limit == nil && w != starting {
			continue // still being prepared, or of an earlier serve that promised nothing more than there was
		}
		if limit != nil {
			p.Limit = limit.LimitBytes
		}
		parts, told = append(parts, p), append(told, w)
	}
	for i, share := range paging.Divide(s.rule.memory-min(s.rule.memory, s.rule.lent), s.rule.file, parts) {
		w := told[i]
		next := wire.WorkerMemory{LimitBytes: share.Limit, FileBytes: share.File, Borrow: s.rule.lend}
		w.mu.Lock()
		now := w.guest.limit
		w.mu.Unlock()
		if now == nil || notable(now.LimitBytes, next.LimitBytes) || notable(now.FileBytes, next.FileBytes) {
			w.post(func() { w.guest.limit = &next })
		}
	}
}

// setLent says how much of the memory is lent to other servers.
func (s *supervisor) setLent(n ident.Bytes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rule.lent != n {
		s.rule.lent = n
		s.divideMemory(nil)
	}
}

// memoryUse tells how much of this server's memory its own parts use, and how much more they could. Where memory is promised only once, they use what is
// promised to them.
func (s *supervisor) memoryUse(st *cells.State, self ident.ServerID) (used, missing ident.Bytes) {
	if !s.rule.on {
		return monitor.PromisedBytes(st, self), 0
	}
	for _, w := range s.all() {
		w.mu.Lock()
		stats, bytes := w.stats, w.guest.bytes
		w.mu.Unlock()
		if stats == nil || stats.Paging == nil {
			continue
		}
		used += stats.ResidentBytes
		out := stats.Paging.FileBytes
		for _, o := range stats.Paging.Loans {
			out += o.HeldBytes
		}
		if pressed(stats.ResidentBytes, stats.Paging.LimitBytes) {
			missing += min(out, bytes-min(bytes, stats.ResidentBytes))
		}
	}
	return used, missing
}

// notable tells whether a change is worth a message.
func notable(from, to ident.Bytes) bool {
	return max(from, to)-min(from, to) > max(from, to)/64
}

// firstMemory is what a worker's spec says about memory, nil if nothing.
func (s *supervisor) firstMemory(w *worker, bytes ident.Bytes) *wire.WorkerMemory {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rule.on {
		return nil
	}
	w.mu.Lock()
	w.guest.bytes = bytes
	w.mu.Unlock()
	s.divideMemory(w)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guest.limit == nil { // it was stopped meanwhile
		w.guest.limit = &wire.WorkerMemory{LimitBytes: paging.LeastBytes}
	}
	return w.guest.limit
}

// heardStats takes in a worker's word about itself.
func (s *supervisor) heardStats(w *worker, stats *wire.WorkerStats) {
	w.mu.Lock()
	w.stats, w.statsAt = stats, bootMicros()
	p := stats.Paging
	changed := p != nil && w.guest.short != (p.Error != "")
	w.guest.short = p != nil && p.Error != ""
	w.mu.Unlock()
	if changed {
		s.report(monitor.WorkerShort{VM: w.vm, On: p.Error != "", Reason: p.Error, Resident: stats.ResidentBytes, Limit: p.LimitBytes})
	}
	if p != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.divideMemory(nil)
	}
}

// addPaging adds up what the workers last said about paging.
func addPaging(out map[string]uint64, p *wire.WorkerPaging) {
	if p == nil {
		return
	}
	out["paging.limit_bytes"] += uint64(p.LimitBytes)
	out["paging.file_bytes"] += uint64(p.FileBytes)
	out["paging.in"] += p.In
	out["paging.out"] += p.Out
	out["paging.dropped"] += p.Dropped
	out["paging.zero"] += p.Zero
	out["paging.again"] += p.Again
	out["paging.lent"] += p.Lent
	out["paging.returned"] += p.Returned
	for _, o := range p.Loans {
		out["paging.borrowed_bytes"] += uint64(o.HeldBytes)
	}
	out["paging.in_micros_sum"] += p.InMicrosSum
	out["paging.in_micros_typical"] = max(out["paging.in_micros_typical"], uint64(p.InMicros))
}
