package pages

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/sim/kernel"
	"github.com/cellvisor/cellvisor/wire"
)

// access is what the guest mapping of a part allows on a page.
type access uint8

const (
	none access = iota
	readOnly
	readWrite
)

// part plays the worker of one VM part. The contents of a page are one number.
type part struct {
	w     *world
	id    kernel.NodeID
	self  ident.Part
	core  *mem.Core
	cfg   mem.Config
	boot  int
	disk  *cachedDisk // at home, in worlds that reboot
	memfd []uint64
	guest []access
	vcpus []*vcpu

	devOps []operation
	pin    *pinned
	tokens uint64
	lost   []ident.PageNo // told lost, for the world's check
}

// message is what goes over the simulated network: an encoded header, and what follows it.
type message struct {
	header   [wire.PageHeaderBytes]byte
	contents uint64
	body     []byte
}

func (m *message) String() string {
	var h wire.PageMsg
	if err := wire.PageHeader(m.header[:], &h); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%v =%d", h, m.contents)
}

// Receive implements kernel.Node.
func (p *part) Receive(now ident.Micros, from kernel.NodeID, msg any) {
	m := msg.(*message)
	if p.w.Tracing {
		p.w.Tracef("p%d < %v", p.self, m)
	}
	ev := mem.Event{Kind: mem.EventMessage, Body: m.body}
	if err := wire.PageHeader(m.header[:], &ev.Msg); err != nil {
		p.w.Fail(err)
		return
	}
	p.step(now, ev, m)
}

// Wake implements kernel.Node.
func (p *part) Wake(now ident.Micros) { p.step(now, mem.Event{Kind: mem.EventTick}, nil) }

func (p *part) members(epoch ident.Epoch, members ident.PartSet, fresh bool) {
	if p.w.Crashed(p.id) {
		return
	}
	p.w.Tracef("p%d members %b in epoch %d", p.self, members, epoch)
	// Where the registry does not know what a part has announced, other parts are told that it is an older one.
	older := members&p.w.older != 0 || p.self == p.w.misled
	p.step(p.w.Clock(p.id), mem.Event{Kind: mem.EventMembers, Epoch: epoch, Members: members, Fresh: fresh, Older: older}, nil)
}

// step steps the core and executes its effects. Between any two of them a vCPU of this part may run, as they do on other threads.
func (p *part) step(now ident.Micros, ev mem.Event, m *message) {
	p.core.Step(now, ev)
	p.disk.stepping(ev)
	effects := p.core.Effects()
	for i := range effects {
		p.race()
		p.execute(&effects[i], m)
	}
	if err := p.core.Check(); err != nil {
		p.w.Fail(fmt.Errorf("p%d after %+v: %w", p.self, ev, err))
	}
	if at, ok := p.core.NextDeadline(); ok {
		p.w.WakeAt(p.id, at)
	} else {
		p.w.NoWake(p.id)
	}
}

func (p *part) execute(e *mem.Effect, m *message) {
	if p.w.Tracing && e.Kind != mem.EffectSend {
		p.w.Tracef("p%d effect %d page %d writable %t token %d to %v", p.self, e.Kind, e.Page, e.Writable, e.Token, e.To)
	}
	switch e.Kind {
	case mem.EffectSend:
		p.send(e)
	case mem.EffectStore:
		p.disk.leaves(e.Page)
		p.memfd[e.Page] = m.contents
		p.mustBeUnmapped(e)
	case mem.EffectZero:
		p.disk.leaves(e.Page)
		p.memfd[e.Page] = 0
		p.mustBeUnmapped(e)
	case mem.EffectMap:
		p.guest[e.Page] = readOnly
		if e.Writable && !p.disk.readsOnly(e.Page) {
			p.disk.leaves(e.Page)
			p.guest[e.Page] = readWrite
		}
		for _, v := range p.vcpus {
			v.wake(e.Page)
		}
	case mem.EffectProtect:
		p.guest[e.Page] = min(p.guest[e.Page], readOnly)
	case mem.EffectRevoke:
		p.disk.leaves(e.Page)
		p.guest[e.Page] = none
	case mem.EffectPinned:
		if !p.disk.pinHeld(e.Token) {
			p.pinHeld(e)
		}
	case mem.EffectLostPage:
		p.lostPage(e)
	}
}

func (p *part) mustBeUnmapped(e *mem.Effect) {
	if p.guest[e.Page] != none {
		p.w.Fail(fmt.Errorf("p%d: contents of page %d replaced while the guest has it mapped", p.self, e.Page))
	}
}

func (p *part) send(e *mem.Effect) {
	m := &message{}
	wire.PutPageHeader(m.header[:], &e.Msg)
	if e.Msg.Kind == wire.KindGetShared || e.Msg.Kind == wire.KindGetModified { // by read-ahead too
		p.w.touched[e.Page] = p.w.touched[e.Page].Set(p.self)
	}
	if e.Msg.Kind == wire.KindHome { // the new directory may grant pages to itself without anybody's knowing
		for page := e.Page; page < e.Page+ident.PageNo(p.core.RegionPages()) && int(page) < len(p.w.touched); page++ {
			p.w.touched[page] = p.w.touched[page].Set(e.To)
		}
	}
	if e.Msg.Flags&wire.FlagContents != 0 {
		m.contents = p.memfd[e.Page]
	}
	if e.Body != nil {
		m.body = append([]byte(nil), e.Body...)
	}
	if p.w.Tracing {
		p.w.Tracef("p%d > %v", p.self, m)
	}
	p.w.Send(p.id, p.w.parts[e.To].id, m)
}

func (p *part) lostPage(e *mem.Effect) {
	p.lost = append(p.lost, e.Page)
	if e.Token != 0 {
		if p.pin != nil && p.pin.token == e.Token {
			p.pin = nil
			p.w.open--
			p.w.At(p.w.Now(), p.nextPin)
		}
		return
	}
	for _, v := range p.vcpus {
		v.lost(e.Page)
	}
}

// die ends what this part had to do.
func (p *part) die() {
	for _, v := range p.vcpus {
		p.w.open -= len(v.ops)
		v.ops = nil
	}
	p.w.open -= len(p.devOps)
	p.devOps = nil
	if p.pin != nil {
		p.w.open--
		p.pin = nil
	}
	clear(p.guest)
}

// kick makes the vCPUs of a part that was paused look at their operation again.
func (p *part) kick() {
	for _, v := range p.vcpus {
		p.w.At(p.w.Now(), v.try)
	}
	p.w.At(p.w.Now(), p.nextPin)
}

// race lets a vCPU run that is about to access a page it has access to.
func (p *part) race() {
	if !p.w.Chance(300) {
		return
	}
	for _, v := range p.vcpus {
		if v.ready && p.guest[v.ops[0].page].allows(v.ops[0].write) {
			v.perform()
			return
		}
	}
}

func (a access) allows(write bool) bool { return a == readWrite || a == readOnly && !write }
