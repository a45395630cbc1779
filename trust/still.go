package trust

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// Connections live for months, certificates may end before: what a handshake found good is looked at again while a connection is used.

// stillEvery is how often that is.
const stillEvery = time.Second

// Still says whether the certificate at the other end of a connection, which was good at its handshake, is one no longer: it has expired, or was
// revoked.
func (c *Credentials) Still(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return refusal("none was shown")
	}
	leaf := s.PeerCertificates[0]
	c.now()
	c.mu.Lock()
	serial := leaf.SerialNumber.Text(16)
	at, taken := c.revoked[serial]
	if !taken {
		at, taken = c.agreed[serial]
	}
	c.mu.Unlock()
	id, _ := IdentityOf(leaf)
	switch {
	case taken:
		return fmt.Errorf("%w: that of %s: %w at %s", ErrRefused, id, ErrRevoked, at.Format(time.RFC3339))
	case c.clock().After(leaf.NotAfter):
		return refusal("that of %s expired at %s", id, leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// Trusted says why others would refuse the holder's own certificate: its authority is not among those that are trusted, or it was revoked.
func (c *Credentials) Trusted() error {
	cert, trusted, _ := c.now()
	if _, err := verify(cert.Leaf, trusted, x509.ExtKeyUsageAny, c.clock()); err != nil {
		return err
	}
	return c.Still(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}})
}

// watch looks at a connection's certificate again now and then, from its first use on.
type watch struct {
	keys *Credentials
	next atomic.Int64 // Unix nanoseconds
}

func (w *watch) check(state func() tls.ConnectionState) error {
	now, next := time.Now().UnixNano(), w.next.Load()
	if now < next || !w.next.CompareAndSwap(next, now+int64(stillEvery)) || next == 0 {
		return nil
	}
	if s := state(); s.HandshakeComplete {
		return w.keys.Still(s)
	}
	return nil
}

// Watched closes a TLS connection once the certificate at its other end is good no longer; ended is told why.
func (c *Credentials) Watched(conn net.Conn, ended func(error)) net.Conn {
	t, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return conn
	}
	return &watchedConn{Conn: conn, state: t.ConnectionState, watch: watch{keys: c}, ended: ended}
}

type watchedConn struct {
	net.Conn
	state func() tls.ConnectionState
	watch watch
	ended func(error)
}

func (c *watchedConn) check() error {
	err := c.watch.check(c.state)
	if err != nil {
		c.Conn.Close()
		c.ended(err)
	}
	return err
}

// Read implements net.Conn.
func (c *watchedConn) Read(b []byte) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// Write implements net.Conn.
func (c *watchedConn) Write(b []byte) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
