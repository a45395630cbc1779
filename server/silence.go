package server

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A worker sends its counters once a second. One that says nothing any more hangs: it was stopped, or wedged. It is killed, which ends whatever it
// still holds, and is then a worker that has gone: its VM goes on from a replica, or ends with the reason. Silence is counted in ticks of this
// process, not in time: if both were stopped and continued, nothing was missed. With longer leases it may last longer.
const (
	silenceTick  = 500 * time.Millisecond
	silenceTicks = 10
)

// attendSilence watches one worker that has spoken once, until its process is gone.
func (s *supervisor) attendSilence(w *worker, p *process) {
	ticker := time.NewTicker(silenceTick)
	defer ticker.Stop()
	var last uint64
	silent := 0
	for {
		select {
		case <-ticker.C:
		case <-w.done:
			return
		case <-s.ctx.Done():
			return
		}
		w.mu.Lock()
		heard, hearing := w.heard, w.hearing
		w.mu.Unlock()
		if silent++; heard == 0 || heard != last || hearing { // if it is heard all the time, it is this process that is slow
			last, silent = heard, 0
		}
		if silent == silenceTicks*s.slow {
			s.log.Error().Uint64("vm", uint64(w.vm)).Int("pid", p.pid).Msg("worker hangs: it says nothing; killing it")
			s.counts.killed.Add(1)
			w.killedFor(fmt.Sprintf("it had said nothing for %v", silenceTick*time.Duration(silent)))
			_ = p.signal(unix.SIGKILL)
		}
	}
}
