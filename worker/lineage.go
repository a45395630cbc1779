package worker

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A VM with several standbys goes on from one of them, and may then have to go on from another before that one has a new full copy. So the new
// home holds back all output that the others may not know of, and brings them to its own checkpoint first:
//
//	home's checkpoint n, a standby's applied one:
//	  n      nothing to do
//	  later  the standby undoes what it applied, down to n: home never heard that all had it, so nothing of it has left
//	  before home sends it the shares of n, which hold all that was written since the last checkpoint known to be with all
//
// From then on checkpoints follow as if nothing had happened, and once all have the first one output leaves again.

// past is what a standby goes back to when it undoes a checkpoint.
type past struct {
	number  uint64
	members ident.PartSet
	at      time.Time
	vcpus   map[ident.VCPU][]byte
	device  []byte
	console int64                   // length of the log
	output  int64                   // likewise
	pages   map[ident.PageNo][]byte // that the checkpoint replaced
	blocks  []map[uint64]disk.Write // likewise, by disk
}

func (s *standby) setSeveral(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.several = on
}

// remember begins to note what a checkpoint replaces, and forgets what is too old to be gone back to: since is known to be with all. It requires mu.
func (s *standby) remember(since uint64) error {
	for len(s.undo) > 0 && s.undo[0].number < since {
		s.undo = s.undo[1:]
	}
	p := &past{number: s.applied, members: s.members, at: s.at, vcpus: maps.Clone(s.vcpus), device: s.device, pages: map[ident.PageNo][]byte{}, blocks: s.disks.noBlocks()}
	var err error
	if p.console, err = sizeOf(s.console.file); err != nil {
		return err
	}
	if p.output, err = sizeOf(s.output.file); err != nil {
		return err
	}
	s.undo = append(s.undo, p)
	s.noting = p
	return nil
}

func sizeOf(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// note keeps a page as it is before a checkpoint replaces it. It requires mu.
func (s *standby) note(page ident.PageNo) error {
	if s.noting == nil {
		return nil
	}
	if _, ok := s.noting.pages[page]; ok {
		return nil
	}
	b := make([]byte, ident.PageSize)
	s.noting.pages[page] = b
	return s.ram.ReadPage(page, b)
}

// errNoWayBack says that a standby cannot come to the checkpoint that the VM went back to: another has to take its place.
var errNoWayBack = errors.New("nothing leads from this replica to the checkpoint that the VM went on from")

// align brings the replica to a checkpoint that the VM went on from in the given epoch, and tells whether it is there. more tells whether home has
// the shares of that checkpoint to send. A repeated or late request changes nothing.
func (s *standby) align(epoch ident.Epoch, number uint64, more bool, booted ident.Epoch) (bool, error) {
	s.mu.Lock()
	defer s.unlock()
	switch {
	case s.taken:
		return false, errEnded
	case epoch < s.epoch:
		return false, nil
	case epoch == s.epoch && s.aligned:
		return true, nil
	}
	s.epoch, s.aligned = epoch, false
	for s.applied > number {
		if len(s.undo) == 0 {
			return false, fmt.Errorf("%w: it has checkpoint %d, that is %d", errNoWayBack, s.applied, number)
		}
		if err := s.undoLast(); err != nil {
			return false, err
		}
	}
	for n := range s.shares {
		if n > number { // of a home that is gone
			delete(s.shares, n)
		}
	}
	s.aligned = s.applied == number && s.complete
	if !s.aligned && (!more || !s.complete) {
		return false, fmt.Errorf("%w: it has checkpoint %d, that is %d", errNoWayBack, s.applied, number)
	}
	if s.aligned {
		s.booted = max(s.booted, booted) // as home calls it from now on, though it may be an earlier one
	}
	return s.aligned, nil
}

// undoLast requires mu.
func (s *standby) undoLast() error {
	p := s.undo[len(s.undo)-1]
	s.undo = s.undo[:len(s.undo)-1]
	for page, b := range p.pages {
		s.refs.Drop(page)
		var err error
		if bytes.Equal(b, zeroPage[:]) {
			err = s.ram.ZeroPage(page)
		} else {
			err = s.ram.WritePage(page, b)
		}
		if err != nil {
			return err
		}
	}
	if err := s.disks.undo(p.blocks); err != nil {
		return err
	}
	if err := errors.Join(s.console.file.Truncate(p.console), s.output.file.Truncate(p.output)); err != nil {
		return fmt.Errorf("undo checkpoint %d: %w", s.applied, err)
	}
	s.applied, s.members, s.at, s.vcpus, s.device, s.last = p.number, p.members, p.at, p.vcpus, p.device, nil
	return nil
}

// tail is the end of an output log that may not be seen yet, since another standby may not know of it.
type tail struct {
	at    int64
	bytes []byte
}

// cutTail takes what is behind an offset off a log. It requires mu.
func cutTail(f *os.File, at int64) (t tail, err error) {
	size, err := sizeOf(f)
	if err != nil || size <= at {
		return tail{at: size}, err
	}
	t = tail{at: at, bytes: make([]byte, size-at)}
	if _, err := f.ReadAt(t.bytes, at); err != nil {
		return t, err
	}
	return t, f.Truncate(at)
}

// holdTail holds back the end of a log, if it did not leave in a former life of this home.
func (s *stream) holdTail(t tail) {
	if s.written == t.at {
		s.held = bytes.Clone(t.bytes)
	}
}

// sharesOf puts the shares of an applied checkpoint together again, for a standby that lacks them.
func (c *cutIn) sharesOf(number uint64) []*share {
	var all []*share
	c.members.Each(func(part ident.Part) {
		s := &share{header: chunkHeader{number: number, booted: c.booted, since: c.since, members: c.members, part: part}}
		p := c.parts[part]
		for i := range p.total {
			s.chunks = append(s.chunks, p.chunks[i])
		}
		s.encodeAll()
		all = append(all, s)
	})
	return all
}

// lineage is what the home of a VM that went back to a checkpoint knows of the other standbys.
type lineage struct {
	epoch   ident.Epoch
	number  uint64
	last    *cutIn        // the shares of checkpoint number, nil if they are not here
	pending ident.PartSet // standbys that may be at another checkpoint
}

// setLineage says that the VM goes on from checkpoint r, and that it may go back to one of fallback before they have a later one.
func (r *replicas) setLineage(epoch ident.Epoch, from *replica, fallback ident.PartSet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lineage = lineage{epoch: epoch, number: from.number, last: from.last, pending: fallback}
	r.safe = fallback
}

// align brings the standbys that the VM may still go back to to the checkpoint that it went on from. It returns false when the protection has
// changed.
func (l *loop) align(safe ident.PartSet) bool {
	r := l.r
	r.mu.Lock()
	line := r.lineage
	r.mu.Unlock()
	line.pending &= safe
	if line.pending == 0 {
		return true
	}
	more := uint64(0)
	var shares []*share
	if line.last != nil {
		more = 1
	}
	ask := func(s ident.Part) error {
		return r.ask(s, l.p.Seq, replicaAlign, uint64(line.epoch), line.number, more, uint64(r.w.cutter.bootedNow()))
	}
	for !r.all(line.pending, ask) {
		if line.last != nil && shares == nil {
			shares = line.last.sharesOf(line.number)
			line.pending.Each(func(to ident.Part) {
				for _, s := range shares {
					r.ship(s, to, l.p.Seq, l.change)
				}
			})
		}
		if line.last != nil {
			r.all(line.pending, func(s ident.Part) error { return r.ask(s, l.p.Seq, replicaCommit, line.number) })
		}
		if !r.wait(l.change, time.Millisecond, nil) {
			return false
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lineage.epoch == line.epoch {
		r.lineage.pending &^= line.pending
	}
	return true
}

// holdsFor makes a home that took over hold back what others that the VM may go back to do not know of.
func (h *home) holdsFor(r *replica, m wire.WorkerMembers) {
	h.console.holdTail(r.console)
	h.output.holdTail(r.output)
	h.holding = m.Fallback != 0
	h.frames.on = h.holding
}
