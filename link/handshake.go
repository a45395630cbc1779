package link

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cellvisor/cellvisor/wire"
)

// helloCarrier moves handshake messages over a fresh connection; the planes frame them differently. It must not read past the end of a
// message: what follows belongs to the connection's reader.
type helloCarrier interface {
	writeHello(conn net.Conn, h *wire.Hello) error
	readHello(conn net.Conn) (wire.Hello, error)
}

func newNonce() (n wire.Nonce) {
	rand.Read(n[:]) // crypto/rand.Read never fails: it aborts the process instead
	return n
}

// offer runs the dialer's side of a handshake until the deadline. The result says who the acceptor is.
func offer(conn net.Conn, c helloCarrier, hs *wire.Handshake, hello wire.Hello, deadline time.Time) (wire.Identity, error) {
	if err := conn.SetDeadline(deadline); err != nil {
		return wire.Identity{}, err
	}
	if err := c.writeHello(conn, &hello); err != nil {
		return wire.Identity{}, err
	}
	challenge, err := c.readHello(conn)
	if err != nil {
		return wire.Identity{}, err
	}
	proof, err := hs.Proof(&challenge)
	if err != nil {
		return wire.Identity{}, err
	}
	if err := c.writeHello(conn, &proof); err != nil {
		return wire.Identity{}, err
	}
	accept, err := c.readHello(conn)
	if err != nil {
		return wire.Identity{}, err
	}
	if err := hs.Accepted(&accept); err != nil {
		return wire.Identity{}, err
	}
	return challenge.From, conn.SetDeadline(time.Time{})
}

// admit runs the acceptor's side. Between the dialer's proof and the Accept it asks whether the dialer, whose identity is proven by
// then, may come in; an error is told to the dialer as the reason.
func admit(conn net.Conn, c helloCarrier, hs *wire.Handshake, deadline time.Time, mayEnter func(wire.Identity) error) (wire.Identity, error) {
	if err := conn.SetDeadline(deadline); err != nil {
		return wire.Identity{}, err
	}
	refuse := func(err error) (wire.Identity, error) {
		no := hs.Refuse(err.Error())
		_ = c.writeHello(conn, &no) // a courtesy to whoever reads the other side's log
		return wire.Identity{}, err
	}
	hello, err := c.readHello(conn)
	if err != nil {
		return wire.Identity{}, err
	}
	challenge, err := hs.Challenge(&hello)
	if err != nil {
		return refuse(err)
	}
	if err := c.writeHello(conn, &challenge); err != nil {
		return wire.Identity{}, err
	}
	proof, err := c.readHello(conn)
	if err != nil {
		return wire.Identity{}, err
	}
	accept, err := hs.Accept(&proof)
	if err != nil {
		return refuse(err)
	}
	if proof.From != hello.From {
		return refuse(fmt.Errorf("link: the peer changed its identity during the handshake: %w", wire.ErrHandshake))
	}
	if err := mayEnter(hello.From); err != nil {
		return refuse(err)
	}
	if err := c.writeHello(conn, &accept); err != nil {
		return wire.Identity{}, err
	}
	return hello.From, conn.SetDeadline(time.Time{})
}

// pageHello frames handshake messages as Hello frames of the page plane.
type pageHello struct{}

func (pageHello) writeHello(conn net.Conn, h *wire.Hello) error {
	frame := wire.AppendFrame(nil, wire.FrameHeader{Type: wire.FrameHello, VM: h.From.VM, Epoch: h.From.Epoch, From: h.From.Part},
		wire.AppendHello(nil, h))
	_, err := conn.Write(frame)
	return err
}

func (pageHello) readHello(conn net.Conn) (wire.Hello, error) {
	var buf [wire.FrameHeaderBytes + wire.HelloLimit]byte
	if _, err := io.ReadFull(conn, buf[:wire.FrameHeaderBytes]); err != nil {
		return wire.Hello{}, fmt.Errorf("link: read a handshake message: %w", err)
	}
	head, err := wire.ParseFrameHeader(buf[:wire.FrameHeaderBytes])
	if err != nil {
		return wire.Hello{}, err
	}
	if head.Type != wire.FrameHello || head.Length > wire.HelloLimit {
		return wire.Hello{}, fmt.Errorf("link: a %s frame of %d bytes instead of a handshake: %w", head.Type, head.Length, wire.ErrBadFrame)
	}
	body := buf[wire.FrameHeaderBytes : wire.FrameHeaderBytes+int(head.Length)]
	if _, err := io.ReadFull(conn, body); err != nil {
		return wire.Hello{}, fmt.Errorf("link: read a handshake message: %w", err)
	}
	return wire.ParseHello(body)
}

// monitorHello frames handshake messages as envelopes.
type monitorHello struct{}

func (monitorHello) writeHello(conn net.Conn, h *wire.Hello) error {
	frame, err := wire.AppendEnvelope(nil, &wire.Envelope{
		Cluster: h.From.Cluster, Sender: h.From.Server, Epoch: h.From.Epoch, Kind: wire.EnvelopeHello, Body: wire.AppendHello(nil, h),
	})
	if err != nil {
		return err
	}
	_, err = conn.Write(frame)
	return err
}

func (monitorHello) readHello(conn net.Conn) (wire.Hello, error) {
	e, err := wire.ReadEnvelope(conn, wire.HelloLimit)
	if err != nil {
		return wire.Hello{}, err
	}
	if e.Kind != wire.EnvelopeHello {
		return wire.Hello{}, fmt.Errorf("link: an envelope of kind %d instead of a handshake: %w", e.Kind, wire.ErrBadFrame)
	}
	return wire.ParseHello(e.Body)
}

// malformed tells whether an error is about bytes that no honest peer sends.
func malformed(err error) bool { return errors.Is(err, wire.ErrBadFrame) }
