package worker

import (
	"bytes"
	"fmt"
	"runtime"

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

	disks    map[uint8]virtio.Disk
	changing []blockRange // being written
}

func newBlockCache(p *plane) *blockCache {
	limit := int(p.ram.Pages())
	if p.pager != nil {
		limit = 0 // where memory is short there is none for former boots
	}
	return &blockCache{p: p, limit: limit, table: srt.New(limit, ""), kept: map[uint64]*ram.Kept{}, disks: map[uint8]virtio.Disk{}}
}

// leaves says that a page is about to be written, or to leave home.
func (c *blockCache) leaves(page ident.PageNo) {
	if c != nil {
		c.keepAlone(page)
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
	kind      uffd.Kind
}

// unmapped tells whether the fault is that the guest cannot reach the page at all, whatever it could do before.
func (f *faulting) unmapped(page ident.PageNo) bool {
	return f.on && f.page == page && f.kind != uffd.WriteProtect
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
	case p.ram.Apart(page): // the page of an image, which is not protected
		return nil
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
	if !bytes.Equal(c.page[:], data) {
		return nil
	}
	c.keepAlone(page)
	if place, ok := c.table.Find(b); ok && place.Boot == c.table.Boot() {
		c.keepAlone(place.Page) // a block is paired with one page: only that one may be dropped for it
	}
	entered, freed := c.table.Equal(since, b, page)
	if entered && !c.isChanging(b) {
		c.p.pager.KnowBlock(page, ram.Block{Disk: b.Disk, No: b.No, From: c.disks[b.Disk]})
	}
	return c.free(freed)
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

// forget drops everything: guest memory is about to become something else, unless it is to be kept. It requires mu.
func (c *blockCache) forget(keep bool) {
	if c == nil {
		return
	}
	if keep {
		c.p.pager.Known(func(ident.PageNo, ram.Block) bool { return true }, c.keepAlone)
	}
	for _, k := range c.kept {
		k.Close()
	}
	c.table, c.kept = srt.New(c.limit, ""), map[uint64]*ram.Kept{}
}

// reboot makes guest memory zero and keeps the old one for the blocks in it. It requires mu. All vCPUs must be parked, all devices at rest.
func (c *blockCache) reboot() error {
	p := c.p
	p.pager.OnlyOnDisk(func(page ident.PageNo) { c.table.Write(page) }) // the memory of this boot does not have them
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
