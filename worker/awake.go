package worker

import (
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/cpuidle"
)

// When the host's CPUs are kept from sleeping: a remote fault takes two or three wake-ups, on this host and on the peer's, and each of an
// idle CPU may cost more than all the work between them.
const (
	awakeBurst  = 8                      // page events,
	awakeWindow = 10 * ident.Millisecond // within so long, keep CPUs awake
	awakeCalm   = 100 * time.Millisecond // until so long passes with fewer
	awakeLoan   = awakeBurst / 2         // events that a page from a lender counts as: a vCPU waits for four wake-ups, one after the other
)

// awake keeps CPUs awake while pages travel.
//
//	asleep --burst within window--> awake --calm--> asleep
type awake struct {
	mu      sync.Mutex       // protects all below; the last lock of all
	latency *cpuidle.Latency // nil: not wanted here, or not allowed
	since   ident.Micros
	events  int
	timer   *time.Timer
}

// note counts page events.
func (a *awake) note(now ident.Micros, events int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latency == nil {
		return
	}
	a.events += events
	if a.latency.Held() {
		return
	}
	if now-a.since > awakeWindow {
		a.since, a.events = now, events
	}
	if a.events >= awakeBurst {
		a.events = 0
		a.latency.Hold()
		a.timer.Reset(awakeCalm)
	}
}

// calm runs every awakeCalm while CPUs are kept awake.
func (a *awake) calm() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.events < awakeBurst {
		a.latency.Release()
	} else {
		a.timer.Reset(awakeCalm)
	}
	a.events = 0
}

// watch begins to watch how busy the planes are, unless the host's idle CPUs are to sleep, or nobody may keep them from it.
func (a *awake) watch(sleep bool) {
	if sleep {
		return
	}
	latency, err := cpuidle.Open()
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.latency = latency
	a.timer = time.AfterFunc(time.Hour, a.calm)
}
