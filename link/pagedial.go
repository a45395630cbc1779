package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Delays between vain attempts to connect to a member: quick at first, since workers of one VM start together.
const (
	firstRedial = 5 * time.Millisecond
	lastRedial  = 250 * time.Millisecond
)

// dialLoop keeps a connection to a higher part for as long as it is a member.
func (p *Pages) dialLoop(m *member) {
	delay := firstRedial
	for {
		if p.waitUncut(m) != nil {
			return
		}
		p.count.dials.Add(1)
		c, err := p.dial(m)
		if err == nil {
			delay = firstRedial
			select {
			case <-c.gone:
			case <-m.ctx.Done():
				return
			}
			continue
		}
		p.count.dialFailures.Add(1)
		if errors.Is(err, wire.ErrHandshake) || malformed(err) {
			p.count.badHandshakes.Add(1)
		}
		p.cfg.Logf("link: VM %d: connect to %s at %s: %v", p.cfg.VM, m.part, m.addr, err)
		if wait(delay, m.ctx.Done()) != nil {
			return
		}
		delay = min(2*delay, lastRedial)
	}
}

// wait waits for the delay; it returns ErrPeerGone if gone closes first.
func wait(delay time.Duration, gone <-chan struct{}) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-gone:
		return ErrPeerGone
	case <-timer.C:
		return nil
	}
}

// waitUncut waits until the member is not cut off.
func (p *Pages) waitUncut(m *member) error {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if !p.isCut(m.part) && !p.held(m.part) {
			return nil
		}
		select {
		case <-changed:
		case <-m.ctx.Done():
			return ErrPeerGone
		}
	}
}

// DialPages connects to a page plane; the handshake is still to come.
func DialPages(ctx context.Context, addr string) (net.Conn, error) {
	return (&net.Dialer{Control: tuneSocket}).DialContext(ctx, "tcp", addr)
}

// dial makes one attempt to connect. On success the connection is served by a goroutine of its own.
func (p *Pages) dial(m *member) (*pageConn, error) {
	deadline := time.Now().Add(p.cfg.HandshakeTimeout)
	ctx, cancel := context.WithDeadline(m.ctx, deadline)
	defer cancel()
	conn, err := p.cfg.Dial(ctx, m.addr)
	if err != nil {
		return nil, err
	}
	endWatch := context.AfterFunc(ctx, func() { conn.Close() })
	var keys *session
	wrapped, err := wrapConn(p.cfg.Wrap, conn, true)
	if err == nil {
		keys, err = p.greet(true, func(hs *wire.Handshake) error {
			_, err := offer(wrapped, pageHello{}, hs, hs.Hello(m.server, m.part), deadline)
			return err
		})
	}
	if !endWatch() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		wrapped.Close()
		return nil, err
	}
	return p.install(m, conn, wrapped, keys)
}

// greet runs one side of a handshake and returns the keys of the connection, nil if it is not encrypted.
func (p *Pages) greet(dialer bool, shake func(*wire.Handshake) error) (*session, error) {
	own, nonce, err := newEphemeral()
	if err != nil {
		return nil, err
	}
	hs := wire.NewHandshake(p.identity(), p.cfg.Secret, nonce)
	hs.Seal = p.cfg.Seal
	if err := shake(hs); err != nil {
		return nil, err
	}
	return own.session(hs, dialer)
}

func (p *Pages) identity() wire.Identity {
	return wire.Identity{
		Plane: wire.PlanePages, Cluster: p.cfg.ClusterID, Server: p.cfg.Server, VM: p.cfg.VM, Part: p.cfg.Self,
		Epoch: ident.Epoch(p.epoch.Load()),
	}
}

// enterFresh registers a connection so that Close can end its handshake; after Close it closes the connection.
func (p *Pages) enterFresh(conn net.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return ErrClosed
	}
	p.fresh[conn] = struct{}{}
	return nil
}

func (p *Pages) leaveFresh(conn net.Conn) {
	p.mu.Lock()
	delete(p.fresh, conn)
	p.mu.Unlock()
}

// acceptLoop takes incoming connections until the listener is closed.
func (p *Pages) acceptLoop() {
	slots := make(chan struct{}, maxFreshConns)
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			select {
			case <-p.done:
				return
			default:
			}
			// The process is out of descriptors, or the like: others may free some.
			p.cfg.Logf("link: VM %d: accept: %v", p.cfg.VM, err)
			if wait(lastRedial, p.done) != nil {
				return
			}
			continue
		}
		p.count.accepts.Add(1)
		select {
		case slots <- struct{}{}:
			p.running.Go(func() {
				p.accept(conn)
				<-slots
			})
		default:
			p.count.badHandshakes.Add(1)
			conn.Close()
		}
	}
}

// accept runs the handshake of an incoming connection and, if the other side is a member, has it served.
func (p *Pages) accept(conn net.Conn) {
	if p.enterFresh(conn) != nil {
		return
	}
	defer p.leaveFresh(conn)
	deadline := time.Now().Add(p.cfg.HandshakeTimeout)
	var m *member
	var keys *session
	wrapped, err := wrapConn(p.cfg.Wrap, conn, false)
	if err == nil {
		keys, err = p.greet(false, func(hs *wire.Handshake) error {
			_, err := admit(wrapped, pageHello{}, hs, deadline, func(who wire.Identity) error {
				var err error
				m, err = p.mayEnter(who, deadline)
				return err
			})
			return err
		})
	}
	if err == nil {
		_, err = p.install(m, conn, wrapped, keys)
	}
	if err != nil {
		wrapped.Close()
		if !errors.Is(err, errNotMember) && !errors.Is(err, ErrClosed) {
			p.count.badHandshakes.Add(1)
		}
		p.cfg.Logf("link: VM %d: connection from %s refused: %v", p.cfg.VM, conn.RemoteAddr(), err)
	}
}

var errNotMember = errors.New("not a member of the VM in this epoch")

// mayEnter decides on a dialer that has proved that it knows the VM's secret. A dialer of a later epoch waits until this side has
// taken that epoch too: so nothing that it sends once it is let in is refused for its epoch.
func (p *Pages) mayEnter(who wire.Identity, deadline time.Time) (*member, error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		p.mu.Lock()
		m, changed, closed := p.members[who.Part], p.changed, p.closed
		late := uint64(who.Epoch) > p.epoch.Load()
		p.mu.Unlock()
		switch {
		case closed:
			return nil, ErrClosed
		case late || p.isCut(who.Part) || p.held(who.Part):
		case m == nil || m.server != who.Server || who.Part >= p.cfg.Self:
			return nil, fmt.Errorf("link: %s of server %d: %w", who.Part, who.Server, errNotMember)
		default:
			return m, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, fmt.Errorf("link: %s is in epoch %d, this side is not: %w", who.Part, who.Epoch, errNotMember)
		}
	}
}

// install makes an established connection the one to its member, in place of an older one, and starts to serve it.
func (p *Pages) install(m *member, conn, wrapped net.Conn, keys *session) (*pageConn, error) {
	var sock socket = wrappedSocket{wrapped}
	if wrapped == conn {
		raw, err := detach(conn)
		if err != nil {
			return nil, err
		}
		sock = raw
	}
	c := newPageConn(p, m, sock)
	if keys != nil {
		c.sock, c.sealer = newSealedSocket(sock, keys.in), &sealer{key: keys.out}
	}
	for {
		p.mu.Lock()
		old := p.conns[m.part].Load()
		switch {
		case p.closed || p.members[m.part] != m:
			p.mu.Unlock()
			sock.shutdown()
			sock.close()
			return nil, fmt.Errorf("link: %s: %w", m.part, errNotMember)
		case old == nil:
			p.conns[m.part].Store(c)
			p.running.Go(c.serve)
			p.noteChange()
			p.mu.Unlock()
			return c, nil
		}
		p.mu.Unlock()
		// The dialer knows better than we do that the older connection is of no use. Its end is reported before the new one's start.
		old.kill(errReplaced)
		<-old.gone
	}
}

// retire takes a dead connection out of use, and reports it if its member is still one.
func (p *Pages) retire(c *pageConn) {
	part := c.member.part
	p.mu.Lock()
	current := p.conns[part].CompareAndSwap(c, nil)
	if current {
		p.noteChange()
	}
	p.mu.Unlock()
	if current {
		p.count.resets.Add(1)
		p.cfg.Handler.PeerDown(part, true)
	}
}
