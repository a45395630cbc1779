package link

import (
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
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
	fail := func(err error) ([]byte, wire.DeviceStatus, error) {
		return nil, 0, fmt.Errorf("link: VM %d: device request %d to %s: %w", p.cfg.VM, kind, to, err)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	c, err := p.connected(to, timer.C)
	if err != nil {
		return fail(err)
	}
	id, reply := p.reqID.Add(1), make(chan wire.DeviceMsg, 1)
	c.reqMu.Lock()
	c.replies[id] = reply
	c.reqMu.Unlock()
	defer func() {
		c.reqMu.Lock()
		delete(c.replies, id)
		c.reqMu.Unlock()
	}()
	c.sendDevice(epoch, wire.DeviceMsg{ID: id, Kind: kind, Payload: payload})
	select {
	case m := <-reply:
		return m.Payload, m.Status, nil
	case <-timer.C:
		return fail(ErrDeadline)
	case <-c.dead:
	}
	select {
	case m := <-reply: // it came before the end did
		return m.Payload, m.Status, nil
	default:
		return fail(c.whyDead())
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

// connected returns the connection to a member, for which it waits until the timer fires.
func (p *Pages) connected(to ident.Part, timeout <-chan time.Time) (*pageConn, error) {
	if to >= ident.MaxParts {
		return nil, ErrPeerGone
	}
	for {
		if c := p.conns[to].Load(); c != nil {
			return c, nil
		}
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
		case <-timeout:
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
	var room [256]byte
	return c.sendFrame(wire.FrameDevice, epoch, wire.AppendDevice(room[:0], m))
}

// handleDevice deals with a device frame: a reply to one of our requests, whatever the epoch, or a request of the current epoch.
func (c *pageConn) handleDevice(epoch ident.Epoch, m wire.DeviceMsg) {
	p := c.plane
	if m.Reply {
		m.Payload = append([]byte(nil), m.Payload...)
		c.reqMu.Lock()
		reply := c.replies[m.ID]
		delete(c.replies, m.ID)
		c.reqMu.Unlock()
		if reply != nil {
			reply <- m // there is room for the one reply
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
