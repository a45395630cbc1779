package worker

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// A backing is where pages go that have no room in this server's memory: to frames on servers that lend theirs, and to the paging file.
//
//	pager --WriteAt--> leaving --writer's thread--> a lender's frames; the paging file if none has room
//	      <--ReadAt---  (or from there)
//
// A lender that does not answer a write is left alone for a moment, and the page goes elsewhere. One that does not answer a read within lendPatience, or
// gives back other contents than it was given, has taken the page with it: the part is lost.
//
// Lock order: the pager's, turn, mu. What a lender is asked is asked without mu.
type backing struct {
	plane *link.Pages // to lenders
	fail  func(error) // pages are lost
	awake awake

	coming coming // the pager's, which asks for one page at a time

	turn sync.Mutex // held by whoever puts frames somewhere: a lender refuses what it is told later than what followed it
	seq  uint64     // protected by turn; of puts and cuts
	body []byte     // protected by turn; of the last put

	mu      sync.Mutex                       // protects all below
	where   map[uint32]frame                 // by slot
	leaving map[uint32]*[ident.PageSize]byte // by slot: not there yet
	queue   []uint32                         // slots in leaving, in order; some have left it already
	tiers   []*tier                          // the paging file first
	changed *sync.Cond                       // leaving, tiers or closed have
	stuck   error                            // why what is leaving has no place to go
	closed  bool
	wanted  uint64 // number of the last WorkerLenders
	carried uint64 // and of the last that was carried out
	lent    uint64 // pages that went to lenders
	back    uint64 // pages moved away from them since they wanted their memory back
}

// frame is a place in a tier.
type frame struct {
	tier *tier
	no   uint32
	sum  uint64 // of the contents
}

const (
	lendPatience = 10 * time.Second       // for a page to be read
	lendPut      = 500 * time.Millisecond // for some to be written
	lendRest     = time.Second            // of a tier that failed
	lendRetry    = 20 * time.Millisecond
	lendLinger   = 4 * time.Millisecond
	maxLeaving   = 128 // pages that wait to be written: half a MiB, beside what the part may hold
)

func newBacking(file *os.File, fail func(error)) *backing {
	b := &backing{fail: fail, where: map[uint32]frame{}, leaving: map[uint32]*[ident.PageSize]byte{}, tiers: []*tier{{file: file}}}
	b.changed = sync.NewCond(&b.mu)
	b.seq = uint64(bootMicros()) // above what another process of this part put
	return b
}

// coming is a page that a lender was asked for before it is read.
type coming struct {
	slot     uint32
	frame    frame
	question *link.Question // nil: none is
}

// Expect implements ram.Store: what a lender has is on its way while the pager makes room.
func (b *backing) Expect(slot uint32) {
	b.mu.Lock()
	f, here := b.where[slot], b.leaving[slot] != nil
	b.mu.Unlock()
	b.coming = coming{}
	if !here && f.tier != nil && f.tier.file == nil {
		b.coming = coming{slot: slot, frame: f, question: b.plane.Ask(f.tier.lender.As, lendEpoch, wire.DeviceGeneric, getFrame(f.no))}
	}
}

// ReadAt implements ram.Store.
func (b *backing) ReadAt(buf []byte, off int64) (int, error) {
	slot := uint32(off >> ident.PageShift)
	early := b.coming
	b.coming = coming{}
	if early.slot != slot {
		early.question = nil
	}
	var last frame
	for {
		b.mu.Lock()
		page, f := b.leaving[slot], b.where[slot]
		if page != nil {
			copy(buf, page[:])
		}
		b.mu.Unlock()
		if page != nil {
			return len(buf), nil
		}
		if f.tier == nil {
			return 0, errors.New("nothing was written there")
		}
		if early.frame != f {
			early.question = nil
		}
		err := b.read(f, buf, early.question)
		early.question = nil
		if err == nil || f == last {
			return len(buf), err
		}
		last = f // it may just have been moved away from there: look again
	}
}

// WriteAt implements ram.Store. It waits only while much is on its way.
func (b *backing) WriteAt(buf []byte, off int64) (int, error) {
	slot := uint32(off >> ident.PageShift)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(slot)
	for len(b.leaving) >= maxLeaving && b.stuck == nil && !b.closed {
		b.changed.Wait()
	}
	switch {
	case b.closed:
		return 0, os.ErrClosed
	case len(b.leaving) >= maxLeaving:
		return 0, b.stuck
	case !slices.ContainsFunc(b.tiers, (*tier).hasRoom):
		return 0, b.full()
	}
	page := new([ident.PageSize]byte)
	copy(page[:], buf)
	b.leaving[slot] = page
	b.queue = append(b.queue, slot)
	b.changed.Broadcast()
	return len(buf), nil
}

func (b *backing) full() error {
	return fmt.Errorf("the paging file is full, it may have %s, and nobody lends more memory", ident.Bytes(b.tiers[0].limit)<<ident.PageShift)
}

// Free implements ram.Store.
func (b *backing) Free(slot uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(slot)
}

// drop requires mu.
func (b *backing) drop(slot uint32) {
	if f, ok := b.where[slot]; ok {
		f.tier.give(f.no)
		delete(b.where, slot)
	}
	if b.leaving[slot] != nil {
		delete(b.leaving, slot)
		b.changed.Broadcast()
	}
}

// piece is a page that is put somewhere.
type piece struct {
	slot uint32
	page *[ident.PageSize]byte
	to   frame
}

// write is the writer's thread. A few pages wait for a moment for others: together they cost a lender, and the connection on which a fault may be waiting for a
// page from there, little more than one.
func (b *backing) write() {
	runtime.LockOSThread() // for good: faults wait for it when much is on its way
	raisePriority()
	for {
		b.mu.Lock()
		for len(b.queue) == 0 && !b.closed {
			b.changed.Wait()
		}
		closed, few := b.closed, len(b.queue) < wire.LendPutFrames
		b.mu.Unlock()
		if closed {
			return
		}
		if few {
			time.Sleep(lendLinger)
		}
		b.turn.Lock()
		err := b.writeSome()
		b.turn.Unlock()
		if err != nil {
			time.Sleep(lendRetry)
		}
	}
}

// writeSome puts the first pages of the queue somewhere. It requires turn.
func (b *backing) writeSome() error {
	b.mu.Lock()
	t := b.choose(nil)
	var pieces []piece
	done := 0
	for done < len(b.queue) && t != nil && len(pieces) < wire.LendPutFrames {
		slot := b.queue[done]
		if page := b.leaving[slot]; page != nil {
			no, ok := t.take(slot)
			if !ok {
				break
			}
			pieces = append(pieces, piece{slot, page, frame{tier: t, no: no}})
		}
		done++
	}
	b.queue = b.queue[done:]
	if t == nil {
		b.stuck = b.full()
		b.changed.Broadcast()
	}
	err := b.stuck
	b.mu.Unlock()
	if t == nil {
		return err
	}
	err = b.put(t, pieces)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stuck = nil
	if err != nil {
		t.rest = time.Now().Add(lendRest)
		if t.file != nil {
			b.stuck = err
		}
	}
	for _, p := range pieces {
		switch {
		case b.leaving[p.slot] != p.page: // it was dropped meanwhile, and perhaps written anew
			t.give(p.to.no)
		case err != nil:
			t.give(p.to.no)
			b.queue = append(b.queue, p.slot)
		default:
			b.where[p.slot] = p.to
			delete(b.leaving, p.slot)
		}
	}
	b.changed.Broadcast()
	return err
}

// choose returns the tier where pages go, nil if none has room. It requires mu.
func (b *backing) choose(but *tier) *tier {
	now := time.Now()
	for i := range b.tiers {
		t := b.tiers[(i+1)%len(b.tiers)] // the file last
		if t != but && t.hasRoom() && (t.file != nil || now.After(t.rest)) {
			return t
		}
	}
	return nil
}

// put writes pages to the frames of a tier, and notes their sums. It requires turn, not mu.
func (b *backing) put(t *tier, pieces []piece) error {
	for i := range pieces {
		pieces[i].to.sum = xxh3.Hash(pieces[i].page[:])
	}
	if t.file == nil {
		return b.putLender(t, pieces)
	}
	for _, p := range pieces {
		if _, err := t.file.WriteAt(p.page[:], int64(p.to.no)<<ident.PageShift); err != nil {
			return err
		}
	}
	return nil
}

// read reads a frame, for which its lender may have been asked already.
func (b *backing) read(f frame, buf []byte, early *link.Question) error {
	if f.tier.file == nil {
		return b.readLender(f, buf, early)
	}
	_, err := f.tier.file.ReadAt(buf, int64(f.no)<<ident.PageShift)
	if err == nil && xxh3.Hash(buf) != f.sum {
		err = fmt.Errorf("frame %d of the paging file is not what was written there", f.no)
	}
	return err
}

// tier is the file or a lender. Frames are given out lowest first, so that what a lender wants back is at the end, and moving it away is a bounded piece
// of work.
type tier struct {
	file   *os.File          // nil: a lender
	lender wire.WorkerLender // constant but for its limit
	limit  uint32            // frames below it may be given out
	owner  []uint32          // by frame: its slot + 1, 0 if free
	used   int
	low    uint32 // no frame below it is free
	cut    uint32 // the lender may keep something for frames below it
	rest   time.Time
}

// take gives out the lowest free frame.
func (t *tier) take(slot uint32) (uint32, bool) {
	for t.low < uint32(len(t.owner)) && t.owner[t.low] != 0 {
		t.low++
	}
	if t.low >= t.limit {
		return 0, false
	}
	if t.low == uint32(len(t.owner)) {
		t.owner = append(t.owner, 0)
	}
	t.owner[t.low] = slot + 1
	t.used++
	t.cut = max(t.cut, t.low+1)
	return t.low, true
}

func (t *tier) give(no uint32) {
	t.owner[no] = 0
	t.used--
	t.low = min(t.low, no)
	for n := len(t.owner); n > 0 && t.owner[n-1] == 0; n-- {
		t.owner = t.owner[:n-1]
	}
}

// hasRoom tells whether a frame below the limit is free.
func (t *tier) hasRoom() bool {
	for t.low < uint32(len(t.owner)) && t.owner[t.low] != 0 {
		t.low++
	}
	return t.low < t.limit
}

// last lists the slots of the last frames that are not below one, no more than a lender takes at a time.
func (t *tier) last(from uint32) (slots []uint32) {
	for n := uint32(len(t.owner)); n > from && len(slots) < wire.LendPutFrames; n-- {
		if o := t.owner[n-1]; o != 0 {
			slots = append(slots, o-1)
		}
	}
	return slots
}
