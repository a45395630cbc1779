package recover

import "github.com/cellvisor/cellvisor/ident"

// Mirrors without replicas: home ships what was written to its disk while the guest runs, and a guest's flush, and with it the guest, waits until every
// mirror that is in step has what was written before. What a flush had made durable when the outside saw the record that says so is then on
// whichever copy the VM is started on after it was lost.

// canaryMirrorEarly has a flush wait for home's disk only.
const canaryMirrorEarly = "mirror-not-awaited"

// keepMirrors ships what was written to the mirrors, which are compared first; those that are in step go on getting it meanwhile.
func (x *worker) keepMirrors() {
	p := x.protect
	if x.inStep &= p.Mirrors; x.flushing != nil && (x.inStep == 0 || x.w.canary == canaryMirrorEarly) {
		x.flushed()
	}
	if x.disk == nil || p.Home != x.Part || p.Mirrors == 0 || p.Standbys != 0 || x.busy {
		return
	}
	whole := x.compareWith(p.Mirrors, x.inStep)
	if !whole && x.inStep == 0 {
		return
	}
	d := x.disk
	d.number++
	c := &checkpoint{number: d.number, truth: d.truth}
	for _, block := range d.layers.Cut(d.number) {
		v, _ := d.read(int(block))
		c.ships = append(c.ships, blockWrite{int(block), v})
	}
	x.busy = true
	asked := x.flushing
	if whole {
		x.inStep = p.Mirrors // flushes from here on wait for them
	}
	left := p.Mirrors
	p.Mirrors.Each(func(part ident.Part) {
		x.shipDisk(c, part, func() {
			if left = left.Clear(part); left != 0 {
				return
			}
			x.busy = false
			d.layers.Committed(c.number)
			if asked != nil && asked == x.flushing {
				x.flushed()
			}
			if whole {
				x.sayProtected(p.Seq)
			}
		})
	})
}

// shipDisk has a mirror apply a checkpoint of the disk, unless the protection changes before.
func (x *worker) shipDisk(c *checkpoint, part ident.Part, done func()) {
	w, seq, epoch := x.w, x.protect.Seq, x.epoch
	var ship func()
	ship = func() {
		if x.Dead || x.protect.Seq != seq || x.epoch != epoch {
			return
		}
		y := x.peer(part)
		if x.Paused || !x.Leased() || y == nil || y.taken || y.protect.Seq != seq || !y.Leased() {
			w.At(w.Now()+5*ident.Millisecond, ship)
			return
		}
		y.takeDisk(c)
		w.DeliverTo(x, func() {
			if !x.Dead && x.protect.Seq == seq && x.epoch == epoch {
				done()
			}
		})
	}
	w.At(w.Now()+w.Between(100, 5*ident.Millisecond), ship)
}

// flushed ends the guest's flush: it emits the record that says so.
func (x *worker) flushed() {
	x.log = append(x.log, *x.flushing)
	x.flushing = nil
	x.w.release(x, len(x.log))
}

// goesWithout takes in what a guest without replicas does next: its record, which leaves at once, or waits until the mirrors have what it flushes.
func (x *worker) goesWithout(r record) (waits bool) {
	if !r.flushed || x.inStep == 0 || x.w.canary == canaryMirrorEarly || x.holding || x.protect.Standbys != 0 {
		return false
	}
	x.flushing = &r
	return true
}
