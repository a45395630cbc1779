package worker

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/recovery/layers"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/virtio"
	"github.com/cellvisor/cellvisor/wire"
)

// disks are a VM's disks at its home.
//
// A disk write of a protected VM is output: it is kept in a layer until the checkpoint after it is safe, and only then written to the image here
// (package layers); the standbys write it when they apply that checkpoint. So an image is always that of a checkpoint, and a flush has nothing to wait
// for: whatever tells the outside of it waits for the same checkpoint. Reads see the layers. Without protection writes go to the image at once, and a flush
// waits for the mirrors, if there are any.
type disks struct {
	all  []*guestDisk
	full func()                                            // called when so much waits that a checkpoint should not
	mend func(g *guestDisk, index int, block uint64) error // puts a damaged block right with what another copy has; it takes its time. May be nil

	mirrors flusher // nil: there are none, nor will there be any
}

// flusher is who sees to it that mirrors have what was written.
type flusher interface {
	flushBegun() (number uint64)
	flushDone(number uint64, all bool, free, rests func() bool) error
}

// guestDisk is one disk. It implements virtio.Disk.
type guestDisk struct {
	*disks
	spec  wire.WorkerDisk
	image *disk.Image
	rests func() bool // whether the device that it belongs to is to rest; set before that begins
	room  int64       // blocks that may wait before nothing more is taken in

	mu     sync.Mutex          // protects layers, and is held over what is done with what they say
	layers *layers.Disk        // what waits, and what checkpoints must have
	lost   map[uint64]struct{} // protected by mu; damaged blocks that no other copy has, as far as somebody has asked
	waits  atomic.Int64        // blocks in layers; changed under mu
}

// Blocks that wait for a checkpoint: from waitingMany on it is to come soon, from waitingMost on writes are slowed down.
const (
	waitingMany = 2048
	waitingMost = 16384
	waitingSlow = 5 * time.Millisecond
)

// openImage opens the copy of a disk.
type openImage func(wire.WorkerDisk, disk.ImageConfig) (*disk.Image, error)

// openDisks opens the disks of a VM, and makes those that are new.
func openDisks(open openImage, specs []wire.WorkerDisk) (*disks, error) {
	d := &disks{}
	for _, spec := range specs {
		image, err := openHomeDisk(open, spec)
		if err != nil {
			return nil, errors.Join(err, d.close())
		}
		d.add(spec, image)
	}
	return d, nil
}

// openHomeDisk opens the copy that the guest is to use. One that is older than what the cluster knows is refused, and so is one that should be there
// and is not: an old or empty disk in its place would be a silent loss.
func openHomeDisk(open openImage, spec wire.WorkerDisk) (*disk.Image, error) {
	c := disk.ImageConfig{Bytes: int64(spec.Bytes), Source: spec.Source}
	if spec.Confirmed > 0 {
		c.Bytes, c.Source = 0, ""
	}
	image, err := open(spec, c)
	if err != nil {
		return nil, err
	}
	if have := image.Generation(); have < spec.Confirmed {
		return nil, errors.Join(fmt.Errorf("disk %s: the copy here is stale: its last use is number %d, the cluster knows of number %d", spec.Name, have, spec.Confirmed), image.Close())
	}
	if err := image.SetGeneration(max(spec.Use, image.Generation())); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", spec.Name, err), image.Close())
	}
	return image, nil
}

func (d *disks) add(spec wire.WorkerDisk, image *disk.Image) {
	d.all = append(d.all, &guestDisk{disks: d, spec: spec, image: image, layers: layers.New(), lost: map[uint64]struct{}{}, room: waitMost, rests: func() bool { return false }})
}

// addTo adds the disks to a board, which closes them.
func (d *disks) addTo(board *machine.Board, front func(int, virtio.Disk) virtio.Disk) error {
	for i, g := range d.all {
		if err := board.AddDisk(front(i, g), g.spec.Name, g.spec.ReadOnly); err != nil {
			return err
		}
	}
	return nil
}

func (d *disks) close() error {
	var errs []error
	for _, g := range d.all {
		errs = append(errs, g.Close())
	}
	return errors.Join(errs...)
}

// hold begins or ends keeping back writes. Its end writes all that was kept.
func (d *disks) hold(on bool) error {
	if d == nil {
		return nil
	}
	for _, g := range d.all {
		if err := g.hold(on); err != nil {
			return err
		}
	}
	return nil
}

// note begins or ends noting what is written, for checkpoints.
func (d *disks) note(on bool) {
	if d == nil {
		return
	}
	for _, g := range d.all {
		g.mu.Lock()
		g.layers.Note(on)
		g.mu.Unlock()
	}
}

// committed writes to the images what was written up to a cut whose checkpoint is safe.
func (d *disks) committed(cut uint64) error {
	if d == nil {
		return nil
	}
	for _, g := range d.all {
		if err := g.committed(cut); err != nil {
			return err
		}
	}
	return nil
}

func (g *guestDisk) hold(on bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.count()
	return g.settle(g.layers.Hold(on))
}

func (g *guestDisk) committed(cut uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.count()
	return g.settle(g.layers.Committed(cut))
}

// count requires mu.
func (g *guestDisk) count() { g.waits.Store(int64(g.layers.Waiting())) }

// waiting is how many blocks wait for checkpoints. It takes no lock, since somebody may write to a disk under it.
func (d *disks) waiting() (n int) {
	if d == nil {
		return 0
	}
	for _, g := range d.all {
		n += int(g.waits.Load())
	}
	return n
}

// settle writes what need not wait any more to the image, as one batch. It requires mu.
func (g *guestDisk) settle(writes []layers.Write) error {
	if len(writes) == 0 {
		return nil
	}
	if err := g.image.Commit(toDisk(writes), g.spec.Cache != cacheUnsafe); err != nil {
		return fmt.Errorf("disk %s: %w", g.spec.Name, err)
	}
	return nil
}

func toDisk(writes []layers.Write) []disk.Write {
	out := make([]disk.Write, len(writes))
	for i, w := range writes {
		out[i] = disk.Write{Block: w.Block, Data: w.Data}
	}
	return out
}

func writesOf(blocks map[uint64][]byte) []disk.Write { return toDisk(layers.Sorted(blocks)) }

// read reads a block as the guest sees it. It requires mu.
func (g *guestDisk) read(block uint64, buf []byte) error {
	if b, ok := g.layers.Find(block); ok {
		copy(buf, b)
		return nil
	}
	err := g.image.ReadBlock(block, buf)
	if errors.Is(err, disk.ErrBadBlock) {
		return &badBlock{block: block, err: err}
	}
	return err
}

// badBlock says which block is damaged.
type badBlock struct {
	block uint64
	err   error
}

func (b *badBlock) Error() string { return b.err.Error() }
func (b *badBlock) Unwrap() error { return b.err }

// mended does what reads blocks, under mu, and again whenever a damaged block that it came upon has been put right. That is done without mu: another
// copy is asked for the block, and whoever wants only to note something about the disk must not wait for a peer that may be gone.
func (g *guestDisk) mended(do func() error) error {
	for {
		g.mu.Lock()
		err := do()
		g.mu.Unlock()
		var bad *badBlock
		if !errors.As(err, &bad) || g.mend == nil {
			return err
		}
		if err := g.mend(g, slices.Index(g.all, g), bad.block); err != nil {
			return err
		}
	}
}

// Rests implements virtio.Waiting.
func (g *guestDisk) Rests(rests func() bool) { g.rests = rests }

// Size implements virtio.Disk.
func (g *guestDisk) Size() int64 { return int64(g.image.Blocks()) * disk.BlockBytes }

// ReadAt implements virtio.Disk.
func (g *guestDisk) ReadAt(b []byte, off int64) (int, error) {
	var buf [disk.BlockBytes]byte
	done := 0
	err := g.mended(func() error {
		for done < len(b) {
			block, skip := uint64(off+int64(done))/disk.BlockBytes, int(uint64(off+int64(done))%disk.BlockBytes)
			if err := g.read(block, buf[:]); err != nil {
				return err
			}
			done += copy(b[done:], buf[skip:])
		}
		return nil
	})
	return done, err
}

// WriteAt implements virtio.Disk.
func (g *guestDisk) WriteAt(b []byte, off int64) (int, error) {
	return len(b), g.write(off, int64(len(b)), func(to []byte, at int64) { copy(to, b[at:]) })
}

// write changes n bytes at off; fill fills the piece that begins at an offset of them.
func (g *guestDisk) write(off, n int64, fill func(to []byte, at int64)) error {
	var blocks, waiting int
	var done func() error
	err := errNoRoom
	for ; errors.Is(err, errNoRoom); err = g.mended(func() (err error) {
		blocks, waiting, done, err = g.place(off, n, fill)
		return err
	}) {
		if err := g.awaitRoom(); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return err
	case done != nil:
		return done()
	case waiting >= waitingMost:
		time.Sleep(waitingSlow)
		fallthrough
	case waiting >= waitingMany && waiting-blocks < waitingMany, waiting >= waitingMost:
		if g.full != nil {
			g.full()
		}
	}
	return nil
}

// errNoRoom says that so much waits for checkpoints that nothing may be added: a checkpoint is one batch of blocks.
var errNoRoom = errors.New("too much waits for checkpoints")

func (g *guestDisk) hasRoom() bool { return g.waits.Load() < g.room }

// awaitRoom waits until some of what waits for checkpoints is safe. A device may have far more to write than a guest that stands still; when it is to rest
// the request is done again later, since without that no checkpoint is cut.
func (g *guestDisk) awaitRoom() error {
	for first := true; !g.hasRoom(); first = false {
		if g.rests() {
			return virtio.ErrLater
		}
		if first && g.full != nil {
			g.full()
		}
		time.Sleep(restsEvery)
	}
	return nil
}

// place is write. It requires mu, and has done nothing if a block that is written in part is damaged.
// done, if there is one, is to be called without mu: mirrors are to have what was written before anything else is.
func (g *guestDisk) place(off, n int64, fill func(to []byte, at int64)) (blocks, waiting int, done func() error, err error) {
	if !g.hasRoom() {
		return 0, 0, nil, errNoRoom
	}
	written := map[uint64][]byte{}
	for done := int64(0); done < n; {
		block, skip := uint64(off+done)/disk.BlockBytes, (off+done)%disk.BlockBytes
		length := min(disk.BlockBytes-skip, n-done)
		buf := make([]byte, disk.BlockBytes)
		if length < disk.BlockBytes {
			if err := g.read(block, buf); err != nil {
				return 0, 0, nil, err
			}
		}
		fill(buf[skip:skip+length], done)
		written[block] = buf
		done += length
	}
	for block := range g.lost {
		if _, again := written[block]; again {
			delete(g.lost, block)
		}
	}
	if g.layers.Write(written) {
		if err := g.image.Commit(writesOf(written), g.spec.Cache == cacheWritethrough); err != nil {
			return 0, 0, nil, err
		}
		switch {
		case g.mirrors == nil:
		case g.spec.Cache == cacheWritethrough:
			done = g.flush(false, g.rests)
		case g.layers.Noted() >= waitingMost:
			done = g.flush(true, g.rests)
		}
	}
	g.count()
	return len(written), g.layers.Waiting(), done, nil
}

// flush returns what waits until mirrors have what was written so far; all: those that are brought into step, too.
func (g *guestDisk) flush(all bool, rests func() bool) func() error {
	number := g.mirrors.flushBegun()
	return func() error { return g.mirrors.flushDone(number, all, g.isHolding, rests) }
}

func (g *guestDisk) isHolding() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.layers.Holding()
}

const (
	cacheWritethrough = "writethrough"
	cacheUnsafe       = "unsafe"
)

// Sync implements virtio.Disk.
func (g *guestDisk) Sync() error { return g.sync(g.rests) }

// sync is Sync until rests says that nobody waits.
func (g *guestDisk) sync(rests func() bool) error {
	if g.spec.Cache == cacheUnsafe || g.isHolding() {
		return nil
	}
	if g.mirrors == nil {
		return g.image.Commit(nil, true)
	}
	done := g.flush(false, rests) // while the disk here writes
	if err := g.image.Commit(nil, true); err != nil {
		return err
	}
	return done()
}

// Close implements virtio.Disk. What is still in layers belongs to a checkpoint that is not safe, and is as if it had never been written.
func (g *guestDisk) Close() error { return g.image.Close() }
