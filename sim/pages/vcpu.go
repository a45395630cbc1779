package pages

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// operation is one read or write of a page.
type operation struct {
	page  ident.PageNo
	write bool
	value uint64

	client       int
	boot         int
	begun, ended ident.Micros
}

// vcpu performs its operations one after the other. One that faults waits for its page to be mapped and tries again, as the CPU does.
type vcpu struct {
	part    *part
	index   int
	ops     []operation // the first is under way, if begun
	begun   bool
	ready   bool // tries at any moment: not waiting for a page
	waiting bool
}

// next begins the next operation.
func (v *vcpu) next() {
	if len(v.ops) == 0 || v.begun {
		return
	}
	v.begun, v.ready = true, true
	v.ops[0].begun = v.part.w.Now()
	v.try()
}

// try performs the operation or faults.
func (v *vcpu) try() {
	p := v.part
	if !v.begun || !v.ready || !p.w.Running(p.id) {
		return
	}
	op := &v.ops[0]
	if p.guest[op.page].allows(op.write) {
		v.perform()
		return
	}
	v.ready, v.waiting = false, true
	p.w.touched[op.page] = p.w.touched[op.page].Set(p.self)
	if p.w.Tracing {
		p.w.Tracef("p%d.%d faults on page %d write %t", p.self, v.index, op.page, op.write)
	}
	p.step(p.w.Clock(p.id), mem.Event{Kind: mem.EventFault, Page: op.page, Write: op.write, By: uint16(v.index) + 1, Around: p.w.around}, nil)
}

// wake is UFFDIO_WAKE: the thread runs on some time later.
func (v *vcpu) wake(page ident.PageNo) {
	if !v.waiting || v.ops[0].page != page {
		return
	}
	v.ready, v.waiting = true, false
	v.part.w.At(v.part.w.Now()+v.part.w.Between(0, 30), v.try)
}

// perform does the operation, in one instant.
func (v *vcpu) perform() {
	op := v.ops[0]
	op.client = int(v.part.self)*16 + v.index
	v.part.access(&op)
	v.end()
}

func (v *vcpu) end() {
	v.ops = v.ops[1:]
	v.begun, v.ready, v.waiting = false, false, false
	v.part.w.open--
	v.part.w.At(v.part.w.Now()+v.part.w.Between(0, 300), v.next)
}

func (v *vcpu) lost(page ident.PageNo) {
	if v.waiting && v.ops[0].page == page {
		v.end()
	}
}

// access reads or writes through whichever mapping and compares with the latest write of all.
func (p *part) access(op *operation) {
	w := p.w
	op.ended, op.boot = w.Now(), p.boot
	latest := w.lives[p.boot]
	if w.Tracing {
		w.Tracef("p%d page %d write %t: was %d, latest %d", p.self, op.page, op.write, p.memfd[op.page], latest[op.page])
	}
	if p.memfd[op.page] != latest[op.page] {
		w.Fail(fmt.Errorf("p%d finds %d in page %d, the latest write was %d", p.self, p.memfd[op.page], op.page, latest[op.page]))
	}
	op.value = p.memfd[op.page]
	if op.write {
		w.values++
		op.value = w.values
		p.memfd[op.page], latest[op.page] = op.value, op.value
		if w.afterWrite != nil {
			w.afterWrite(p, op.page)
		}
	}
	w.history = append(w.history, *op)
}

// pinned is a device operation under way: the page is held from the answer until the device is done.
type pinned struct {
	op    operation
	token uint64
	held  bool
}

// nextPin begins the device's next operation.
func (p *part) nextPin() {
	w := p.w
	if p.pin != nil || len(p.devOps) == 0 || !w.Running(p.id) {
		return
	}
	p.tokens++
	p.pin = &pinned{op: p.devOps[0], token: p.tokens}
	p.devOps = p.devOps[1:]
	p.pin.op.begun = w.Now()
	w.touched[p.pin.op.page] = w.touched[p.pin.op.page].Set(p.self)
	p.step(w.Clock(p.id), mem.Event{Kind: mem.EventPin, Page: p.pin.op.page, Write: p.pin.op.write, Token: p.pin.token}, nil)
}

// pinHeld: the device works on the page for a while. A page pinned for writing belongs to this part all that time; one pinned for
// reading stays the same.
func (p *part) pinHeld(e *mem.Effect) {
	if p.pin == nil || p.pin.token != e.Token || p.pin.held {
		p.w.Fail(fmt.Errorf("p%d: pin %d answered unasked", p.self, e.Token))
		return
	}
	p.pin.held = true
	token := p.pin.token
	p.w.At(p.w.Now()+p.w.Between(0, 200), func() { p.pinDone(token) })
}

func (p *part) pinDone(token uint64) {
	if p.pin == nil || p.pin.token != token {
		return // died
	}
	if !p.w.Running(p.id) {
		p.w.At(p.w.Now()+50, func() { p.pinDone(token) })
		return
	}
	op := p.pin.op
	op.client = int(p.self)*16 + 15
	if op.write {
		p.disk.leaves(op.page) // a device writes past the guest's mapping
	}
	p.access(&op)
	p.pin = nil
	p.w.open--
	p.step(p.w.Clock(p.id), mem.Event{Kind: mem.EventUnpin, Page: op.page, Token: token}, nil)
	p.w.At(p.w.Now()+p.w.Between(0, 400), p.nextPin)
}
