package worker

import (
	"errors"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// sendBase sends a full copy of what this part holds, in the background; it tells whether it is all there.
func (r *replicas) sendBase(seq uint64, to ident.PartSet, booted ident.Epoch) bool {
	r.tracking.Lock()
	defer r.tracking.Unlock()
	p, change := r.current()
	if p.Seq != seq || r.w.cutter.bootedNow() != booted {
		return false
	}
	begun, sent := r.baseIs(seq, booted)
	if begun {
		return sent
	}
	if err := r.w.track(true); err != nil {
		r.w.fail(err)
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base, r.baseOf, r.based, r.synced, r.syncing = seq, booted, false, 0, r.w.plane.ram.Pages()+uint64(to.Len())*r.w.homeDisks().blocks()
	go func() {
		if r.openDisks(to, seq, change) && r.copyAll(seq, to, p, booted, change) {
			r.mu.Lock()
			if r.base == seq && r.baseOf == booted { // else it was overtaken by the copy of a later boot, which may be whole already
				r.based, r.synced = true, r.syncing
			}
			r.mu.Unlock()
		}
	}()
	return false
}

// baseIs tells whether the full copy for a protection and boot was begun, and whether it is sent.
func (r *replicas) baseIs(seq uint64, booted ident.Epoch) (begun, sent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	begun = r.base == seq && r.baseOf == booted
	return begun, begun && r.based
}

// copyAll sends every page that this part holds, what is on disks, and the logs of output. What the guest writes meanwhile is in the next checkpoint.
func (r *replicas) copyAll(seq uint64, to ident.PartSet, p wire.WorkerProtect, booted ident.Epoch, change <-chan struct{}) bool {
	var members ident.PartSet
	for _, m := range p.Members {
		members = members.Set(m.Part)
	}
	s := &share{header: chunkHeader{number: seq, members: members, part: r.w.spec.Part, flags: chunkBase, booted: booted}}
	index := 0
	flush := func(all bool) bool { // what is collected so far leaves in full chunks; all: the rest too, as the last one
		if all {
			s.say()
		}
		for len(s.chunks) > 1 || all && len(s.chunks) > 0 {
			one := &share{header: s.header, chunks: s.chunks[:1]}
			last := all && len(s.chunks) == 1
			if !r.shipOne(one, index, last, to, p, change) {
				return false
			}
			index++
			s.chunks = s.chunks[1:]
		}
		return true
	}
	plane := r.w.plane
	pages := plane.ram.Pages()
	for page := ident.PageNo(0); uint64(page) < pages; page++ {
		next, err := plane.ram.NextData(page)
		if err != nil {
			r.w.fail(err)
			return false
		}
		if page = next; uint64(page) >= pages {
			break
		}
		plane.mu.Lock()
		same := r.w.cutter.bootedNow() == booted
		if same && plane.holds(page) {
			err = plane.capturePage(s, page)
		}
		plane.mu.Unlock()
		if !same {
			return false // home asks for a copy of the new boot
		}
		if err != nil {
			r.w.fail(err)
			return false
		}
		if !flush(false) {
			return false
		}
		r.mu.Lock()
		r.synced = uint64(page)
		r.mu.Unlock()
	}
	if !r.copyAllDisks(to, seq, change) {
		return false
	}
	logs, ok := r.copyLogs(s, flush) // last: the less time is between this and the first checkpoint, the less output is in that
	if !ok || !flush(true) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logged, r.logsOf = logs, seq
	return true
}

// The copy of the logs is repeated for what has come meanwhile, until that is little, or the guest is seen to be faster.
const (
	logRestMost = 1 << 20
	logRounds   = 8
)

// copyLogs adds the output that has left so far: the guest cannot stand still for all of it. It returns how far it came.
func (r *replicas) copyLogs(s *share, flush func(all bool) bool) (at logEnds, ok bool) {
	h := r.w.home.Load()
	if h == nil {
		return at, true
	}
	for range logRounds {
		before := at
		for _, l := range h.logs(at) {
			begins := func(start wire.LogStart) error { s.addStart(l.kind, start); return nil }
			end, err := h.eachPiece(l.of, l.at, streamPiece, begins, func(at int64, b []byte) error {
				s.add(l.kind, uint64(at), b)
				if !flush(false) {
					return errEnded
				}
				return nil
			})
			if err != nil {
				if !errors.Is(err, errEnded) { // else it is home no more, or the protection has changed
					r.w.fail(err)
				}
				return at, false
			}
			if l.kind == recordConsole {
				at.console = end
			} else {
				at.output = end
			}
		}
		if at.console-before.console+at.output-before.output < logRestMost {
			break
		}
	}
	return at, true
}

// logsFrom is from where on the standbys of a protection may lack output that has left: what is before came with their full copies. all: they have all
// that has left, with the checkpoints that they hold.
func (r *replicas) logsFrom(seq uint64) (from logEnds, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.logsOf == seq:
		return r.logged, false
	case r.protect.Seq == seq && r.protect.Standbys&^r.safe == 0:
		return logEnds{}, true
	}
	return logEnds{}, false
}

// easeMost bounds a rest between two chunks: one of them may have waited for a peer that was away.
const easeMost = 20 * time.Millisecond

// moveHurries is by how much a copy for a move rests less.
const moveHurries = 4

// ease throttles a full copy: it rests for as long as the last chunk has taken, so that at least half of what the copy takes of CPUs, network and
// standby is left to the guest and its checkpoints. The slower these are, the longer it rests. A copy for a move, which somebody waits for and which is soon
// over, rests for a quarter of that.
func (r *replicas) ease(change <-chan struct{}, took time.Duration) bool {
	select {
	case <-time.After(min(took, easeMost)):
		return true
	case <-change:
		return false
	case <-r.w.ctx.Done():
		return false
	}
}

// shipOne sends one chunk of a base to all standbys in to, and rests.
func (r *replicas) shipOne(s *share, index int, last bool, to ident.PartSet, p wire.WorkerProtect, change <-chan struct{}) bool {
	began, seq, hurry := time.Now(), p.Seq, time.Duration(1)
	if !p.Kept {
		hurry = moveHurries
	}
	defer func() { r.ease(change, time.Since(began)/hurry) }()
	buf := s.encodeAt(append(make([]byte, 0, wire.DeviceBodyLimit), byte(replicaChunk)), 0, index, last)
	ok := true
	to.Each(func(part ident.Part) {
		for ok && r.request(part, seq, buf) != nil {
			select {
			case <-change:
				ok = false
			case <-r.w.ctx.Done():
				ok = false
			case <-time.After(replicaBackoff):
			}
		}
	})
	return ok
}
