package worker

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/wire"
)

// pageThreadNice is the priority of threads that serve pages. Measured with spinning vCPUs on every core, a remote fault takes a
// quarter of the time that it takes at nice 0.
const pageThreadNice = -20

// faultBatch is how many faults are read at once; more vCPUs than that rarely fault at the same moment.
const faultBatch = 16

// A plane is this part's end of the page protocol: the core, and the shell that carries out its effects on memory and peers.
type plane struct {
	vm     ident.VMID
	guard  *guard
	ram    *ram.RAM
	pager  *ram.Pager       // nil: all of ram may be in memory
	spares []*uffd.Reserved // for a jailed worker that has to watch later
	fd     *uffd.FD         // nil while the VM has one part only: then all pages are here, and nothing is watched
	pages  *link.Pages
	fail   func(error)             // ends the VM part: an invariant broke, or this host is out of memory
	lost   func(page ident.PageNo) // a vCPU or device touched a page whose contents are gone
	hint   func(part ident.Part, reset bool)

	refusedLapsed atomic.Uint64 // frames dropped because the lease had lapsed
	anything      atomic.Bool   // every fault is answered with whatever is there: the vCPUs' states are about to be discarded
	dirty         *dirtyPages

	mu   sync.Mutex
	core *mem.Core
	observing
	epoch    ident.Epoch
	outbox   *link.Outbox
	page     [ident.PageSize]byte
	timer    *time.Timer
	timerAt  ident.Micros
	pins     map[uint64]chan error // by token
	token    uint64
	closed   bool
	awake    awake
	cache    *blockCache // nil unless this part is, or was, home and has disks
	faulting faulting    // the fault that is being stepped
	stalled  stalled     // of a Linux machine over several parts
	refusing bool        // the VM boots again: pins of the former boot are refused
}

// step takes one event through the core and carries out what it asks for. contents are those that came with a message. It requires mu.
func (p *plane) step(now ident.Micros, ev mem.Event, contents []byte) {
	p.core.Step(now, ev)
	p.note(p.core.Traffic())
	effects := p.core.Effects()
	for i := range effects {
		if err := p.execute(&effects[i], contents); err != nil {
			p.fail(err)
			return
		}
	}
	if page, to, ok := p.rehome(); ok {
		p.step(now, mem.Event{Kind: mem.EventRehome, Page: page, To: to}, nil)
	}
}

// execute carries out one effect. It requires mu.
func (p *plane) execute(e *mem.Effect, contents []byte) error {
	switch e.Kind {
	case mem.EffectSend:
		return p.send(e)
	case mem.EffectStore:
		p.cache.leaves(e.Page)
		return p.ram.WritePage(e.Page, contents)
	case mem.EffectZero:
		p.cache.leaves(e.Page)
		return p.ram.ZeroPage(e.Page)
	case mem.EffectMap:
		defer p.stalled.come(e.Page)
		return p.mapPage(*e)
	case mem.EffectProtect:
		return p.fd.Protect(e.Page, 1, true)
	case mem.EffectRevoke:
		p.cache.leaves(e.Page)
		return p.ram.Revoke(e.Page, 1)
	case mem.EffectPinned:
		p.answerPin(e.Token, nil)
	case mem.EffectSuspect:
		p.hint(e.To, false)
	case mem.EffectLostPage:
		if e.Token != 0 {
			p.answerPin(e.Token, fmt.Errorf("page 0x%x is gone", e.Page))
		}
		p.lost(e.Page)
	default:
		return fmt.Errorf("page protocol: unknown effect %d", e.Kind)
	}
	return nil
}

// mapPage gives the guest access to a page, but no write access to one that holds a disk block and is only being read.
func (p *plane) mapPage(e mem.Effect) error {
	if e.Writable && p.cache != nil {
		if p.cache.readsOnly(e.Page) {
			e.Writable, e.Upgrade = false, false
			return p.allow(&e)
		}
		p.cache.leaves(e.Page)
	}
	if e.Writable {
		p.dirty.mark(e.Page)
	}
	return p.allow(&e)
}

// send puts a message into the outbox, with the page's contents as they are now if it wants them.
func (p *plane) send(e *mem.Effect) error {
	m := e.Msg
	m.To = e.To
	body := e.Body
	if m.Flags&wire.FlagContents != 0 {
		body = p.page[:]
		if err := p.ram.ReadPage(m.Page, body); err != nil {
			return err
		}
	}
	p.outbox.Add(&m, body)
	return nil
}

// allow gives the guest access to a page. A page without contents in the memfd is all zeros.
func (p *plane) allow(e *mem.Effect) error {
	if e.Upgrade && e.Writable && p.ram.Mapped(e.Page) && !p.faulting.unmapped(e.Page) {
		return p.fd.Protect(e.Page, 1, false)
	}
	return p.ram.Admit(e.Page, func() (filled bool, err error) {
		err = p.fd.Map(e.Page, 1, e.Writable)
		if !isNoContents(err) {
			return false, err
		}
		return true, p.fd.MapZero(e.Page, 1, e.Writable)
	})
}

// settle sends what the steps put into the outbox and sets the timer. It requires mu, and ends every critical section that stepped.
func (p *plane) settle() {
	p.outbox.Flush(p.epoch)
	at, want := p.core.NextDeadline()
	if !want || p.closed {
		return
	}
	if at != p.timerAt {
		p.timerAt = at
		p.timer.Reset(time.Duration(max(0, at-bootMicros())) * time.Microsecond)
	}
}

// tick runs when the core's deadline has passed.
func (p *plane) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timerAt = 0
	if p.closed {
		return
	}
	if !p.guard.mayAct() {
		// Nothing may be answered, and held pages may have gone to others meanwhile: look again when the lease may be back.
		p.timerAt = -1
		p.timer.Reset(50 * time.Millisecond)
		return
	}
	p.step(bootMicros(), mem.Event{Kind: mem.EventTick}, nil)
	p.settle()
}

// serveFaults reads this part's page faults until the userfaultfd is interrupted.
func (p *plane) serveFaults() {
	runtime.LockOSThread()
	raisePriority()
	faults := make([]uffd.Fault, faultBatch)
	for {
		n, err := p.fd.ReadFaults(faults)
		if err != nil {
			if !isInterrupted(err) {
				p.fail(fmt.Errorf("read page faults: %w", err))
			}
			return
		}
		p.mu.Lock()
		if p.anything.Load() {
			p.answerAnything(faults[:n])
			p.mu.Unlock()
			continue
		}
		now := bootMicros()
		p.awake.note(now, 1)
		for _, f := range faults[:n] {
			p.faulting = faulting{on: true, page: f.Page, write: f.Write, kind: f.Kind}
			p.stalled.fault(f.TID, f.Page)
			p.step(now, p.fault(f.TID, f.Page, f.Write), nil)
		}
		p.faulting.on = false
		p.settle()
		p.mu.Unlock()
	}
}

// answerAnything lets vCPUs out of the faults that they wait in, so that they can leave KVM_RUN. They execute nothing on what they get. It requires
// mu.
func (p *plane) answerAnything(faults []uffd.Fault) {
	for _, f := range faults {
		p.cache.leaves(f.Page)
		e := mem.Effect{Page: f.Page, Writable: true}
		if err := p.allow(&e); err != nil {
			p.fail(err)
			return
		}
	}
}

// letGo ends the waits of all vCPUs for pages: whatever is there is mapped until reset.
func (p *plane) letGo() {
	p.anything.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	for page := range p.core.Wanted {
		p.answerAnything([]uffd.Fault{{Page: page}})
	}
}

// reset starts the protocol afresh from the image that one part holds. This part keeps its contents only if it is that one. All vCPUs must be
// held.
func (p *plane) reset(image ident.Part, self ident.Part, cfg mem.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pages := p.ram.Pages()
	p.cache.forget(image == self)
	if err := p.ram.Revoke(0, pages); err != nil {
		return err
	}
	if image != self {
		if err := p.ram.Zero(0, pages); err != nil {
			return err
		}
	}
	cfg.Image = ident.PartSet(0).Set(image)
	p.core, p.epoch, p.timerAt = mem.New(cfg), 0, 0
	p.anything.Store(false)
	p.refusing = false
	return nil
}

// HandlePages implements link.PagesHandler on the peer's reader thread.
func (p *plane) HandlePages(_ ident.Part, _ ident.Epoch, items *wire.PageItems) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	now := bootMicros()
	if !p.guard.mayActAt(now) {
		p.refusedLapsed.Add(1)
		return nil
	}
	defer p.settle()
	p.awake.note(now, 1)
	ev := mem.Event{Kind: mem.EventMessage}
	for {
		body, ok := items.Next(&ev.Msg)
		if !ok {
			return nil
		}
		ev.Body = body
		p.step(now, ev, body)
	}
}

// setMembers takes the protocol into an epoch.
func (p *plane) setMembers(m wire.WorkerMembers) error {
	var set ident.PartSet
	for _, member := range m.Members {
		set = set.Set(member.Part)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// One lock over both: no message of the new epoch finds the core in the old one. SetMembers neither waits nor calls back.
	if err := p.pages.SetMembers(m.Epoch, m.Members); err != nil {
		return err
	}
	if m.Epoch <= p.epoch {
		return nil
	}
	p.epoch = m.Epoch
	p.step(bootMicros(), mem.Event{Kind: mem.EventMembers, Epoch: m.Epoch, Members: set, Fresh: m.Fresh || m.Restore, Older: m.Level() < wire.LevelRehoming}, nil)
	p.settle()
	return nil
}

// pin brings a page here with the access and holds it until unpin. It waits as long as that takes, or until the plane closes.
func (p *plane) pin(page ident.PageNo, write bool) (token uint64, held <-chan error) {
	answer := make(chan error, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token++
	token = p.token
	if p.closed {
		answer <- errEnded
		return token, answer
	}
	if p.refusing {
		answer <- errNewLife
		return token, answer
	}
	p.pins[token] = answer
	p.step(bootMicros(), mem.Event{Kind: mem.EventPin, Page: page, Write: write, Token: token}, nil)
	p.settle()
	return token, answer
}

func (p *plane) unpin(page ident.PageNo, token uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pins, token)
	if p.closed || p.refusing {
		return
	}
	p.step(bootMicros(), mem.Event{Kind: mem.EventUnpin, Page: page, Token: token}, nil)
	p.settle()
}

// answerPin requires mu.
func (p *plane) answerPin(token uint64, err error) {
	if answer, ok := p.pins[token]; ok {
		delete(p.pins, token)
		answer <- err
	}
}

// close ends the protocol at this part: nothing is stepped any more, devices that wait for pages give up.
func (p *plane) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.timer.Stop()
	for token, answer := range p.pins {
		delete(p.pins, token)
		answer <- errEnded
	}
}

// raisePriority gives the calling, locked thread the priority of those that serve pages. Without the privilege it stays as it is.
func raisePriority() { _ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), pageThreadNice) }
