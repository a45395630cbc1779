package link

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/futex"
	"github.com/cellvisor/cellvisor/wire"
)

// DeviceRequest is a device request from a peer.
type DeviceRequest struct {
	Kind    wire.DeviceKind
	OneWay  bool   // Reply does nothing
	Payload []byte // valid until HandleDevice returns

	id    uint64
	epoch ident.Epoch
	conn  *pageConn
}

// Reply answers the request. It never blocks. It may be called at most once, from any thread, even after the peer has gone.
func (r DeviceRequest) Reply(status wire.DeviceStatus, payload []byte) {
	if !r.OneWay && r.conn != nil {
		r.conn.sendDevice(r.epoch, wire.DeviceMsg{ID: r.id, Kind: r.Kind, Reply: true, Status: status, Payload: payload})
	}
}

// Request asks a peer's device service and waits for the answer, until the deadline and no longer. While the peer is a member that is
// not connected yet, it waits for the connection. It fails at once when the peer is removed (ErrPeerGone), when the connection breaks
// after the request was sent (ErrReset) and on Close (ErrClosed). For vCPU threads; never call it from a PagesHandler.
func (p *Pages) Request(to ident.Part, epoch ident.Epoch, kind wire.DeviceKind, payload []byte, deadline time.Time) ([]byte, wire.DeviceStatus, error) {
	c, err := p.connected(to, deadline)
	if err != nil {
		return nil, 0, p.requestFailed(to, kind, err)
	}
	return p.ask(c, to, epoch, kind, payload).Answer(deadline)
}

func (p *Pages) requestFailed(to ident.Part, kind wire.DeviceKind, err error) error {
	return fmt.Errorf("link: VM %d: device request %d to %s: %w", p.cfg.VM, kind, to, err)
}

// Question is a request on its way. It belongs to one goroutine, which calls Answer once.
type Question struct {
	plane *Pages
	to    ident.Part
	kind  wire.DeviceKind
	conn  *pageConn
	id    uint64
	wait  *replyWait // nil: it was not sent
}

// Ask sends a request without waiting for its answer; nil if the peer is not connected.
func (p *Pages) Ask(to ident.Part, epoch ident.Epoch, kind wire.DeviceKind, payload []byte) *Question {
	if to >= ident.MaxParts {
		return nil
	}
	c := p.conns[to].Load()
	if c == nil {
		return nil
	}
	return p.ask(c, to, epoch, kind, payload)
}

func (p *Pages) ask(c *pageConn, to ident.Part, epoch ident.Epoch, kind wire.DeviceKind, payload []byte) *Question {
	q := &Question{plane: p, to: to, kind: kind, conn: c, id: p.reqID.Add(1), wait: new(replyWait)}
	if !c.expect(q.id, q.wait) {
		q.wait = nil
		return q
	}
	c.sendDevice(epoch, wire.DeviceMsg{ID: q.id, Kind: kind, Payload: payload})
	return q
}

// Answer waits for the answer, as Request does.
func (q *Question) Answer(deadline time.Time) ([]byte, wire.DeviceStatus, error) {
	if q.wait == nil {
		return nil, 0, q.plane.requestFailed(q.to, q.kind, q.conn.whyDead())
	}
	switch q.wait.wait(deadline) {
	case replyCame:
		return q.wait.reply.Payload, q.wait.reply.Status, nil
	case replyLost:
		return nil, 0, q.plane.requestFailed(q.to, q.kind, q.conn.whyDead())
	}
	// The reader or kill may take the request at the last moment, and is about to end the wait then.
	if !q.conn.forget(q.id) && q.wait.wait(time.Now().Add(time.Second)) == replyCame {
		return q.wait.reply.Payload, q.wait.reply.Status, nil
	}
	return nil, 0, q.plane.requestFailed(q.to, q.kind, ErrDeadline)
}

// replyWait is one thread's wait for one reply. It sleeps on a futex, not on a channel: the waiter is a vCPU's goroutine, locked to its
// thread, and the scheduler would wake a thread to find that another one must run it. So the reader wakes the right one at once.
type replyWait struct {
	state atomic.Uint32 // replyPending, then one of the others
	reply wire.DeviceMsg
}

const (
	replyPending = iota
	replyCame
	replyLost
)

// end ends the wait.
func (w *replyWait) end(state uint32) {
	w.state.Store(state)
	futex.Wake(&w.state)
}

// wait returns how the wait ended, or replyPending after the deadline.
func (w *replyWait) wait(deadline time.Time) uint32 {
	for {
		if s := w.state.Load(); s != replyPending {
			return s
		}
		left := time.Until(deadline)
		if left <= 0 {
			return replyPending
		}
		futex.Wait(&w.state, replyPending, left)
	}
}

// expect registers a wait for a reply; it returns false when the connection is dead.
func (c *pageConn) expect(id uint64, w *replyWait) bool {
	c.reqMu.Lock()
	defer c.reqMu.Unlock()
	if c.replies == nil {
		return false
	}
	c.replies[id] = w
	return true
}

// forget gives up a wait. It returns false if somebody else has taken it in hand.
func (c *pageConn) forget(id uint64) bool {
	c.reqMu.Lock()
	defer c.reqMu.Unlock()
	_, open := c.replies[id]
	delete(c.replies, id)
	return open
}

// loseReplies ends all waits, and those to come. The connection is dead.
func (c *pageConn) loseReplies() {
	c.reqMu.Lock()
	open := c.replies
	c.replies = nil
	c.reqMu.Unlock()
	for _, w := range open {
		w.end(replyLost)
	}
}

// whyDead maps the reason of a dead connection to the errors that Request promises.
func (c *pageConn) whyDead() error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	switch c.killed {
	case ErrPeerGone, ErrClosed:
		return c.killed
	}
	return fmt.Errorf("%w: %w", ErrReset, c.killed)
}

// connected returns the connection to a member, for which it waits until the deadline.
func (p *Pages) connected(to ident.Part, deadline time.Time) (*pageConn, error) {
	if to >= ident.MaxParts {
		return nil, ErrPeerGone
	}
	if c := p.conns[to].Load(); c != nil {
		return c, nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		p.mu.Lock()
		closed, m, changed, c := p.closed, p.members[to], p.changed, p.conns[to].Load()
		p.mu.Unlock()
		switch {
		case c != nil:
			return c, nil
		case closed:
			return nil, ErrClosed
		case m == nil:
			return nil, ErrPeerGone
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, fmt.Errorf("not connected: %w", ErrDeadline)
		}
	}
}

// Notify sends a device request that wants no answer. It never blocks; it returns false if the peer is not connected.
func (p *Pages) Notify(to ident.Part, epoch ident.Epoch, kind wire.DeviceKind, payload []byte) bool {
	if to >= ident.MaxParts {
		return false
	}
	c := p.conns[to].Load()
	return c != nil && c.sendDevice(epoch, wire.DeviceMsg{ID: p.reqID.Add(1), Kind: kind, OneWay: true, Payload: payload})
}

func (c *pageConn) sendDevice(epoch ident.Epoch, m wire.DeviceMsg) bool {
	room := deviceRooms.Get().(*[]byte)
	buf := wire.AppendDevice((*room)[:wire.FrameHeaderBytes], m)
	wire.PutFrameHeader(buf, wire.FrameHeader{Type: wire.FrameDevice, VM: c.plane.cfg.VM, Epoch: epoch, From: c.plane.cfg.Self,
		Length: uint32(len(buf) - wire.FrameHeaderBytes)})
	ok := c.send(buf) // which keeps nothing of it
	*room = buf
	deviceRooms.Put(room)
	return ok
}

// deviceRooms are where device frames are put together.
var deviceRooms = sync.Pool{New: func() any {
	room := make([]byte, wire.FrameHeaderBytes, 512)
	return &room
}}

// handleDevice deals with a device frame: a reply to one of our requests, whatever the epoch, or a request of the current epoch.
func (c *pageConn) handleDevice(epoch ident.Epoch, m wire.DeviceMsg) {
	p := c.plane
	if m.Reply {
		m.Payload = append([]byte(nil), m.Payload...)
		c.reqMu.Lock()
		w := c.replies[m.ID]
		delete(c.replies, m.ID)
		c.reqMu.Unlock()
		if w != nil {
			w.reply = m
			w.end(replyCame)
		}
		return
	}
	r := DeviceRequest{Kind: m.Kind, OneWay: m.OneWay, Payload: m.Payload, id: m.ID, epoch: epoch, conn: c}
	if epoch != ident.Epoch(p.epoch.Load()) {
		p.count.otherEpoch.Add(1)
		r.Reply(wire.DeviceNotReady, nil)
		return
	}
	p.cfg.Handler.HandleDevice(c.member.part, epoch, r)
}
