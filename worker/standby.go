package worker

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/wire"
)

// standby holds a VM's replica: guest memory as of the last complete checkpoint, the state of vCPUs and devices, and the output up to it.
//
//	syncing --base of every member, and a checkpoint after it--> complete --takeOver--> taken
//
// A checkpoint is staged until every member's share is here, then applied at once, so that the memory of a complete replica is always that of
// one cut. A checkpoint or base of a later boot of the guest begins with all memory Zero. Checkpoints may come while the base does. A page of the base is skipped if a checkpoint has brought it already: either that is newer,
// or the page has changed since and comes with the next one.
type standby struct {
	ram  *ram.RAM
	left atomic.Uint64 // pages that are left to the disks

	mu       sync.Mutex // protects all below
	bases    map[ident.Part]*staged
	seq      uint64            // of the protection whose base is being received
	seqOf    ident.Epoch       // and the boot that it is of
	booted   ident.Epoch       // the guest's boot that the memory is of
	shares   map[uint64]*cutIn // by number of the checkpoint
	applied  uint64            // the last checkpoint applied, 0 if none
	members  ident.PartSet     // that it is of
	brought  []uint64          // bitmap of the pages that a checkpoint has brought
	vcpus    map[ident.VCPU][]byte
	device   []byte
	at       time.Time // when the last checkpoint was applied
	console  logFile
	output   logFile
	taken    bool
	received uint64 // bytes
	scratch  [ident.PageSize]byte

	complete bool        // the memory is that of checkpoint applied, whole
	several  bool        // there are other standbys: what is applied may have to be undone
	undo     []*past     // oldest first
	noting   *past       // of the checkpoint that is being applied
	last     *cutIn      // the last checkpoint applied
	epoch    ident.Epoch // of the VM's last recovery
	aligned  bool        // to the checkpoint that the VM went on from then
	disks    standbyDisks
	refs     *srt.Refs     // pages that are left to the disks
	named    []namedPage   // of the checkpoint that is being applied: pages to be left to the disks
	arrived  chan struct{} // closed, and made anew, when a share is here as a whole
}

// cutIn is a checkpoint that is arriving.
type cutIn struct {
	members ident.PartSet
	booted  ident.Epoch
	since   uint64
	parts   map[ident.Part]*staged
}

// staged is one member's share as far as it is here.
type staged struct {
	chunks map[uint32][]byte // nil values for a base, whose chunks are applied as they come
	total  uint32            // 0 until the last chunk is here
}

func (s *staged) complete() bool { return s != nil && s.total > 0 && uint32(len(s.chunks)) == s.total }

func newStandby(fs *files, memory *ram.RAM, disks standbyDisks) (*standby, error) {
	s := &standby{disks: disks, refs: srt.NewRefs(leftMost, ""), arrived: make(chan struct{}), ram: memory, bases: map[ident.Part]*staged{}, shares: map[uint64]*cutIn{}, vcpus: map[ident.VCPU][]byte{},
		brought: make([]uint64, (memory.Pages()+63)/64)}
	var err error
	if s.console, err = openLog(fs, wire.WorkerConsoleFile, wire.WorkerConsoleStartFile, os.O_TRUNC); err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	if s.output, err = openLog(fs, wire.WorkerOutputFile, wire.WorkerOutputStartFile, os.O_TRUNC); err != nil {
		return nil, fmt.Errorf("output log: %w", err)
	}
	return s, nil
}

// take takes in a chunk. A repeated one changes nothing.
func (s *standby) take(b []byte) error {
	h, records, err := decodeChunk(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.unlock()
	if s.taken {
		return errEnded
	}
	s.received += uint64(len(b))
	if h.flags&chunkBase != 0 {
		return s.takeBase(h, records)
	}
	if h.number <= s.applied {
		return nil
	}
	c := s.shares[h.number]
	if c == nil {
		c = &cutIn{members: h.members, booted: h.booted, since: h.since, parts: map[ident.Part]*staged{}}
		s.shares[h.number] = c
	}
	c.stage(h, records)
	if c.parts[h.part].complete() {
		close(s.arrived)
		s.arrived = make(chan struct{})
	}
	return nil
}

// awaitShares waits until all shares of checkpoint number are here, for a bounded time: who asks for it need not ask again and again, which costs
// both sides more than the checkpoint itself.
func (s *standby) awaitShares(ctx context.Context, number uint64) {
	timer := time.NewTimer(awaitSharesWithin)
	defer timer.Stop()
	for {
		s.mu.Lock()
		c, arrived := s.shares[number], s.arrived
		ready := s.taken || s.applied >= number || c != nil && c.whole()
		s.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-arrived:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// awaitSharesWithin is for how long a request to apply a checkpoint waits for it; much less than the request's deadline.
const awaitSharesWithin = 20 * time.Millisecond

func (c *cutIn) whole() bool {
	whole := true
	c.members.Each(func(p ident.Part) { whole = whole && c.parts[p].complete() })
	return whole
}

func (c *cutIn) stage(h chunkHeader, records []byte) {
	p := c.parts[h.part]
	if p == nil {
		p = &staged{chunks: map[uint32][]byte{}}
		c.parts[h.part] = p
	}
	p.chunks[h.index] = records
	c.since = min(c.since, h.since)
	if h.flags&chunkLast != 0 {
		p.total = h.index + 1
	}
}

// takeBase requires mu.
func (s *standby) takeBase(h chunkHeader, records []byte) error {
	if h.number < s.seq || h.booted < s.booted {
		return nil
	}
	if h.number > s.seq || h.booted > s.seqOf { // the protection has changed meanwhile, or the guest booted again: a new full copy
		s.seq, s.seqOf = h.number, h.booted
		clear(s.bases)
		if err := s.fromDisks(s.refs.All()); err != nil { // the copies of the disks may change under them now
			return err
		}
	}
	if err := s.enterBoot(h.booted); err != nil {
		return err
	}
	p := s.bases[h.part]
	if p == nil {
		p = &staged{chunks: map[uint32][]byte{}}
		s.bases[h.part] = p
	}
	if _, again := p.chunks[h.index]; again {
		return nil
	}
	s.complete, s.undo = false, nil
	if err := eachRecord(records, func(t recordType, key uint64, b []byte) error { return s.apply(t, key, b, true) }); err != nil {
		return err
	}
	p.chunks[h.index] = nil
	if h.flags&chunkLast != 0 {
		p.total = h.index + 1
	}
	return nil
}

// enterBoot makes memory Zero when what arrives is of a later boot than what is here. It requires mu.
func (s *standby) enterBoot(booted ident.Epoch) error {
	if booted <= s.booted {
		return nil
	}
	s.booted = booted
	clear(s.brought)
	s.refs.Clear()
	return s.ram.Zero(0, s.ram.Pages())
}

// commit applies checkpoint number if all of it is here, and tells whether it, or a later one, is applied.
func (s *standby) commit(number uint64) (bool, error) {
	s.mu.Lock()
	defer s.unlock()
	if s.taken {
		return false, errEnded
	}
	if s.applied >= number {
		return true, nil
	}
	c := s.shares[number]
	if c == nil {
		return false, nil
	}
	if !c.whole() || s.lacksDisk(c) {
		return false, nil
	}
	if s.complete && c.since > s.applied {
		return false, fmt.Errorf("%w: it has checkpoint %d, the next is one of what was written since %d", errNoWayBack, s.applied, c.since)
	}
	if err := s.beforeDisksChange(c); err != nil {
		return false, fmt.Errorf("apply checkpoint %d: %w", number, err)
	}
	if err := s.prepare(c); err != nil {
		return false, fmt.Errorf("apply checkpoint %d: %w", number, err)
	}
	if err := s.enterBoot(c.booted); err != nil {
		return false, fmt.Errorf("apply checkpoint %d: %w", number, err)
	}
	for part := range ident.Part(ident.MaxParts) {
		p := c.parts[part]
		if p == nil {
			continue
		}
		for i := range p.total {
			if err := eachRecord(p.chunks[i], func(t recordType, key uint64, b []byte) error { return s.apply(t, key, b, false) }); err != nil {
				return false, fmt.Errorf("apply checkpoint %d: %w", number, err)
			}
		}
	}
	if err := s.disks.commit(s.complete); err != nil {
		return false, fmt.Errorf("apply checkpoint %d: %w", number, err)
	}
	if err := s.leaveToDisks(); err != nil {
		return false, fmt.Errorf("apply checkpoint %d: %w", number, err)
	}
	s.applied, s.at, s.members, s.last, s.noting = number, time.Now(), c.members, c, nil
	s.complete = s.complete || s.hasBases()
	for n := range s.shares {
		if n <= number {
			delete(s.shares, n)
		}
	}
	return true, s.boundLogs()
}

// prepare gets ready to apply a checkpoint that may have to be undone. It requires mu.
func (s *standby) prepare(c *cutIn) error {
	s.noting = nil
	if !s.several || !s.complete || c.booted > s.booted { // a new boot is not undone: memory is made Zero as a whole
		s.undo = nil
		return nil
	}
	return s.remember(c.since)
}

// hasBases tells whether the full copies of all members are here that the last checkpoint is of. It requires mu.
func (s *standby) hasBases() bool {
	whole := s.applied > 0
	s.members.Each(func(p ident.Part) { whole = whole && s.bases[p].complete() })
	return whole
}

// apply requires mu.
func (s *standby) apply(t recordType, key uint64, b []byte, base bool) error {
	switch t {
	case recordPage, recordZero, recordDiff, recordOnDisk:
		return s.applyPage(t, key, b, base)
	case recordVCPU:
		s.vcpus[ident.VCPU(key)] = append([]byte(nil), b...)
	case recordDevice:
		s.device = append([]byte(nil), b...)
	case recordDisk, recordLost:
		return s.disks.stage(t, key, b, s.noting)
	case recordConsole:
		_, err := s.console.file.WriteAt(b, int64(key))
		return err
	case recordOutput:
		_, err := s.output.file.WriteAt(b, int64(key))
		return err
	case recordLogStart:
		return s.logBegins(recordType(key), b)
	default:
		return fmt.Errorf("%w: record of type %d", errBadShare, t)
	}
	return nil
}

func (s *standby) applyPage(t recordType, key uint64, b []byte, base bool) error {
	if key >= s.ram.Pages() {
		return fmt.Errorf("%w: page 0x%x of %d", errBadShare, key, s.ram.Pages())
	}
	bit := uint64(1) << (key % 64)
	if base && s.brought[key/64]&bit != 0 {
		return nil
	}
	if err := s.takeBack(ident.PageNo(key), t); err != nil {
		return err
	}
	if !base {
		s.brought[key/64] |= bit
		if err := s.note(ident.PageNo(key)); err != nil {
			return err
		}
	}
	switch t {
	case recordDiff:
		if err := s.ram.ReadPage(ident.PageNo(key), s.scratch[:]); err != nil {
			return err
		}
		if err := patch(s.scratch[:], b); err != nil {
			return err
		}
		b = s.scratch[:]
	case recordOnDisk:
		return s.name(ident.PageNo(key), b)
	case recordZero:
		return s.ram.ZeroPage(ident.PageNo(key))
	}
	return s.ram.WritePage(ident.PageNo(key), b)
}

// replica is what a standby takes over with.
type replica struct {
	number uint64
	vcpus  map[ident.VCPU][]byte
	device []byte
	at     time.Time
	last   *cutIn // its shares, if they are here
	left   int    // pages that were taken from the disks

	console, output tail   // of the logs: what other standbys may not know of
	disks           *disks // nil once they were used
}

// takeOver ends the standby and returns what the VM goes on from: the last checkpoint that home asked for. One that is all here but that home
// never asked for does not count: only home knows that no member ran between two captures. It fails if the replica is not complete.
func (s *standby) takeOver() (*replica, error) {
	s.mu.Lock()
	defer s.unlock()
	s.taken = true
	clear(s.shares)
	defer s.console.close()
	defer s.output.close()
	if !s.complete && !s.hasBases() {
		return nil, fmt.Errorf("no checkpoint is complete here")
	}
	left := s.refs.Len()
	if err := s.fromDisks(s.refs.All()); err != nil {
		return nil, err
	}
	disks, err := s.disks.takeOver()
	if err != nil {
		return nil, err
	}
	r := &replica{number: s.applied, vcpus: s.vcpus, device: s.device, at: s.at, disks: disks, last: s.last, left: left, console: tail{at: -1}, output: tail{at: -1}}
	if len(s.undo) > 0 {
		var err error
		if r.console, err = cutTail(s.console.file, s.undo[0].console); err != nil {
			return nil, fmt.Errorf("console log: %w", err)
		}
		if r.output, err = cutTail(s.output.file, s.undo[0].output); err != nil {
			return nil, fmt.Errorf("output log: %w", err)
		}
	}
	s.undo = nil
	return r, nil
}
