package vswitch

import (
	"net"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// maxFresh bounds connections that have not said yet what they want.
const maxFresh = 64

// Listener is where peers reach the ports of one VM.
type Listener struct {
	self     ident.VMID
	listener net.Listener
	fresh    chan struct{}
	running  sync.WaitGroup

	mu    sync.Mutex // protects ports
	ports map[string]*Port
}

// Listen opens a port of the host's kernel's choice.
func Listen(self ident.VMID, host string) (*Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	s := &Listener{self: self, listener: l, fresh: make(chan struct{}, maxFresh), ports: map[string]*Port{}}
	s.running.Add(1)
	go s.accept()
	return s, nil
}

// Addr is where others reach it, host:port.
func (s *Listener) Addr() string { return s.listener.Addr().String() }

// Add makes a port reachable.
func (s *Listener) Add(p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports[p.segment] = p
}

// SetPeers tells the port of a segment who the others are.
func (s *Listener) SetPeers(segment string, peers []Peer) {
	if p := s.port(segment); p != nil {
		p.SetPeers(peers)
	}
}

func (s *Listener) port(segment string) *Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ports[segment]
}

func (s *Listener) accept() {
	defer s.running.Done()
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		select {
		case s.fresh <- struct{}{}:
			go s.greet(conn)
		default:
			conn.Close()
		}
	}
}

func (s *Listener) greet(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(helloWithin))
	h, err := readHello(conn)
	<-s.fresh
	p := s.port(h.segment)
	if err != nil || p == nil || h.to != s.self {
		conn.Close()
		return
	}
	p.accept(conn, h)
}

// Close ends the listening; ports are closed by who made them.
func (s *Listener) Close() error {
	err := s.listener.Close()
	s.running.Wait()
	return err
}
