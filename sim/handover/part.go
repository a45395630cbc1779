package handover

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/gang/handover"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// members tells home who has left.
func (p *part) members() {
	for _, o := range p.w.parts {
		if p.home != nil && o.dead {
			p.step(handover.Lost{Part: o.id})
		}
	}
}

// Wake implements kernel.Node.
func (p *part) Wake(ident.Micros) {
	if p.home != nil {
		p.step(handover.Tick{})
	}
}

// step steps home's core and carries its effects out.
func (p *part) step(ev handover.Event) {
	p.home.Step(p.w.Now(), ev)
	for _, e := range p.home.Effects() {
		switch {
		case e.Ask != nil:
			p.send(*e.Ask)
		case e.Committed != nil:
			p.w.Tracef("home commits %d", e.Committed.Seq)
			p.w.owner[e.Committed.VCPU] = e.Committed.To
			p.w.vcpus[e.Committed.VCPU].lost = p.w.parts[e.Committed.To].dead // home may not have heard of it yet: then the vCPU goes with it
		case e.Over.Moved:
			p.w.Tracef("hand-over %d is over", e.Over.Seq)
			p.w.where[e.Over.VCPU] = e.Over.To
			p.w.ended(e.Over.Seq)
		default:
			p.w.Tracef("hand-over %d came to nothing: %s", e.Over.Seq, e.Over.Why)
			p.w.ended(e.Over.Seq)
		}
	}
	if at, ok := p.home.NextDeadline(); ok {
		p.w.WakeAt(p.node, at)
	}
}

func (w *world) ended(seq uint64) {
	if w.over[seq] {
		w.Fail(fmt.Errorf("hand-over %d ended twice", seq))
	}
	w.over[seq] = true
}

// send asks a part, and gives up waiting for its answer after a while.
func (p *part) send(a handover.Ask) {
	p.token++
	token, life := p.token, p.w.life
	p.tokens[token] = a
	p.w.Send(p.node, p.w.parts[a.To].node, request{epoch: p.epoch, token: token, ask: a})
	p.w.At(p.w.Now()+askTime, func() {
		if _, open := p.tokens[token]; open && p.w.life == life {
			delete(p.tokens, token)
			p.step(handover.Answer{Seq: a.Seq, Op: a.Op})
		}
	})
}

// Receive implements kernel.Node.
func (p *part) Receive(_ ident.Micros, from kernel.NodeID, msg any) {
	switch m := msg.(type) {
	case request:
		if m.epoch == p.epoch { // else it is refused on arrival, and asked again
			p.take(m)
		}
	case reply:
		a, open := p.tokens[m.token]
		if !open {
			return
		}
		delete(p.tokens, m.token)
		p.step(handover.Answer{Seq: a.Seq, Op: a.Op, Verdict: m.verdict, State: m.state})
	}
}

// take does what home asks for.
func (p *part) take(m request) {
	a := m.ask
	verdict := p.holder.Take(a.Op, a.VCPU, a.Seq)
	p.w.Tracef("part %d: %v of vCPU %d, number %d: verdict %d", p.id, a.Op, a.VCPU, a.Seq, verdict)
	switch {
	case a.Op == handover.Stop && verdict == handover.NoAnswer:
		_, already := p.waiting[a.VCPU]
		p.waiting[a.VCPU] = m
		if !already {
			life := p.w.life
			p.w.At(p.w.Now()+p.w.Between(10, 3*ident.Millisecond), func() { p.captured(a.VCPU, life) })
		}
		return
	case a.Op == handover.Install && verdict == handover.Done && p.holder.State(a.VCPU) == handover.Installed:
		p.work[a.VCPU] = binary.LittleEndian.Uint64(a.State)
	}
	p.answer(m, verdict)
}

func (p *part) captured(id ident.VCPU, life int) {
	if p.dead || p.w.life != life {
		return
	}
	m := p.waiting[id]
	delete(p.waiting, id)
	if p.holder.Captured(id) {
		p.answer(m, handover.Done)
	} else {
		p.answer(m, handover.Refused)
	}
}

func (p *part) answer(m request, v handover.Verdict) {
	r := reply{token: m.token, verdict: v}
	if m.ask.Op == handover.Stop && v == handover.Done {
		r.state = binary.LittleEndian.AppendUint64(nil, p.work[m.ask.VCPU])
	}
	p.w.Send(p.node, p.w.parts[0].node, r)
}

// check looks at everything.
func (w *world) check() error {
	for id := range w.vcpus {
		runs, has := 0, 0
		for _, p := range w.parts {
			if p.dead {
				continue
			}
			if p.holder.Runs(ident.VCPU(id)) {
				runs++
			}
			if p.holder.State(ident.VCPU(id)) != handover.Away {
				has++
			}
		}
		if runs > 1 {
			return fmt.Errorf("vCPU %d runs at %d parts", id, runs)
		}
		if !w.parts[0].home.Busy() && !w.vcpus[id].lost && (runs != 1 || has != 1) {
			return fmt.Errorf("vCPU %d is at %d parts and runs at %d, though no hand-over is under way", id, has, runs)
		}
	}
	return nil
}
