package link

import (
	"context"
	"fmt"
	"net"

	"github.com/cellvisor/cellvisor/ident"
)

// The floor under the page plane: a small request and a page for an answer, over the same kind of socket, between the same kind of threads
// (blocking, locked, high priority), with none of the protocol. Benchmarks measure it in the same run as the protocol's own figures
// and give their ratio.

// RawRequestBytes is the size of a request of RawEcho; the reply is one page.
const RawRequestBytes = 64

// RawEcho answers each request of RawRequestBytes with a page. It serves one connection at a time.
type RawEcho struct {
	listener net.Listener
	done     chan struct{}
}

// ListenRawEcho starts a server on a port of the kernel's choice.
func ListenRawEcho(host string) (*RawEcho, error) {
	listener, err := (&net.ListenConfig{Control: tuneSocket}).Listen(background, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("link: raw echo: listen on %s: %w", host, err)
	}
	e := &RawEcho{listener: listener, done: make(chan struct{})}
	go e.serve()
	return e, nil
}

// Addr returns the address that it listens on.
func (e *RawEcho) Addr() string { return e.listener.Addr().String() }

// Close stops accepting and waits for the server's end, which comes when its client, if it has one, has closed.
func (e *RawEcho) Close() error {
	err := e.listener.Close()
	<-e.done
	return err
}

func (e *RawEcho) serve() {
	defer close(e.done)
	servePagesThread()
	request, reply := make([]byte, RawRequestBytes), make([]byte, ident.PageSize)
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			return
		}
		sock, err := detach(conn)
		if err != nil {
			return
		}
		for readFull(sock, request) == nil && sendFull(sock, reply) == nil {
		}
		sock.close()
	}
}

// RawEchoClient asks a RawEcho. It belongs to the thread of the goroutine that dialed it.
type RawEchoClient struct {
	sock    *rawSocket
	request [RawRequestBytes]byte
	reply   [ident.PageSize]byte
}

// DialRawEcho connects to a RawEcho, and locks the calling goroutine to its thread, at the priority of threads that serve pages. The
// goroutine should end after the measurement, and its thread with it.
func DialRawEcho(ctx context.Context, addr string) (*RawEchoClient, error) {
	conn, err := (&net.Dialer{Control: tuneSocket}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("link: raw echo: %w", err)
	}
	sock, err := detach(conn)
	if err != nil {
		return nil, err
	}
	servePagesThread()
	return &RawEchoClient{sock: sock}, nil
}

// Do makes one request and waits for the page.
func (c *RawEchoClient) Do() error {
	if err := sendFull(c.sock, c.request[:]); err != nil {
		return err
	}
	return readFull(c.sock, c.reply[:])
}

// Close closes the connection.
func (c *RawEchoClient) Close() { c.sock.close() }

func readFull(s *rawSocket, buf []byte) error {
	for len(buf) > 0 {
		n, err := s.read(buf)
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

func sendFull(s *rawSocket, buf []byte) error {
	for len(buf) > 0 {
		n, err := s.send(buf)
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}
