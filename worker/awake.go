package worker

import (
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
)

// awake keeps CPUs awake while pages travel. All fields are protected by the plane's mu.
//
//	asleep --burst within window--> awake --calm--> asleep
type awake struct {
	latency *cpuidle.Latency // nil: not wanted here, or not allowed
	since   ident.Micros
	events  int
	timer   *time.Timer
}

// note counts a page event.
func (a *awake) note(now ident.Micros) {
	if a.latency == nil {
		return
	}
	a.events++
	if a.latency.Held() {
		return
	}
	if now-a.since > awakeWindow {
		a.since, a.events = now, 1
	}
	if a.events >= awakeBurst {
		a.events = 0
		a.latency.Hold()
		a.timer.Reset(awakeCalm)
	}
}

// calm runs every awakeCalm while CPUs are kept awake.
func (a *awake) calm() {
	if a.events < awakeBurst {
		a.latency.Release()
	} else {
		a.timer.Reset(awakeCalm)
	}
	a.events = 0
}

// keepAwake begins to watch how busy the plane is.
func (p *plane) keepAwake(latency *cpuidle.Latency) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.awake.latency = latency
	p.awake.timer = time.AfterFunc(time.Hour, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.closed {
			p.awake.calm()
		}
	})
}
