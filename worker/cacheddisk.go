package worker

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

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
	p.cache.disks[uint8(index)] = disk
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

// Rests implements virtio.Waiting.
func (d *cachedDisk) Rests(rests func() bool) {
	if w, ok := d.Disk.(virtio.Waiting); ok {
		w.Rests(rests)
	}
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
	d.c.change(blockRange{d.index, first, last})
	begun, freed := d.c.table.Change(d.index, first, last)
	d.check(d.c.free(freed))
	return uint64(begun)
}

// Changed implements virtio.Pairs.
func (d *cachedDisk) Changed(begun, first, last uint64) (uint64, bool) {
	d.c.p.mu.Lock()
	defer d.c.p.mu.Unlock()
	since, alone, freed := d.c.table.Done(srt.Mark(begun), d.index, first, last)
	d.c.changed(blockRange{d.index, first, last})
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
