package locality

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/locality"
)

// vcpu runs its phase's program, one operation after the other.
type vcpu struct {
	w       *world
	id      ident.VCPU
	part    *part
	program program
	op      operation
	has     bool // op is under way
	waits   bool // for its page
	hand    cells.Hand
	to      *part // the part that hand takes it to; nil: none
	done    bool  // with its phase
}

// resume goes on once the page is there, or after a pause.
func (v *vcpu) resume() {
	if v.waits || v.done {
		return
	}
	v.run()
}

// batch is how many operations on pages that are here are made in one event.
const batch = 32

// run makes operations until one has to wait.
func (v *vcpu) run() {
	if v.to != nil {
		v.transfer()
		return
	}
	for n := range batch {
		if !v.has {
			op, state := v.program.next()
			switch state {
			case programEnds:
				v.done = true
				v.w.finished()
				return
			case programPolls:
				v.w.At(v.w.Now()+ident.Micros(n)*accessTime+pollTime, v.resume)
				return
			}
			v.op, v.has = op, true
		}
		if !v.part.allows(v.op) {
			v.waits = true
			v.w.At(v.w.Now()+ident.Micros(n)*accessTime, v.fault)
			return
		}
		v.perform()
	}
	v.w.At(v.w.Now()+batch*accessTime, v.resume)
}

// fault has the page brought here.
func (v *vcpu) fault() {
	p := v.part
	ev := mem.Event{Kind: mem.EventFault, Page: v.op.page, Write: v.op.write, By: locality.By(v.id)}
	if !v.op.write {
		ev.Around = p.observer.Around(v.op.page)
	}
	p.step(v.w.Clock(p.id), ev, 0)
}

func (v *vcpu) perform() {
	p, w := v.part, v.w
	page := v.op.page
	if p.memfd[page] != w.latest[page] {
		w.Fail(fmt.Errorf("vCPU %d at %v finds %d in page %d, the latest write was %d", v.id, p.self, p.memfd[page], page, w.latest[page]))
	}
	v.has = false
	if value, write := v.program.sees(v.op, p.memfd[page]); write {
		p.memfd[page], w.latest[page] = value, value
	}
}

// transfer hands the vCPU over, which has stopped.
func (v *vcpu) transfer() {
	w, to := v.w, v.to
	w.At(w.Now()+moveTime, func() {
		if v.to != to {
			return
		}
		v.part, v.to = to, nil
		w.transferred(v)
		v.resume()
	})
}
