package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// acceptLoop takes incoming connections until the listener is closed.
func (p *Peers) acceptLoop() {
	fresh := make(chan struct{}, p.cfg.MaxUnauthenticated)
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			// The process is out of descriptors, or the like: others may free some.
			p.cfg.Logf("link: monitor plane: accept: %v", err)
			if wait(lastRedial, p.ctx.Done()) != nil {
				return
			}
			continue
		}
		p.count.accepts.Add(1)
		select {
		case fresh <- struct{}{}:
			p.running.Go(func() { p.accept(conn, func() { <-fresh }) })
		default:
			p.count.tooMany.Add(1)
			conn.Close()
		}
	}
}

// accept runs the handshake of an incoming connection and serves it. known is called once the handshake is over.
func (p *Peers) accept(conn net.Conn, known func()) {
	if p.hold(conn) != nil {
		known()
		conn.Close()
		return
	}
	defer p.release(conn)
	wrapped, err := wrapConn(p.cfg.Wrap, conn, false)
	var who wire.Identity
	if err == nil {
		hs := wire.NewHandshake(p.identity(), p.cfg.Secret, newNonce())
		who, err = admit(wrapped, monitorHello{}, hs, time.Now().Add(p.cfg.HandshakeTimeout),
			func(who wire.Identity) error { return p.mayEnter(wrapped, who) })
	}
	known()
	if err != nil {
		if !errors.Is(err, errCut) && p.ctx.Err() == nil {
			p.count.badHandshakes.Add(1)
			p.cfg.Logf("link: monitor plane: connection from %s refused: %v", conn.RemoteAddr(), err)
		}
		return
	}
	err = p.receive(wrapped, who)
	if p.ctx.Err() != nil || errors.Is(err, errServed) {
		return
	}
	if malformed(err) {
		p.count.badFrames.Add(1)
		p.cfg.Logf("link: monitor plane: connection from server %d at %s dropped: %v", who.Server, conn.RemoteAddr(), err)
		return
	}
	p.down(who.Server, connReset(err))
}

var errCut = errors.New("cut off")

// mayEnter decides on a dialer that has proved that it knows the cluster's secret. Whether it is in the view is for the handler to
// say, envelope by envelope: a server that wants to join is not, and has no id yet.
func (p *Peers) mayEnter(conn net.Conn, who wire.Identity) error {
	if err := p.vouch(conn, who.Server); err != nil {
		return err
	}
	if p.cfg.Self == 0 {
		return fmt.Errorf("link: this server has not joined yet: %w", wire.ErrHandshake)
	}
	if who.Server == p.cfg.Self {
		return fmt.Errorf("link: a server with our own id %d: %w", who.Server, wire.ErrHandshake)
	}
	if is, _ := p.cut(who.Server); is {
		return errCut
	}
	return nil
}

// vouch asks whether the other side is who it says.
func (p *Peers) vouch(conn net.Conn, who ident.ServerID) error {
	if p.cfg.Vouch == nil {
		return nil
	}
	if err := p.cfg.Vouch(conn, who); err != nil {
		return fmt.Errorf("link: server %d: %w: %w", who, err, wire.ErrHandshake)
	}
	return nil
}

type connKey struct{}

// RequestConn returns the connection, as Wrap made it, that a request came on, from the context of HandleRequest.
func RequestConn(ctx context.Context) net.Conn {
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	return conn
}

// errServed ends the connection of a Call. However it ended, that says nothing about the server that called.
var errServed = errors.New("served")

// receive handles envelopes until the connection ends.
func (p *Peers) receive(conn net.Conn, who wire.Identity) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		e, err := wire.ReadEnvelope(r, wire.EnvelopeBodyLimit)
		if err != nil {
			return err
		}
		if e.Cluster != p.cfg.ClusterID || e.Sender != who.Server {
			return fmt.Errorf("link: server %d sends for server %d of cluster %q: %w", who.Server, e.Sender, e.Cluster, wire.ErrBadFrame)
		}
		if is, _ := p.cut(who.Server); is {
			p.count.dropped.Add(1)
			continue
		}
		p.count.received.Add(1)
		p.count.receivedBytes.Add(uint64(len(e.Body)))
		if who.Server == 0 && e.Kind != wire.EnvelopeJoin {
			return fmt.Errorf("link: a server without an id sends an envelope of kind %d: %w", e.Kind, wire.ErrBadFrame)
		}
		switch e.Kind {
		case wire.EnvelopePing:
		case wire.EnvelopeRaft, wire.EnvelopeMonitor, wire.EnvelopeGang, wire.EnvelopeLoad, wire.EnvelopeAudit, wire.EnvelopeLend:
			if err := p.cfg.Handler.HandleEnvelope(e); err != nil {
				p.count.refused.Add(1)
				p.cfg.Logf("link: an envelope of server %d is refused: %v", who.Server, err)
			}
		case wire.EnvelopeJoin, wire.EnvelopeRequest:
			if err := p.answer(conn, r, e); err != nil {
				p.cfg.Logf("link: a request of server %d was not answered: %v", who.Server, err)
			}
			return errServed
		default:
			return fmt.Errorf("link: server %d sends an envelope of kind %d: %w", who.Server, e.Kind, wire.ErrBadFrame)
		}
	}
}

// answer serves the one request of a connection. The handler's context ends when the requester goes away.
func (p *Peers) answer(conn net.Conn, r io.Reader, e wire.Envelope) error {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	p.running.Go(func() {
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1)) // until the requester closes, or we do
		cancel()
	})
	kind, body, err := p.cfg.Handler.HandleRequest(context.WithValue(ctx, connKey{}, conn), e)
	if err == nil && len(body) > wire.EnvelopeBodyLimit {
		err = fmt.Errorf("the answer has %d bytes: %w", len(body), wire.ErrTooLarge)
	}
	if err != nil {
		p.count.refused.Add(1)
		text := err.Error()
		kind, body = wire.EnvelopeError, []byte(text[:min(len(text), errorTextLimit)])
	}
	frame, err := wire.AppendEnvelope(nil, p.stamped(kind, body))
	if err != nil {
		return err
	}
	return writeWhole(conn, frame)
}

// errorTextLimit bounds the text of an error sent to a requester, in bytes.
const errorTextLimit = 4 << 10
