package pages

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/srt"
)

// In worlds that reboot, part 0 is home and has a disk with several queues. Whole blocks are read into pages and written from them; the production
// replica table says which pages equal which blocks, and blocks that it knows are not read from the disk. From time to time the guest
// crashes: every part, at a moment of its own, forgets what it holds and begins a new boot under a new epoch.
//
// After every event it holds that each pair's page, in guest memory or in that of a former boot, equals its block, unless a write of that block is
// under way; and a block that is read is what the disk holds.

// A bug of the shell around the cores, which the reboot scenario plants.
const canaryResetKeepsPage = "reset-keeps-page" // home goes on with the contents of a page of the former boot, as with those of an image

// blocks of the disk.
const diskBlocks = 6

// cachedDisk is home's disk. A nil one is that of any other part: it has no pairs.
type cachedDisk struct {
	p       *part
	table   *srt.Table
	kept    map[uint64][]uint64 // memory of former boots
	queues  []*queue
	ev      mem.Event // that is being stepped
	writing map[uint64]int
	canary  string
}

// diskOp is one request of the guest.
type diskOp struct {
	page  ident.PageNo
	block uint64
	write bool
}

// queue carries out requests one after the other.
type queue struct {
	d     *cachedDisk
	ops   []diskOp
	op    *diskOp // under way
	step  int     // tells a continuation that its request has ended meanwhile
	token uint64
	mark  srt.Mark
	value uint64 // read from the disk, or to be written
}

func (w *world) planReboots(s settings) {
	home := w.parts[0]
	w.disk = make([]uint64, diskBlocks)
	for i := range w.disk {
		w.values++
		w.disk[i] = w.values
	}
	limit := 1 + w.Rand().IntN(2*s.pages)
	d := &cachedDisk{p: home, table: srt.New(limit, canaryOf(s.canary)), kept: map[uint64][]uint64{}, writing: map[uint64]int{}, canary: s.canary}
	home.disk = d
	for range 1 + w.Rand().IntN(3) {
		q := &queue{d: d}
		d.queues = append(d.queues, q)
		for range 10 + w.Rand().IntN(40) {
			q.ops = append(q.ops, diskOp{page: ident.PageNo(w.Rand().IntN(s.pages)), block: uint64(w.Rand().IntN(diskBlocks)), write: w.Chance(350)})
			w.open++
		}
		w.At(w.Between(100, 400), q.next)
	}
	w.boots = 1 + w.Rand().IntN(5)
	w.At(w.Between(300, s.faultsEnd), w.reboot)
}

// canaryOf passes on what the table can plant.
func canaryOf(canary string) string {
	for _, c := range srt.Canaries {
		if c == canary {
			return c
		}
	}
	return ""
}

// reboot begins a new boot: the parts hear of it at different times, and until then run the former one.
func (w *world) reboot() {
	w.boots--
	w.epoch++
	w.latest = make([]uint64, len(w.latest))
	w.lives = append(w.lives, w.latest)
	w.Tracef("REBOOT in epoch %d", w.epoch)
	for _, p := range w.parts {
		w.At(w.Now()+w.Between(0, 1500), p.rebootWhenRunning)
	}
	if w.boots > 0 {
		w.At(w.Now()+w.Between(1600, 8000), w.reboot)
	}
}

func (p *part) rebootWhenRunning() {
	if !p.w.Running(p.id) {
		p.w.At(p.w.Now()+100, p.rebootWhenRunning)
		return
	}
	w := p.w
	if p.boot == len(w.lives)-1 {
		return // it was told of two boots at once
	}
	for _, v := range p.vcpus { // what they were doing they do again, from the start
		v.begun, v.ready, v.waiting = false, false, false
		w.At(w.Now()+w.Between(0, 300), v.next)
	}
	if p.pin != nil {
		p.devOps = append([]operation{p.pin.op}, p.devOps...)
		p.pin = nil
	}
	w.At(w.Now()+w.Between(0, 300), p.nextPin)
	p.boot = len(w.lives) - 1
	old := p.memfd
	p.memfd = make([]uint64, len(old))
	clear(p.guest)
	if p.disk != nil {
		p.disk.reboot(old)
	}
	cfg := p.cfg
	if w.parts[0].disk.canary == canaryResetKeepsPage {
		cfg.Image = ident.PartSet(0).Set(0)
		p.memfd[len(old)-1] = old[len(old)-1]
	}
	p.core = mem.New(cfg)
	p.members(w.epoch, w.members, true)
}

// reboot ends what the queues do and keeps the memory that the table knows of.
func (d *cachedDisk) reboot(old []uint64) {
	for _, q := range d.queues {
		if q.op != nil { // the guest never hears of it: it asks again after it has booted
			q.endWrite(false)
			q.ops = append([]diskOp{*q.op}, q.ops...)
			q.op = nil
			q.step++
		}
		d.p.w.At(d.p.w.Now()+d.p.w.Between(0, 300), q.next)
	}
	ended := d.table.Boot()
	d.kept[ended] = old
	for _, boot := range d.table.Reset() {
		delete(d.kept, boot)
	}
}

// leaves says that a page is about to be written or to leave home.
func (d *cachedDisk) leaves(page ident.PageNo) {
	if d != nil {
		d.table.Write(page)
	}
}

// stepping remembers what made the core act.
func (d *cachedDisk) stepping(ev mem.Event) {
	if d != nil {
		d.ev = ev
	}
}

// readsOnly tells whether a paired page is mapped because somebody reads it: then it stays protected.
func (d *cachedDisk) readsOnly(page ident.PageNo) bool {
	return d != nil && d.ev.Kind == mem.EventFault && d.ev.Page == page && !d.ev.Write && d.table.Paired(page)
}

// next begins a queue's next request.
func (q *queue) next() {
	w := q.d.p.w
	if q.op != nil || len(q.ops) == 0 || !w.Running(q.d.p.id) {
		if len(q.ops) > 0 && q.op == nil {
			w.At(w.Now()+100, q.next)
		}
		return
	}
	op := q.ops[0]
	q.ops, q.op = q.ops[1:], &op
	q.step++
	if !op.write {
		q.mark = q.d.table.Mark()
		q.value = q.d.read(op.block)
	}
	p := q.d.p
	p.tokens++
	q.token = p.tokens
	step := q.step
	w.At(w.Now()+w.Between(0, 60), func() {
		if q.step == step {
			q.whenRunning(step, func() {
				p.step(w.Clock(p.id), mem.Event{Kind: mem.EventPin, Page: op.page, Write: !op.write, Token: q.token}, nil)
			})
		}
	})
}

// whenRunning calls f when home runs, unless the request has ended meanwhile.
func (q *queue) whenRunning(step int, f func()) {
	w := q.d.p.w
	if q.step != step {
		return
	}
	if !w.Running(q.d.p.id) {
		w.At(w.Now()+50, func() { q.whenRunning(step, f) })
		return
	}
	f()
}

// read returns a block's contents, from memory if the table knows where, and checks them.
func (d *cachedDisk) read(block uint64) uint64 {
	w := d.p.w
	value := w.disk[block]
	place, ok := d.table.Find(srt.Block{No: block})
	if !ok {
		return value
	}
	memory := d.kept[place.Boot]
	if place.Boot == d.table.Boot() {
		memory = d.p.memfd
	}
	if got := memory[place.Page]; got != value && d.writing[block] == 0 {
		w.Fail(fmt.Errorf("block %d is read as %d from page %d of boot %d, the disk holds %d", block, got, place.Page, place.Boot, value))
	}
	return memory[place.Page]
}

// pinHeld goes on with the request whose page is here now; it returns false if the token is nobody's here.
func (d *cachedDisk) pinHeld(token uint64) bool {
	if d == nil {
		return false
	}
	for _, q := range d.queues {
		if q.op == nil || q.token != token {
			continue
		}
		step, w := q.step, d.p.w
		w.At(w.Now()+w.Between(0, 60), func() { q.whenRunning(step, q.transfer) })
		return true
	}
	return false
}

// transfer moves the contents between page and queue, as a device does, and lets go of the page.
func (q *queue) transfer() {
	p, w, op := q.d.p, q.d.p.w, q.op
	if !op.write {
		q.d.table.Write(op.page)
		p.memfd[op.page], w.lives[p.boot][op.page] = q.value, q.value
		w.history = append(w.history, operation{page: op.page, write: true, value: q.value, client: 15, boot: p.boot, begun: w.Now(), ended: w.Now()})
	} else {
		q.value = p.memfd[op.page]
		q.mark, _ = q.d.table.Change(0, op.block, op.block)
		q.d.writing[op.block]++
	}
	p.step(w.Clock(p.id), mem.Event{Kind: mem.EventUnpin, Page: op.page, Token: q.token}, nil)
	step := q.step
	w.At(w.Now()+w.Between(0, 60), func() { q.whenRunning(step, q.finish) })
}

// endWrite ends a write at the disk, perhaps with the data there and perhaps not, if it failed, and returns the mark for its pair.
func (q *queue) endWrite(good bool) (since srt.Mark, alone bool) {
	d := q.d
	if !q.op.write || d.writing[q.op.block] == 0 || q.mark == 0 {
		return 0, false
	}
	if good || d.p.w.Chance(500) {
		d.p.w.disk[q.op.block] = q.value
	}
	since, alone, _ = d.table.Done(q.mark, 0, q.op.block, q.op.block)
	d.writing[q.op.block]--
	q.mark = 0
	return since, alone
}

// finish makes the pair, if the page is still what was transferred, and ends the request.
func (q *queue) finish() {
	p, w, op := q.d.p, q.d.p.w, q.op
	since, alone := q.mark, true
	if op.write {
		since, alone = q.endWrite(true)
	}
	if alone && p.core.Page(op.page) != mem.Invalid {
		p.guest[op.page] = min(p.guest[op.page], readOnly)
		if p.memfd[op.page] == q.value { // compared once no vCPU can write it
			q.d.table.Equal(since, srt.Block{No: op.block}, op.page)
		}
	}
	q.op, q.mark = nil, 0
	q.step++
	w.open--
	w.At(w.Now()+w.Between(0, 300), q.next)
}

// check compares every pair.
func (d *cachedDisk) check() error {
	if d == nil {
		return nil
	}
	err := d.table.Check()
	d.table.Pairs(func(b srt.Block, place srt.Place) {
		memory := d.kept[place.Boot]
		if place.Boot == d.table.Boot() {
			memory = d.p.memfd
		}
		switch {
		case d.writing[b.No] > 0:
		case memory == nil || memory[place.Page] != d.p.w.disk[b.No]:
			err = fmt.Errorf("block %d is paired with page %d of boot %d, which differs", b.No, place.Page, place.Boot)
		case place.Boot == d.table.Boot() && d.p.guest[place.Page] == readWrite:
			err = fmt.Errorf("the guest may write page %d, which is paired with block %d", place.Page, b.No)
		}
	})
	return err
}

// diskEnded checks that all requests came to their end.
func (w *world) diskEnded() error {
	if w.boots > 0 {
		return fmt.Errorf("%d boots never came", w.boots)
	}
	if d := w.parts[0].disk; d != nil {
		for i, q := range d.queues {
			if q.op != nil || len(q.ops) > 0 {
				return fmt.Errorf("queue %d of the disk never ended: %+v, %d more", i, q.op, len(q.ops))
			}
		}
	}
	return nil
}
