package recover

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/recovery/layers"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/wire"
)

// Disks: the VMs of the scenario "disks" have one each, whose copies outlive workers, servers and VMs. Guests write numbered blocks, read them back,
// flush, and emit records that say what a flush had made durable. Package layers, which the worker has, decides what goes to an image when.
//
// It holds that
//   - a guest reads what it wrote last, whichever copy it reads, and after a failover what its checkpoint had;
//   - home writes to its image only what is in a checkpoint that every standby holds;
//   - what a flush had made durable when the outside saw a record that says so is on every copy that a VM is started on later, after any loss of power.
//
// A copy of earlier times is refused or brought into step, and so is a damaged one.

// Planted bugs of the simulated disks.
const (
	canaryStaleMirror  = "stale-mirror"        // a standby's copy counts as in step without having been compared
	canaryDamagedTrust = "damage-not-compared" // the checksums of a copy are compared, not its contents
	canaryOldCopy      = "old-copy-used"       // home uses a copy of an earlier use
	canaryFlushEarly   = "flush-not-durable"   // a flush is done when the write is in the image's journal, and so is a standby's checkpoint
	canaryWriteEarly   = "disk-write-early"    // home writes to its image when a checkpoint is cut, not when it is safe
	canaryCutForgotten = "cut-forgotten"       // a checkpoint has what was written since the last cut, though that came to nothing
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "disks",
		Doc:      "VMs with mirrored disks that lose cells, servers, workers and all power: copies are those of checkpoints, what was flushed stays",
		Run:      RunDisks,
		Canaries: []string{canaryStaleMirror, canaryDamagedTrust, canaryOldCopy, canaryFlushEarly, canaryWriteEarly, canaryCutForgotten, canaryMirrorEarly},
	})
}

// RunDisks runs the world of a seed with disks.
func RunDisks(seed uint64, canary string) error {
	return play(seed, canary, func(w *world) { w.disks = true })
}

// guestDisk is a disk at a VM's home.
type guestDisk struct {
	layers    *layers.Disk
	image     *image
	truth     contents         // what the guest has written
	number    uint64           // of the last cut
	forgotten [diskBlocks]bool // written before a cut that came to nothing, and not since
	pages     *guestPages      // nil if the scenario has none
}

// write is what the guest does to write a block.
func (d *guestDisk) write(block int, value uint32) {
	d.truth[block], d.forgotten[block] = value, false
	if d.layers.Write(map[uint64][]byte{uint64(block): dataOf(value)}) {
		d.image.commit([]blockWrite{{block, value}}, false)
	}
}

// promise is what the outside knows to be on a disk.
type promised struct{ flushed contents }

func valueOf(data []byte) uint32 {
	return uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
}

func dataOf(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }

func batchOf(writes []layers.Write) []blockWrite {
	var out []blockWrite
	for _, b := range writes {
		out = append(out, blockWrite{int(b.Block), valueOf(b.Data)})
	}
	return out
}

// read reads a block as the guest does. damaged: the image says that the block is not what was written.
func (d *guestDisk) read(block int) (value uint32, damaged bool) {
	if data, ok := d.layers.Find(uint64(block)); ok {
		return valueOf(data), false
	}
	return d.image.now()[block], d.image.bad[block]
}

// openDisk opens the copy that a VM is to be started on; false: it is refused.
func (x *worker) openDisk() bool {
	spec := x.disks[0]
	m := x.w.copyAt(x.Server, spec.Dir)
	if m.generation < spec.Confirmed && x.w.canary != canaryOldCopy {
		x.w.Tracef("vm %d part %d: the copy is of use %d, the cluster knows of %d", x.VM, x.Part, m.generation, spec.Confirmed)
		x.Tell(monitor.WorkerEnded{VM: x.VM, Ended: wire.WorkerEnded{State: "failed", Reason: "the copy here is stale", Host: true}})
		return false
	}
	m.generation = max(m.generation, spec.Use)
	x.disk = &guestDisk{layers: layers.New(), image: m, truth: m.now()}
	if x.w.pages {
		x.disk.pages = newGuestPages(memory{}, 0)
	}
	x.Tell(monitor.WorkerDisks{VM: x.VM, Disks: wire.WorkerDisks{Opened: true}})
	x.bootFrom(spec.Dir)
	return true
}

// bootFrom checks what a guest finds that was started on a copy: all that had been said to be flushed, or what was written there later.
func (x *worker) bootFrom(dir string) {
	p := x.w.promised[dir]
	if p == nil {
		return
	}
	for block, v := range x.disk.truth {
		if v < p.flushed[block] && !x.disk.image.bad[block] {
			x.w.Fail(fmt.Errorf("vm %d part %d starts with block %d of %s as of write %d, the outside was told that write %d is durable", x.VM, x.Part, block, dir, v, p.flushed[block]))
			return
		}
	}
	p.flushed = x.disk.truth // what it goes on from; nobody was told of what was lost
}

// useDisk is what the guest does between two records; it returns what it says to the outside.
func (x *worker) useDisk() record {
	d, w := x.disk, x.w
	block := w.Rand().IntN(diskBlocks)
	if v, damaged := d.read(block); v != d.truth[block] && !damaged {
		w.Fail(fmt.Errorf("vm %d part %d reads write %d in block %d, write %d was the last", x.VM, x.Part, v, block, d.truth[block]))
	}
	r := record{epoch: x.epoch}
	if w.Chance(600) {
		block = w.Rand().IntN(diskBlocks - 2)
		if w.Chance(10) { // the last ones are written rarely
			block = diskBlocks - 1 - w.Rand().IntN(2)
		}
		w.writes++
		if d.write(block, w.writes); w.canary != canaryNamedLate {
			d.pages.overwritten(block, noBlock)
		}
	}
	if d.pages != nil {
		x.usePages()
	}
	if w.Chance(500) {
		if !d.layers.Holding() && w.canary != canaryFlushEarly {
			d.image.commit(nil, true)
		}
		r.flushed, r.durable = true, d.truth
	}
	return r
}

// promise notes what records that leave say about the disk.
func (x *worker) promise(records []record) {
	if x.disk == nil {
		return
	}
	p := x.w.promised[x.disks[0].Dir]
	if p == nil {
		p = &promised{}
		x.w.promised[x.disks[0].Dir] = p
	}
	for _, r := range records {
		if r.flushed {
			p.flushed = r.durable
		}
	}
}

// hold begins or ends keeping back disk writes.
func (x *worker) hold(on bool) {
	x.holding = on
	if x.disk != nil && x.disk.layers.Holding() != on {
		x.disk.image.commit(batchOf(x.disk.layers.Hold(on)), true)
	}
}

// compare brings the copies of standbys that are new into step, a few blocks at a time. Until that is done no checkpoint is cut.
func (x *worker) compare() (done bool) {
	if x.disk == nil {
		return true
	}
	return x.compareWith(x.protect.Standbys, x.safe|x.fallback)
}

// compareWith is compare with some standbys, of which some are in step.
func (x *worker) compareWith(all, inStep ident.PartSet) (done bool) {
	x.disk.layers.Note(true)
	done = true
	all.Each(func(part ident.Part) {
		if inStep.Has(part) || !done {
			return
		}
		y := x.peer(part)
		if y == nil || y.taken || y.protect.Seq != x.protect.Seq || !y.Leased() {
			done = false
			return
		}
		for range 1 + x.w.Rand().IntN(3) {
			if x.compared[part] == diskBlocks || x.w.canary == canaryStaleMirror {
				y.openMirror()
				return
			}
			x.compareBlock(y, x.compared[part])
			x.compared[part]++
		}
		done = x.compared[part] == diskBlocks
	})
	return done
}

// openMirror opens a standby's copy.
func (x *worker) openMirror() *image {
	spec := x.disks[0]
	m := x.w.copyAt(x.Server, spec.Dir)
	m.generation = max(m.generation, spec.Use)
	return m
}

func (x *worker) compareBlock(y *worker, block int) {
	m := y.openMirror()
	if !x.disk.layers.Settled(uint64(block)) {
		return // it comes with a checkpoint
	}
	gone := x.disk.image.bad[block]
	want := x.disk.image.now()[block]
	if !gone && m.now()[block] == want && (!m.bad[block] || x.w.canary == canaryDamagedTrust) {
		return
	}
	if y.memory != nil {
		y.memory.fetch(m, y.memory.refs.Changing(srt.Block{No: uint64(block)}))
	}
	if gone { // what the copy has is of earlier times, and must not be taken for the contents
		m.bad[block], m.lost[block] = true, true
		return
	}
	m.commit([]blockWrite{{block, want}}, false)
}

// cutDisk ends the layer, and adds to a checkpoint what it has of the disk; false: the cut comes to nothing.
func (x *worker) cutDisk(c *checkpoint) bool {
	d := x.disk
	x.hold(true)
	d.number++
	c.number, c.truth = d.number, d.truth
	for _, block := range d.layers.Cut(d.number) {
		if d.forgotten[block] && x.w.canary == canaryCutForgotten {
			continue
		}
		v, _ := d.read(int(block))
		c.ships = append(c.ships, blockWrite{int(block), v})
	}
	if err := d.layers.Check(); err != nil {
		x.w.Fail(fmt.Errorf("vm %d part %d: %w", x.VM, x.Part, err))
	}
	if x.w.canary == canaryWriteEarly {
		x.settle(d.number)
	}
	if x.w.Chance(100) { // a member did not hold still
		for _, b := range c.ships {
			d.forgotten[b.block] = true
		}
		return false
	}
	d.forgotten = [diskBlocks]bool{}
	x.cutPages(c)
	return true
}

// lineageOf is what a checkpoint has for one standby: for one that the VM could have gone back to in an earlier life all that may differ.
func (x *worker) lineageOf(c *checkpoint, part ident.Part) *checkpoint {
	if x.disk == nil || !x.fallback.Has(part) && x.safe.Has(part) {
		return c
	}
	out := *c
	if out.pages = c.allPages(); !x.fallback.Has(part) {
		return &out
	}
	out.ships = nil
	for block, v := range c.truth {
		out.ships = append(out.ships, blockWrite{block, v})
	}
	return &out
}

// settle writes to home's image what a safe checkpoint has.
func (x *worker) settle(number uint64) {
	x.protect.Standbys.Each(func(part ident.Part) {
		for _, y := range x.w.Workers {
			if y.VM == x.VM && y.Part == part && y.applied != number && !y.taken && y.protect.Seq == x.protect.Seq {
				x.w.Fail(fmt.Errorf("vm %d part %d writes what checkpoint %d has to its disk, the standby %d has number %d", x.VM, x.Part, number, part, y.applied))
			}
		}
	})
	x.disk.image.commit(batchOf(x.disk.layers.Committed(number)), true)
	if g := x.disk.pages; g != nil {
		g.committed = number
	}
}

// takeDisk is a standby's: it writes what a checkpoint has of the disk, durably, before it says that it has it.
func (x *worker) takeDisk(c *checkpoint) {
	x.applied = c.number
	if len(x.disks) > 0 {
		m := x.openMirror()
		if x.w.pages {
			x.replicaPages().beforeDisk(m, c)
		}
		m.commit(c.ships, x.w.canary != canaryFlushEarly)
		m.number = c.number
		if x.w.pages {
			if err := x.memory.afterDisk(m, c); err != nil {
				x.w.Fail(fmt.Errorf("vm %d part %d: %w", x.VM, x.Part, err))
			}
		}
	}
}

// goOnWith is the new home's: its copy is that of the checkpoint that it goes back to.
func (x *worker) goOnWith(truth contents) {
	if len(x.disks) == 0 {
		return
	}
	m := x.openMirror()
	x.disk = &guestDisk{layers: layers.New(), image: m, number: x.applied + 1<<20, truth: truth}
	if x.w.pages {
		holds, err := x.replicaPages().takeOver(m)
		if err != nil {
			x.w.Fail(fmt.Errorf("vm %d part %d takes over: %w", x.VM, x.Part, err))
			return
		}
		x.disk.pages = newGuestPages(holds, x.disk.number)
	}
	for block, v := range m.now() {
		if (v != truth[block] || m.bad[block]) && !m.lost[block] {
			x.w.Fail(fmt.Errorf("vm %d part %d takes over with write %d in block %d (damaged %v), its checkpoint has write %d", x.VM, x.Part, v, block, m.bad[block], truth[block]))
			return
		}
	}
}
