package worker

import (
	"errors"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A part whose server is in the view but which does not answer home at all, again and again, is given up: home asks the registry to take it out of
// the VM. Until that is agreed output stays held back, so nothing depends on home being right. A part that is merely slow, with its disk, say, still
// answers the pings of the connection, and is waited for longer.
const (
	giveUpAfter    = 5 * time.Second
	giveUpAttempts = 5
	deafAfter      = 2 * time.Second // if nothing at all comes from it: longer than a lease, so that a server that stands still is excluded first
	deafAttempts   = 3
)

// silence is for how long a part has not answered.
type silence struct {
	since    time.Time
	attempts int
}

// over tells whether a part that has not answered for so long is to be given up. deaf: nothing else comes from it either.
func (s *silence) over(lasts time.Duration, deaf bool) bool {
	return s.attempts >= giveUpAttempts && lasts > giveUpAfter || deaf && s.attempts >= deafAttempts && lasts >= deafAfter
}

// noteLink notes whether a part's connection is up.
func (r *replicas) noteLink(part ident.Part, up bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deaf = r.deaf.Set(part); up {
		r.deaf = r.deaf.Clear(part)
	}
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
	if lasts := time.Since(s.since); s.over(lasts, r.deaf.Has(part)) {
		s = silence{since: time.Now()} // asked for again after as long, should it be still there
		r.w.log.Warn().Stringer("part", part).Msg("does not answer on the replica plane: asking to go on without it")
		hint := wire.WorkerHint{Part: part, GiveUp: true,
			Reason: fmt.Sprintf("it has not answered the vm's home on %s for %v", r.w.spec.ServerName, (lasts + replicaDeadline).Round(time.Second))}
		go r.w.control.send(wire.FromWorker{Hint: &hint})
	}
	if r.silent == nil {
		r.silent = map[ident.Part]silence{}
	}
	r.silent[part] = s
}
