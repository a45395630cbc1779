package locality

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/sim/kernel"
	"github.com/cellvisor/cellvisor/wire"
)

// part plays the worker of one part. The contents of a page are one number.
type part struct {
	w        *world
	id       kernel.NodeID
	self     ident.Part
	core     *mem.Core
	observer *locality.Observer
	memfd    []uint64
	readable []bool
	writable []bool
}

// message is what goes over the simulated network.
type message struct {
	m        wire.PageMsg
	contents uint64
	body     []byte
}

// Receive implements kernel.Node.
func (p *part) Receive(now ident.Micros, _ kernel.NodeID, msg any) {
	m := msg.(*message)
	p.step(now, mem.Event{Kind: mem.EventMessage, Msg: m.m, Body: m.body}, m.contents)
}

// Wake implements kernel.Node.
func (p *part) Wake(now ident.Micros) { p.step(now, mem.Event{Kind: mem.EventTick}, 0) }

func (p *part) step(now ident.Micros, ev mem.Event, contents uint64) {
	p.core.Step(now, ev)
	traffic := p.core.Traffic()
	for i := range traffic {
		p.observer.Note(&traffic[i])
	}
	effects := p.core.Effects()
	for i := range effects {
		p.execute(&effects[i], contents)
	}
	if page, to, ok := p.observer.Rehome(); ok {
		p.w.homed(now)
		p.step(now, mem.Event{Kind: mem.EventRehome, Page: page, To: to}, 0)
	}
	if at, ok := p.core.NextDeadline(); ok {
		p.w.WakeAt(p.id, at)
	} else {
		p.w.NoWake(p.id)
	}
}

func (p *part) execute(e *mem.Effect, contents uint64) {
	switch e.Kind {
	case mem.EffectSend:
		m := &message{m: e.Msg, body: append([]byte(nil), e.Body...)}
		if e.Msg.Flags&wire.FlagContents != 0 {
			m.contents = p.memfd[e.Page]
		}
		p.w.Send(p.id, p.w.parts[e.To].id, m)
	case mem.EffectStore:
		p.memfd[e.Page] = contents
	case mem.EffectZero:
		p.memfd[e.Page] = 0
	case mem.EffectMap:
		p.readable[e.Page], p.writable[e.Page] = true, e.Writable
		for _, v := range p.w.vcpus {
			if v.waits && v.part == p && v.op.page == e.Page {
				v.waits = false
				p.w.At(p.w.Now()+faultTime, v.resume)
			}
		}
	case mem.EffectProtect:
		p.writable[e.Page] = false
	case mem.EffectRevoke:
		p.readable[e.Page], p.writable[e.Page] = false, false
	}
}

func (p *part) allows(op operation) bool {
	return p.writable[op.page] || p.readable[op.page] && !op.write
}
