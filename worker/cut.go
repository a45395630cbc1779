package worker

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// holdWithin bounds how long a member may take to stop its vCPUs for a cut. A vCPU that waits for a page stops when the page has come.
const holdWithin = 300 * time.Millisecond

// heldAtMost bounds how long a member stays held when home, which holds it, is silent.
const heldAtMost = 2 * time.Second

// cutter is a member's side of checkpoints: it holds this part's vCPUs, finds the pages written since the last cut, and captures them.
//
//	running --hold--> held --cut--> captured (the share is on its way) --release--> running
//
// The pages of every cut that is not known to be committed are captured again by the next one: so a cut may fail anywhere.
type cutter struct {
	log   dirtyLogs
	dirty *dirtyPages

	of       atomic.Uint64 // ident.Epoch: the boot that this part runs; changed under mu
	mu       sync.Mutex
	tracking bool                      // protected by mu
	held     uint64                    // protected by mu; the number of the cut that the part is held for, 0 if it is not held
	frozen   uint64                    // protected by mu; as held, for a switchover: time does not end it
	open     map[uint64][]ident.PageNo // protected by mu; pages by cut, of those not known to be committed
	last     int                       // protected by mu; pages in the last cut
	sum      uint64                    // protected by mu; pages in all cuts
	safe     uint64                    // protected by mu; the last cut known to be committed
	arenas   []*arena                  // protected by mu
	before   *arena                    // protected by mu; of the last cut, nil if there is none
	found    []ident.PageNo            // protected by mu; scratch
	sent     packed                    // protected by mu; of all cuts
}

// track begins to note the pages that are written, or ends it.
func (c *cutter) track(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tracking == on {
		return nil
	}
	c.tracking = on
	c.dirty.on.Store(on)
	c.open = map[uint64][]ident.PageNo{}
	c.keep(nil)
	c.dirty.take(func(ident.PageNo) {})
	return c.log.Enable(on)
}

// hold stops this part's vCPUs for cut number; the cuts up to committed are safe. It reports whether they are stopped and nothing is on its
// way here. A hold for an earlier cut passes to this one: whoever asked for that does so no more. It waits no longer when over says that the cut is not
// wanted: a vCPU may wait for a page of a part that is gone, and what ends that waits for the cutter.
func (w *Worker) hold(number, committed uint64, booted ident.Epoch, over func() bool) bool {
	c := &w.cutter
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.open {
		if n <= committed {
			delete(c.open, n)
		}
	}
	c.safe = max(c.safe, committed)
	if number < c.held || number == 0 {
		return false
	}
	if c.bootedNow() != booted || w.guard.restarting.Load() {
		return false
	}
	if h := w.home.Load(); h != nil && !h.isLoaded() {
		return false // there is no state to go back to yet
	}
	if c.held == 0 && !w.holdBegun(over) {
		return false
	}
	if c.held != number {
		c.held = number
		time.AfterFunc(heldAtMost, func() { w.expire(number) })
	}
	if h := w.home.Load(); h != nil && !h.holdDevices(over) {
		return false
	}
	return w.plane.quiet(holdWithin, over)
}

// holdBegun holds the vCPUs, if all of them have begun the life that they are in and the guest has not crashed.
func (w *Worker) holdBegun(over func() bool) bool {
	if w.guard.isHalted() || !w.guard.holdUnless(holdWithin, over) {
		return false
	}
	life := w.guard.lifeNow.Load()
	for _, v := range w.residents() {
		if v.life != life {
			w.guard.release()
			return false
		}
	}
	if w.guard.isHalted() {
		w.guard.release()
		return false
	}
	if !w.holdDevices(over) {
		w.releaseDevices()
		w.guard.release()
		return false
	}
	return true
}

// bootedNow is the boot that this part runs.
func (c *cutter) bootedNow() ident.Epoch { return ident.Epoch(c.of.Load()) }

func (c *cutter) setBooted(booted ident.Epoch) { c.of.Store(uint64(booted)) }

// release lets the vCPUs go on if they are held for cut number, or, if it is 0, for any. It tells whether they were.
func (w *Worker) release(number uint64) bool {
	c := &w.cutter
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == 0 || number != 0 && number != c.held {
		return false
	}
	c.held, c.frozen = 0, 0
	if h := w.home.Load(); h != nil {
		h.releaseDevices()
	}
	w.releaseDevices()
	w.guard.release()
	return true
}

// quiet waits until no request of this part is open: nothing that was written elsewhere is on its way.
func (p *plane) quiet(within time.Duration, over func() bool) bool {
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Microsecond) {
		p.mu.Lock()
		open := p.core.Outstanding()
		p.mu.Unlock()
		if open == 0 {
			return true
		}
		if time.Now().After(deadline) || over() {
			return false
		}
	}
}

// errNotHeld says that a cut came too late: the part runs again, or is held for another one.
var errNotHeld = errors.New("the part is not held for this cut")

// keep makes a the arena that the next cut is compared with. It requires mu.
func (c *cutter) keep(a *arena) {
	if c.before != nil {
		c.before.done()
	}
	c.before = a
}

// lastPages is how many pages this part's last share had.
func (c *cutter) lastPages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// cut captures this part's share of checkpoint number under protection seq, at home with the output that has left if a standby may lack some.
// The part must be held for it. The share is ready to be sent once the returned function has packed it, which may be done while the guest
// runs, and must be.
func (w *Worker) cut(number, seq uint64, members ident.PartSet, history bool) (*share, func(), error) {
	c := &w.cutter
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != number || !c.tracking {
		return nil, nil, errNotHeld
	}
	s := &share{header: chunkHeader{number: number, members: members, part: w.spec.Part, booted: c.bootedNow(), since: c.safe}}
	if err := w.captureVCPUs(s); err != nil {
		return nil, nil, err
	}
	if h := w.home.Load(); h != nil {
		if from, all := w.replica.logsFrom(seq); history && !all {
			if err := h.historyTo(s, from); err != nil {
				return nil, nil, err
			}
		}
		if err := h.addTo(s); err != nil {
			return nil, nil, err
		}
		if w.replica.hasMirrors() {
			s.disks = w.blocksShare(number, c.safe)
		}
		if err := h.disksNow().cut(number, false, s, s.disks); err != nil {
			return nil, nil, err
		}
	}
	// Only now: finishing a vCPU's last instruction may have written memory.
	if err := c.log.Read(c.dirty.add); err != nil {
		return nil, nil, err
	}
	for _, pages := range c.open {
		for _, page := range pages {
			c.dirty.add(page)
		}
	}
	a, err := w.capture(number, seq, w.replica.followsDisks(history))
	if err != nil {
		return nil, nil, err
	}
	c.open[number] = slices.Clone(a.pages)
	c.last = len(a.pages)
	c.sum += uint64(len(a.pages))
	before := c.before
	if before != nil && (before.seq != seq || before.number != c.safe || before.booted != c.bootedNow()) {
		before = nil // not what the standbys hold now
	}
	if before != nil {
		before.users.Add(1)
	}
	a.users.Add(1)
	c.keep(a)
	return s, func() { w.cutter.pack(s, a, before) }, nil
}

// originOf captures a vCPU, which is held, as an origin.
func (w *Worker) originOf(v *vcpu) ([]byte, error) {
	if w.linux == nil {
		return v.capture()
	}
	return v.captureLinux(func(id ident.VCPU) (uint64, bool) { return w.pauses.tscOf(w, id) })
}

// pack packs a share.
func (c *cutter) pack(s *share, a, before *arena) {
	n := s.pack(a, before)
	s.encodeAll()
	if s.disks != nil {
		s.disks.encodeAll()
	}
	a.done()
	if before != nil {
		before.done()
	}
	for _, b := range s.encoded {
		n.bytes += len(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent.full += n.full
	c.sent.zero += n.zero
	c.sent.changed += n.changed
	c.sent.same += n.same
	c.sent.onDisk += n.onDisk
	c.sent.bytes += n.bytes
}

// addTo adds the devices and their output to home's share.
func (h *home) addTo(s *share) error {
	state, console, output, err := h.cut()
	if err != nil {
		return err
	}
	s.add(recordDevice, 0, state)
	s.addStream(recordConsole, console)
	s.addStream(recordOutput, output)
	return nil
}

var zeroPage [ident.PageSize]byte

// capturePage adds a page as it is now, for a full copy. It requires mu.
func (p *plane) capturePage(s *share, page ident.PageNo) error {
	if err := p.ram.ReadPage(page, p.page[:]); err != nil {
		return err
	}
	if bytes.Equal(p.page[:], zeroPage[:]) {
		s.add(recordZero, uint64(page), nil)
		return nil
	}
	s.add(recordPage, uint64(page), p.page[:])
	return nil
}

// holds tells whether this part has the latest contents of a page. It requires mu.
func (p *plane) holds(page ident.PageNo) bool {
	return p.fd == nil || p.core.Page(page) != mem.Invalid || p.core.Image(page)
}
