package worker

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// drillFaults is what drills do to a worker. Its guest fails when asked to: the next vCPU of this part that would enter it fails in its place.
type drillFaults struct {
	wanted atomic.Bool

	mu    sync.Mutex
	taken uint64                 // protected by mu; the last request that was heeded
	ends  *time.Timer            // protected by mu; when faults of links end by themselves
	links []wire.WorkerLinkFault // protected by mu; in force
}

// due tells the first vCPU that asks after a request to crash.
func (c *drillFaults) due() bool { return c.wanted.Load() && c.wanted.Swap(false) }

// breakLinks does what a drill asks for. Faults of links end by themselves when serve does not repeat them.
func (w *Worker) breakLinks(f wire.WorkerFaults) {
	by := make(map[ident.ServerID]link.Impairment)
	for _, l := range f.Links {
		by[l.Server] = link.Impairment{Cut: l.Cut, Delay: millis(l.DelayMillis), Jitter: millis(l.JitterMillis), LossPermille: l.LossPermille}
	}
	c := &w.drill
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.links, f.Links) { // what has not changed goes on undisturbed
		w.log.Warn().Int("links", len(by)).Msg("a drill breaks links, or mends them")
		w.impair(by, f.Seed)
		c.links = f.Links
	}
	if c.ends != nil {
		c.ends.Stop()
	}
	if len(by) > 0 {
		c.ends = time.AfterFunc(millis(f.LastMillis), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			w.impair(nil, 0)
			c.links = nil
		})
	}
	if f.Crash > c.taken {
		c.taken = f.Crash
		c.wanted.Store(true)
		w.kickAll()
	}
}

// impair sets what happens to both planes' connections.
func (w *Worker) impair(by map[ident.ServerID]link.Impairment, seed uint64) {
	if w.plane != nil && w.plane.pages != nil {
		w.plane.pages.Impair(by, seed)
	}
	if w.replica != nil {
		w.replica.plane.Impair(by, ^seed)
	}
}

func millis(n int) time.Duration { return time.Duration(n) * time.Millisecond }
