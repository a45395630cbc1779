package worker

import (
	"errors"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A part whose server is in the view but which does not answer home at all, again and again, is given up: home asks the registry to take it out of
// the VM. Until that is agreed output stays held back, so nothing depends on home being right.
const (
	giveUpAfter    = 5 * time.Second
	giveUpAttempts = 5
)

// silence is for how long a part has not answered.
type silence struct {
	since    time.Time
	attempts int
}

func (r *replicas) noteSilence(part ident.Part, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil || errors.Is(err, errNotReady) || !r.w.guard.leased() {
		delete(r.silent, part)
		return
	}
	s, ok := r.silent[part]
	if !ok {
		s.since = time.Now()
	}
	s.attempts++
	if s.attempts >= giveUpAttempts && time.Since(s.since) > giveUpAfter {
		s = silence{since: time.Now()} // asked for again after as long, should it be still there
		r.w.log.Warn().Stringer("part", part).Msg("does not answer on the replica plane: asking to go on without it")
		hint := wire.WorkerHint{Part: part, GiveUp: true, Reason: fmt.Sprintf("it has not answered the vm's home on %s for %v", r.w.spec.ServerName, giveUpAfter)}
		go r.w.control.send(wire.FromWorker{Hint: &hint})
	}
	if r.silent == nil {
		r.silent = map[ident.Part]silence{}
	}
	r.silent[part] = s
}
