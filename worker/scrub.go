package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/wire"
)

// Blocks that nobody reads for long may rot unnoticed, in one copy after the other. So every part that has copies of disks, home or standby, reads all of
// them from time to time, slowly, and puts right what does not match its checksum: home with what a standby has, a standby with what home has.
//
//	resting --every--> checking: disk after disk, a few blocks at a time --all seen--> resting

const (
	scrubBlocks         = 64      // at a time
	scrubBytesPerSecond = 8 << 20 // little beside what a disk can do
	scrubFirst          = time.Minute
	scrubSay            = 10 * time.Second // what was found is told no more often
	scrubAgain          = 50 * time.Millisecond
	scrubTries          = 20 // to get a block from another copy, which may be one checkpoint away
)

// scrub is what is known of the checks.
type scrub struct {
	mu       sync.Mutex
	passes   uint64 // protected by mu, as all; ended
	done, of uint64 // blocks of the pass under way; of is 0 between two
	damaged  uint64 // blocks that did not match, in all
	repaired uint64 // of these, put right
}

// scrubbed is a copy of a disk as it is to be checked now.
type scrubbed struct {
	name  string
	image *disk.Image
	mend  func(block uint64) error
}

// scrubAll checks the copies here again and again.
func (w *Worker) scrubAll(every time.Duration) {
	for rest := min(every, scrubFirst); w.linger(rest); {
		began := time.Now()
		w.scrubPass()
		rest = max(every-time.Since(began), min(every, scrubFirst))
	}
}

// linger waits, and returns false when the worker ends.
func (w *Worker) linger(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-w.ctx.Done():
		return false
	}
}

// scrubPass checks every copy once.
func (w *Worker) scrubPass() {
	s := &w.scrubs
	var blocks uint64
	for i := range w.spec.Disks {
		if c, ok := w.scrubbed(i); ok {
			blocks += c.image.Blocks()
		}
	}
	if blocks == 0 {
		return
	}
	s.mu.Lock()
	s.done, s.of = 0, blocks
	s.mu.Unlock()
	for i := range w.spec.Disks {
		w.scrubDisk(i)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passes++
	s.done, s.of = 0, 0
}

// scrubbed returns the copy of a disk that is here now; ok is false if there is none: a standby that waits for home, or a member that is neither.
func (w *Worker) scrubbed(index int) (c scrubbed, ok bool) {
	if s := w.standby.Load(); s != nil {
		image := s.copyOf(index)
		mend := func(block uint64) error { return w.mendStandby(s, index, block) }
		return scrubbed{w.spec.Disks[index].Name, image, mend}, image != nil
	}
	d := w.homeDisks()
	if d == nil || index >= len(d.all) {
		return scrubbed{}, false
	}
	g := d.all[index]
	return scrubbed{g.spec.Name, g.image, func(block uint64) error {
		err := w.fetchRight(g, index, block)
		if errors.Is(err, disk.ErrBadBlock) {
			g.setLost(block)
		}
		return err
	}}, true
}

// blocks is how many all disks have together.
func (d *disks) blocks() (n uint64) {
	if d == nil {
		return 0
	}
	for _, g := range d.all {
		n += g.image.Blocks()
	}
	return n
}

// unreadable is how many blocks are damaged here, and in all other copies.
func (d *disks) unreadable() (n int) {
	if d == nil {
		return 0
	}
	for _, g := range d.all {
		g.mu.Lock()
		n += len(g.lost)
		g.mu.Unlock()
	}
	return n
}

// homeDisks returns the disks of the VM if this is its home, and nil otherwise.
func (w *Worker) homeDisks() *disks {
	h := w.home.Load()
	if h == nil {
		return nil
	}
	return h.disksNow()
}

// scrubDisk checks one copy. Whoever is home may change meanwhile, and with it whom to ask.
func (w *Worker) scrubDisk(index int) {
	var damaged, repaired int
	said := time.Now()
	name := w.spec.Disks[index].Name
	for next, more := uint64(0), true; more; {
		c, ok := w.scrubbed(index)
		if !ok {
			break
		}
		first := next
		var bad []uint64
		var err error
		bad, next, err = c.image.Verify(first, scrubBlocks)
		for _, block := range bad {
			if err := c.mend(block); err == nil {
				repaired++
			} else {
				w.log.Warn().Err(err).Str("disk", name).Uint64("block", block).Msg("a damaged block cannot be put right")
			}
		}
		damaged += len(bad)
		w.scrubs.found(next-first, len(bad), repaired)
		more = err == nil && next < c.image.Blocks()
		if !more || time.Since(said) > scrubSay {
			w.sayScrubbed(name, damaged, repaired)
			damaged, repaired, said = 0, 0, time.Now()
		}
		if more && !w.linger(time.Second*scrubBlocks*disk.BlockBytes/scrubBytesPerSecond) {
			return
		}
	}
	w.sayScrubbed(name, damaged, repaired)
}

func (s *scrub) found(blocks uint64, damaged, repaired int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done += blocks
	s.damaged += uint64(damaged)
	s.repaired += uint64(repaired)
}

func (w *Worker) sayScrubbed(name string, damaged, repaired int) {
	if damaged == 0 {
		return
	}
	d := wire.WorkerDisks{Disk: name, Damaged: fmt.Sprintf("a check found %d blocks that do not match their checksums", damaged)}
	if repaired > 0 {
		d.Repaired = fmt.Sprintf("%d blocks that a check had found were taken from another copy", repaired)
	}
	w.control.send(wire.FromWorker{Disks: &d})
}

// scrubStats tells what checks have come to, nil if there are none.
func (w *Worker) scrubStats() *wire.WorkerScrub {
	unreadable := w.homeDisks().unreadable()
	if w.spec.ScrubMicros == 0 && unreadable == 0 || len(w.spec.Disks) == 0 {
		return nil
	}
	s := &w.scrubs
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &wire.WorkerScrub{Passes: s.passes, Damaged: s.damaged, Repaired: s.repaired, Unreadable: uint64(unreadable)}
	if s.of > 0 {
		out.Checking, out.Permille = true, int(min(1000, s.done*1000/s.of))
	}
	return out
}

// mendStandby gets a block, whose copy at this standby is damaged, from home. Home may be a checkpoint ahead or behind for a moment.
func (w *Worker) mendStandby(s *standby, index int, block uint64) error {
	err := fmt.Errorf("%w: block %d, and home does not have it", disk.ErrBadBlock, block)
	ask := binary.LittleEndian.AppendUint64([]byte{byte(replicaBlock)}, diskKey(index, block))
	for range scrubTries {
		p, _ := w.replica.current()
		got, qerr := w.replica.query(p.Home, p.Seq, ask)
		if qerr != nil {
			got = nil
		}
		if right, rerr := s.putRight(index, block, got); right || rerr != nil {
			return rerr
		}
		if !w.linger(scrubAgain) {
			break
		}
	}
	return err
}

// copyOf returns the standby's copy of a disk, nil if it is not open, or the standby has taken over.
func (s *standby) copyOf(index int) *disk.Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken || index >= len(s.disks.images) {
		return nil
	}
	return s.disks.images[index]
}

// putRight replaces a damaged block with contents, if that is what it should be, and tells whether the block is right now.
func (s *standby) putRight(index int, block uint64, contents []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		return false, errEnded
	}
	image := s.disks.images[index]
	if bad, _, err := image.Verify(block, 1); err != nil || len(bad) == 0 {
		return err == nil, err // a checkpoint has brought it meanwhile
	}
	if len(contents) != disk.BlockBytes || !image.Matches(block, contents) {
		return false, nil
	}
	return true, image.Commit([]disk.Write{{Block: block, Data: contents}}, true)
}

// blockOf answers a standby's request for one block, whose copy there is damaged.
func (d *disks) blockOf(body []byte) ([]byte, error) {
	if d == nil || len(body) != 8 {
		return nil, fmt.Errorf("%w: question for a block of %d bytes", errBadShare, len(body))
	}
	index, block := ofDiskKey(binary.LittleEndian.Uint64(body))
	if index >= len(d.all) {
		return nil, fmt.Errorf("%w: question for a block of disk %d", errBadShare, index)
	}
	out := make([]byte, disk.BlockBytes)
	if err := d.all[index].image.ReadBlock(block, out); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadShare, err)
	}
	return out, nil
}
