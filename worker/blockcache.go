package worker

import (
	"bytes"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// Options of a VM about its disks, for measurements.
const (
	optionSRT       = "srt"                // "off": blocks are always read from the disk
	optionDiskSpeed = "disk.bytes_per_sec" // what a disk gives at most, as one of ordinary speed does
)

// blockCache is home's storage replica table, and the memory that it speaks of: guest memory, and that of former boots. A block that it knows is
// copied from there instead of being read from the disk, most of all after the guest has booted again.
//
// A page that is paired is write-protected: by the page protocol's userfaultfd, or, in a VM of one part, which has none, by one that watches
// nothing else. The guest's first write to it stops, its pair goes, and the write goes on. Devices and the protocol say beforehand what they write
// or take away. All fields are protected by the plane's mu, which those calls hold.
type blockCache struct {
	p       *plane
	limit   int
	table   *srt.Table
	kept    map[uint64]*ram.Kept // by boot
	protect *uffd.FD             // in a VM of one part; nil until there is a pair
	ended   chan struct{}        // closed when nobody reads protect any more
	page    [ident.PageSize]byte
	read    uint64 // bytes from disks
	served  uint64 // bytes from memory instead
}

func newBlockCache(p *plane) *blockCache {
	limit := int(p.ram.Pages())
	return &blockCache{p: p, limit: limit, table: srt.New(limit, ""), kept: map[uint64]*ram.Kept{}}
}

// leaves says that a page is about to be written, or to leave home.
func (c *blockCache) leaves(page ident.PageNo) {
	if c != nil {
		c.table.Write(page)
	}
}

// readsOnly tells whether a paired page is about to be mapped because the guest reads it: then it stays protected.
func (c *blockCache) readsOnly(page ident.PageNo) bool {
	f := &c.p.faulting
	return f.on && f.page == page && !f.write && c.table.Paired(page)
}

// faulting is the fault that is being stepped.
type faulting struct {
	on, write bool
	page      ident.PageNo
}

// equal takes in what a device says: the page held data. It compares once the guest cannot write it unseen.
func (c *blockCache) equal(since srt.Mark, b srt.Block, page ident.PageNo, data []byte) error {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusing || p.closed || uint64(page) >= p.ram.Pages() {
		return nil
	}
	switch {
	case p.fd == nil:
		if err := c.watch(); err != nil {
			return err
		}
		if err := c.protect.Protect(page, 1, true); err != nil {
			return err
		}
	case p.core.Page(page) == mem.Modified:
		if err := p.fd.Protect(page, 1, true); err != nil {
			return err
		}
	case p.core.Page(page) != mem.Shared:
		return nil
	}
	if err := p.ram.ReadPage(page, c.page[:]); err != nil {
		return err
	}
	if bytes.Equal(c.page[:], data) {
		_, freed := c.table.Equal(since, b, page)
		return c.free(freed)
	}
	return nil
}

// free gives kept pages back that hold nothing any more. It requires mu.
func (c *blockCache) free(places []srt.Place) error {
	for _, p := range places {
		if k := c.kept[p.Boot]; k != nil {
			if err := k.Drop(p.Page, 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// watch begins to watch for writes to protected pages in a VM of one part. It requires mu.
func (c *blockCache) watch() error {
	if c.protect != nil {
		return nil
	}
	spare, err := c.p.reserved()
	if err != nil {
		return err
	}
	fd, err := spare.WatchProtect(c.p.ram.GuestAddr(), c.p.ram.Size())
	if err != nil {
		return err
	}
	c.protect, c.ended = fd, make(chan struct{})
	go c.serveWrites(fd, c.ended)
	return nil
}

// serveWrites ends the pairs of pages that the guest is about to write, until the userfaultfd is interrupted.
func (c *blockCache) serveWrites(fd *uffd.FD, ended chan<- struct{}) {
	defer close(ended)
	runtime.LockOSThread()
	raisePriority()
	faults := make([]uffd.Fault, faultBatch)
	for {
		n, err := fd.ReadFaults(faults)
		if err != nil {
			if !isInterrupted(err) {
				c.p.fail(fmt.Errorf("read writes to pages that hold disk blocks: %w", err))
			}
			return
		}
		for _, f := range faults[:n] {
			c.p.mu.Lock()
			c.leaves(f.Page)
			err := fd.Protect(f.Page, 1, false)
			c.p.mu.Unlock()
			if err != nil {
				c.p.fail(err)
				return
			}
		}
	}
}

// unwatch ends watch: the page protocol watches memory from now on, or nobody has to. It requires mu. All vCPUs must be held.
func (c *blockCache) unwatch() error {
	if c == nil || c.protect == nil {
		return nil
	}
	fd, ended := c.protect, c.ended
	c.protect = nil
	fd.Interrupt()
	c.p.mu.Unlock()
	<-ended
	c.p.mu.Lock()
	return fd.Close()
}

// forget drops everything: guest memory is about to become something else. It requires mu.
func (c *blockCache) forget() {
	if c == nil {
		return
	}
	for _, k := range c.kept {
		k.Close()
	}
	c.table, c.kept = srt.New(c.limit, ""), map[uint64]*ram.Kept{}
}

// reboot makes guest memory zero and keeps the old one for the blocks in it. It requires mu. All vCPUs must be parked, all devices at rest.
func (c *blockCache) reboot() error {
	p := c.p
	old, err := p.ram.Renew()
	if err != nil {
		return err
	}
	for _, fd := range []*uffd.FD{p.fd, c.protect} {
		if fd == nil {
			continue
		}
		if err := fd.Register(); err != nil {
			return err
		}
	}
	ended := c.table.Boot()
	c.kept[ended] = old
	for _, boot := range c.table.Reset() {
		c.kept[boot].Close()
		delete(c.kept, boot)
	}
	if k := c.kept[ended]; k != nil {
		return k.Only(c.table.KeptPages(ended))
	}
	return nil
}

// find copies a block into to if its contents are in memory.
func (c *blockCache) find(b srt.Block, to []byte) (bool, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	place, ok := c.table.Find(b)
	if !ok {
		return false, nil
	}
	var err error
	if place.Boot == c.table.Boot() {
		err = c.p.ram.ReadPage(place.Page, to)
	} else {
		err = c.kept[place.Boot].ReadPage(place.Page, to)
	}
	c.served += uint64(len(to))
	return true, err
}

// counters returns the bytes read from disks, and from memory instead.
func (p *plane) diskCounters() (read, served uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cache == nil {
		return 0, 0
	}
	return p.cache.read, p.cache.served
}

// cachedDisk is a disk whose blocks are taken from memory where they are known. It implements virtio.Paired and virtio.Pairs.
type cachedDisk struct {
	virtio.Disk
	c     *blockCache
	index uint8
	on    bool
	speed int64 // bytes a second that the disk gives; 0: as it can

	mu   sync.Mutex
	free time.Time // protected by mu; when the disk has given what was read so far
}

// cached puts the VM's block cache in front of its disk number index.
func (w *Worker) cached(index int, disk virtio.Disk) virtio.Disk {
	p := w.plane
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cache == nil {
		p.cache = newBlockCache(p)
	}
	d := &cachedDisk{Disk: disk, c: p.cache, index: uint8(index), on: w.spec.Options[optionSRT] != "off"}
	d.speed, _ = strconv.ParseInt(w.spec.Options[optionDiskSpeed], 10, 64)
	return d
}

// Pairs implements virtio.Paired.
func (d *cachedDisk) Pairs() virtio.Pairs {
	if !d.on {
		return nil
	}
	return d
}

// Reading implements virtio.Pairs.
func (d *cachedDisk) Reading() uint64 {
	d.c.p.mu.Lock()
	defer d.c.p.mu.Unlock()
	return uint64(d.c.table.Mark())
}

// Changing implements virtio.Pairs.
func (d *cachedDisk) Changing(first, last uint64) uint64 {
	d.c.p.mu.Lock()
	defer d.c.p.mu.Unlock()
	begun, freed := d.c.table.Change(d.index, first, last)
	d.check(d.c.free(freed))
	return uint64(begun)
}

// Changed implements virtio.Pairs.
func (d *cachedDisk) Changed(begun, first, last uint64) (uint64, bool) {
	d.c.p.mu.Lock()
	defer d.c.p.mu.Unlock()
	since, alone, freed := d.c.table.Done(srt.Mark(begun), d.index, first, last)
	d.check(d.c.free(freed))
	return uint64(since), alone
}

// Equal implements virtio.Pairs.
func (d *cachedDisk) Equal(since, block, addr uint64, data []byte) {
	d.check(d.c.equal(srt.Mark(since), srt.Block{Disk: d.index, No: block}, ident.PageNo(addr>>ident.PageShift), data))
}

func (d *cachedDisk) check(err error) {
	if err != nil {
		d.c.p.fail(fmt.Errorf("pages that hold disk blocks: %w", err))
	}
}

// ReadAt implements io.ReaderAt: whole blocks that are known come from memory, all else from the disk.
func (d *cachedDisk) ReadAt(b []byte, off int64) (int, error) {
	from := 0 // b[from:at] is to be read from the disk
	for at := 0; at < len(b); {
		pos := off + int64(at)
		n := min(len(b)-at, virtio.PairBytes-int(pos%virtio.PairBytes))
		if d.on && n == virtio.PairBytes {
			known, err := d.c.find(srt.Block{Disk: d.index, No: uint64(pos) / virtio.PairBytes}, b[at:at+n])
			if err != nil {
				return 0, err
			}
			if known {
				if err := d.readDisk(b[from:at], off+int64(from)); err != nil {
					return 0, err
				}
				from = at + n
			}
		}
		at += n
	}
	return len(b), d.readDisk(b[from:], off+int64(from))
}

func (d *cachedDisk) readDisk(b []byte, off int64) error {
	if len(b) == 0 {
		return nil
	}
	_, err := d.Disk.ReadAt(b, off)
	d.c.p.mu.Lock()
	d.c.read += uint64(len(b))
	d.c.p.mu.Unlock()
	d.pace(len(b))
	return err
}

// pace waits until a disk of the speed that was asked for would have given n bytes more.
func (d *cachedDisk) pace(n int) {
	if d.speed <= 0 {
		return
	}
	d.mu.Lock()
	now := time.Now()
	if d.free.Before(now) {
		d.free = now
	}
	d.free = d.free.Add(time.Duration(int64(n) * int64(time.Second) / d.speed))
	wait := d.free.Sub(now)
	d.mu.Unlock()
	if wait > time.Millisecond {
		time.Sleep(wait)
	}
}
