package cases

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/wire"
)

// node is one part's memory under the real page protocol, with channels for a network: what worker's plane is to a worker.
type node struct {
	t     *testing.T
	part  ident.Part
	ram   *ram.RAM
	fd    *uffd.FD
	inbox chan pageMessage
	peers map[ident.Part]*node
	start time.Time
	done  chan struct{}

	mu    sync.Mutex // protects everything below
	core  *mem.Core
	timer *time.Timer
	pins  map[uint64]chan error
	token uint64
	ended bool
}

type pageMessage struct {
	msg  wire.PageMsg
	body []byte
}

// The bed is hundreds of times slower than a machine, so that a page that was granted is kept for longer, or nobody would ever use it.
const bedWindow = 10 * ident.Millisecond

// newNodes makes the memory of a VM over n parts, all of which is part 0's at the start.
func newNodes(t *testing.T, n int, size ident.Bytes) []*node {
	t.Helper()
	var nodes []*node
	for i := range n {
		memory, err := ram.New(size)
		if err != nil {
			t.Fatal(err)
		}
		nd := &node{t: t, part: ident.Part(i), ram: memory, inbox: make(chan pageMessage, 1<<16), peers: map[ident.Part]*node{}, start: time.Now(), done: make(chan struct{}), pins: map[uint64]chan error{}}
		nd.core = mem.New(mem.Config{Self: nd.part, Pages: memory.Pages(), Window: bedWindow, Retry: 2 * ident.Second, RetryMax: 8 * ident.Second, Deadline: 30 * ident.Second, ReadAhead: mem.DefaultReadAhead, Image: ident.PartSet(0).Set(0)})
		if nd.fd, err = uffd.Open(memory.GuestAddr(), memory.Size()); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, nd)
	}
	for _, a := range nodes {
		for _, b := range nodes {
			a.peers[b.part] = b
		}
	}
	return nodes
}

// run starts the protocol, once part 0's memory holds the image.
func run(nodes []*node) {
	var members ident.PartSet
	for _, n := range nodes {
		members = members.Set(n.part)
	}
	for _, n := range nodes {
		n.timer = time.AfterFunc(time.Hour, n.tick)
	}
	for _, n := range nodes {
		n.event(mem.Event{Kind: mem.EventMembers, Epoch: 1, Members: members, Fresh: true}, nil)
		go n.serveFaults()
		go n.serveInbox()
	}
}

func (n *node) now() ident.Micros { return ident.Micros(time.Since(n.start).Microseconds()) + 1 }

// event takes one event through the core and carries out its effects.
func (n *node) event(ev mem.Event, contents []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.step(ev, contents)
}

// step requires mu.
func (n *node) step(ev mem.Event, contents []byte) {
	if n.ended {
		return
	}
	n.core.Step(n.now(), ev)
	effects := n.core.Effects()
	for i := range effects {
		if err := n.execute(&effects[i], contents); err != nil {
			n.t.Errorf("part %d: effect %d on page 0x%x: %v", n.part, effects[i].Kind, effects[i].Page, err)
		}
	}
	if at, ok := n.core.NextDeadline(); ok {
		n.timer.Reset(max(0, time.Duration(at-n.now())*time.Microsecond))
	}
}

func (n *node) execute(e *mem.Effect, contents []byte) error {
	switch e.Kind {
	case mem.EffectSend:
		m := pageMessage{msg: e.Msg, body: append([]byte(nil), e.Body...)}
		m.msg.To = e.To
		if m.msg.Flags&wire.FlagContents != 0 {
			m.body = make([]byte, ident.PageSize)
			if err := n.ram.ReadPage(m.msg.Page, m.body); err != nil {
				return err
			}
		}
		n.peers[e.To].inbox <- m
	case mem.EffectStore:
		return n.ram.WritePage(e.Page, contents)
	case mem.EffectZero:
		return n.ram.ZeroPage(e.Page)
	case mem.EffectMap:
		return n.allow(e)
	case mem.EffectProtect:
		return n.fd.Protect(e.Page, 1, true)
	case mem.EffectRevoke:
		return n.ram.Revoke(e.Page, 1)
	case mem.EffectPinned:
		if answer, ok := n.pins[e.Token]; ok {
			delete(n.pins, e.Token)
			answer <- nil
		}
	case mem.EffectSuspect: // a slow bed
	default:
		return fmt.Errorf("unexpected effect")
	}
	return nil
}

func (n *node) allow(e *mem.Effect) error {
	if e.Upgrade && e.Writable {
		return n.fd.Protect(e.Page, 1, false)
	}
	err := n.fd.Map(e.Page, 1, e.Writable)
	if errors.Is(err, uffd.ErrNoContents) {
		return n.fd.MapZero(e.Page, 1, e.Writable)
	}
	return err
}

func (n *node) tick() { n.event(mem.Event{Kind: mem.EventTick}, nil) }

func (n *node) serveFaults() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
	faults := make([]uffd.Fault, 16)
	for {
		k, err := n.fd.ReadFaults(faults)
		if err != nil {
			return
		}
		for _, f := range faults[:k] {
			n.event(mem.Event{Kind: mem.EventFault, Page: f.Page, Write: f.Write}, nil)
		}
	}
}

func (n *node) serveInbox() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
	for {
		select {
		case m := <-n.inbox:
			n.event(mem.Event{Kind: mem.EventMessage, Msg: m.msg, Body: m.body}, m.body)
		case <-n.done:
			return
		}
	}
}

// hold pins a page while f runs.
func (n *node) hold(page ident.PageNo, write bool, f func() error) error {
	answer := make(chan error, 1)
	n.mu.Lock()
	n.token++
	token := n.token
	n.pins[token] = answer
	n.step(mem.Event{Kind: mem.EventPin, Page: page, Write: write, Token: token}, nil)
	n.mu.Unlock()
	defer n.event(mem.Event{Kind: mem.EventUnpin, Page: page, Token: token}, nil)
	select {
	case err := <-answer:
		if err != nil {
			return err
		}
	case <-n.done:
		return errors.New("ended")
	}
	return f()
}

// eachPage calls f for the pieces of b that lie in one page each.
func eachPage(b []byte, off int64, f func(page ident.PageNo, piece []byte, off int64) error) (int, error) {
	done := 0
	for done < len(b) {
		at := off + int64(done)
		k := min(len(b)-done, int(ident.PageSize-at%ident.PageSize))
		if err := f(ident.PageNo(at>>ident.PageShift), b[done:done+k], at); err != nil {
			return done, err
		}
		done += k
	}
	return done, nil
}

// ReadAt, WriteAt, Load16 and Store16 make a node what devices reach memory by (machine.Backing).
func (n *node) ReadAt(b []byte, off int64) (int, error) {
	return eachPage(b, off, func(page ident.PageNo, piece []byte, at int64) error {
		return n.hold(page, false, func() error { _, err := n.ram.ReadAt(piece, at); return err })
	})
}

func (n *node) WriteAt(b []byte, off int64) (int, error) {
	return eachPage(b, off, func(page ident.PageNo, piece []byte, at int64) error {
		return n.hold(page, true, func() error { _, err := n.ram.WriteAt(piece, at); return err })
	})
}

func (n *node) Load16(off int64) (v uint16, err error) {
	err = n.hold(ident.PageNo(off>>ident.PageShift), false, func() error { v, err = n.ram.Load16(off); return err })
	return v, err
}

func (n *node) Store16(off int64, v uint16) error {
	return n.hold(ident.PageNo(off>>ident.PageShift), true, func() error { return n.ram.Store16(off, v) })
}

// close ends the protocol. vCPUs that wait for a page must have been told to stop; closing the userfaultfd lets them go on, and out.
func (n *node) close() {
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	close(n.done)
	n.fd.Close()
}
