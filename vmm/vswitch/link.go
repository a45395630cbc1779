package vswitch

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

// link is the way to one peer.
type link struct {
	port   *Port
	peer   Peer
	ctx    context.Context // ends with the link
	cancel context.CancelFunc
	waits  chan []byte

	mu   sync.Mutex // protects conn
	conn net.Conn   // the one in use, nil if there is none
}

func newLink(p *Port, peer Peer) *link {
	l := &link{port: p, peer: peer, waits: make(chan []byte, maxQueued)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

func (l *link) is(peer Peer) bool {
	return l.peer.Addr == peer.Addr && bytes.Equal(l.peer.Key, peer.Key)
}

func (l *link) close() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
}

// queue adds a frame for the peer, if there is room.
func (l *link) queue(frame []byte) {
	select {
	case l.waits <- frame:
	default:
		l.port.counts.dropped.Add(1)
	}
}

// dialer keeps a connection to the peer until the link is closed.
func (l *link) dialer() {
	defer l.port.running.Done()
	pause := redialFirst
	for l.ctx.Err() == nil {
		began := time.Now()
		if conn, err := l.port.dial(l.peer.Addr); err == nil {
			l.serve(conn, nil)
		}
		if time.Since(began) > redialMost {
			pause = redialFirst
		}
		select {
		case <-time.After(pause):
		case <-l.ctx.Done():
		}
		pause = min(2*pause, redialMost)
	}
}

// serve sends and receives on a connection until it breaks. greeting is what a peer that dialed has said, nil if this end dialed.
func (l *link) serve(conn net.Conn, greeting *hello) {
	defer conn.Close()
	l.use(conn)
	s, err := handshake(conn, l, greeting)
	if err != nil || l.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer conn.Close() // ends the reader
		l.write(ctx, s)
	}()
	for {
		frame, err := s.open()
		if err != nil {
			break
		}
		if len(frame) > 0 { // an empty one says that the peer knows the key
			l.port.receive(l, frame)
		}
	}
	cancel()
	conn.Close()
	<-written
}

// use makes conn the link's connection; the one before ends.
func (l *link) use(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
	l.conn = conn
	if l.ctx.Err() != nil {
		conn.Close()
	}
}

// write sends what waits. Frames that waited while there was no connection go first: they may be old, as on any network.
func (l *link) write(ctx context.Context, s *sealed) {
	if s.seal(nil) != nil || s.flush() != nil {
		return
	}
	for {
		select {
		case frame := <-l.waits:
			if s.seal(frame) != nil {
				return
			}
			l.port.counts.sent.Add(1)
			if len(l.waits) == 0 && s.flush() != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
