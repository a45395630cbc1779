package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/wire"
)

// A worker sends its counters once a second. One that says nothing any more hangs: it was stopped, or wedged. It is killed, which ends whatever it
// still holds, and is then a worker that has gone: its VM goes on from a replica, or ends with the reason. Silence is counted in ticks of this
// process, not in time: if both were stopped and continued, nothing was missed. With longer leases it may last longer.
//
// One that has never said anything does not come up; it has more time. Nobody depends on it yet, so another one is started in its place, once.
const (
	silenceTick  = 500 * time.Millisecond
	silenceTicks = 10
	comeUpTicks  = 60          // half a minute: it may have a large disk's journal to carry out
	lastLook     = time.Second // for the runtime of one that does not come up to write to its log what its goroutines do
)

// attendSilence watches one worker until its process is gone.
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
		if p.gone() {
			return
		}
		w.mu.Lock()
		heard, hearing := w.heard, w.hearing
		w.mu.Unlock()
		if silent++; heard != last || hearing { // if it is heard all the time, it is this process that is slow
			last, silent = heard, 0
		}
		switch {
		case heard == 0 && silent == s.comeUp*s.slow:
			s.log.Error().Uint64("vm", uint64(w.vm)).Int("pid", p.pid).Msg("worker does not come up; killing it")
			w.killedFor(fmt.Sprintf("it did not come up within %v", silenceTick*time.Duration(silent)))
			s.endMute(p)
		case heard != 0 && silent == silenceTicks*s.slow:
			s.log.Error().Uint64("vm", uint64(w.vm)).Int("pid", p.pid).Msg("worker hangs: it says nothing; killing it")
			w.killedFor(fmt.Sprintf("it had said nothing for %v", silenceTick*time.Duration(silent)))
			s.counts.killed.Add(1)
			_ = p.signal(unix.SIGKILL)
		}
	}
}

// endMute ends a worker that does not come up; what it was doing is in its log then, if it can still tell.
func (s *supervisor) endMute(p *process) {
	s.counts.killed.Add(1)
	_ = p.signal(unix.SIGQUIT)
	ctx, cancel := context.WithTimeout(s.ctx, lastLook)
	defer cancel()
	_ = p.wait(ctx)
	_ = p.signal(unix.SIGKILL)
}

// startAgain tells whether another process is to be started for a worker whose process has ended: if that never said anything for all the time that it
// had, and is still wanted. It notes that it did.
func (s *supervisor) startAgain(w *worker, pid int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heard != 0 || w.killed == "" || w.again || w.ctx.Err() != nil || s.ctx.Err() != nil {
		return false
	}
	s.log.Warn().Uint64("vm", uint64(w.vm)).Int("pid", pid).Str("log_end", logEnd(w.dir)).Msg("worker did not come up: another one is started")
	w.killed, w.again = "", true
	return true
}

// logEnd is the end of a worker's log.
func logEnd(dir string) string {
	const most = 8 << 10
	raw, err := os.ReadFile(filepath.Join(dir, wire.WorkerLogFile))
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-most):])
}
