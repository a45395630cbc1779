package vswitch

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

const (
	macBytes = 6
	// maxFrame is an Ethernet frame with a VLAN tag.
	maxFrame = 1518
	// minFrame is an Ethernet header: destination, source, type.
	minFrame = 14
	// maxLearned bounds the addresses that a port remembers; beyond it, one that was learned is forgotten.
	maxLearned = 1024
	// maxQueued bounds the frames that wait for one peer.
	maxQueued = 512

	redialFirst = 50 * time.Millisecond
	redialMost  = time.Second
)

// Peer is another port of the segment.
type Peer struct {
	VM   ident.VMID
	Addr string // host:port of its worker's listener
	Key  []byte // of the pair
}

// Port is one VM's place on one segment. Its methods may be called from any thread.
type Port struct {
	self    ident.VMID
	segment string
	deliver func(frame []byte) bool // the guest's side; it keeps the frame
	dial    func(addr string) (net.Conn, error)

	counts portCounts

	mu      sync.Mutex // protects everything below
	closed  bool
	peers   map[ident.VMID]*link
	learned map[[macBytes]byte]*link
	running sync.WaitGroup
}

type portCounts struct{ sent, received, dropped atomic.Uint64 }

// Counters count frames since the port was made.
type Counters struct {
	Sent     uint64 // copies to peers
	Received uint64
	Dropped  uint64 // for want of room, or malformed
}

// NewPort makes a port without peers. deliver takes frames for the guest; it must not block, and keeps what it gets.
func NewPort(self ident.VMID, segment string, deliver func([]byte) bool) *Port {
	return &Port{
		self: self, segment: segment, deliver: deliver, peers: map[ident.VMID]*link{}, learned: map[[macBytes]byte]*link{},
		dial: func(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, redialMost) },
	}
}

// Counters returns the port's counters.
func (p *Port) Counters() Counters {
	return Counters{p.counts.sent.Load(), p.counts.received.Load(), p.counts.dropped.Load()}
}

// SetPeers says which other ports there are now. One that is not among them is cut off. One that is reached elsewhere from now on, as its VM has moved, gets
// what waits for it there.
func (p *Port) SetPeers(peers []Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	wanted := map[ident.VMID]Peer{}
	for _, peer := range peers {
		if peer.VM != p.self {
			wanted[peer.VM] = peer
		}
	}
	for vm, l := range p.peers {
		if _, ok := wanted[vm]; !ok {
			p.drop(l)
		}
	}
	for vm, peer := range wanted {
		before := p.peers[vm]
		if before != nil && before.is(peer) {
			continue
		}
		l := newLink(p, peer)
		p.peers[vm] = l
		if before != nil {
			p.replace(before, l)
		}
		if p.self < vm {
			p.running.Add(1)
			go l.dialer()
		}
	}
}

// drop forgets a peer and all that was learned from it. It requires mu.
func (p *Port) drop(l *link) {
	delete(p.peers, l.peer.VM)
	for mac, from := range p.learned {
		if from == l {
			delete(p.learned, mac)
		}
	}
	l.close()
}

// replace closes a link whose peer is reached by another one from now on. It requires mu, as all do who queue frames.
func (p *Port) replace(before, l *link) {
	for mac, from := range p.learned {
		if from == before {
			p.learned[mac] = l
		}
	}
	before.close()
	for {
		select {
		case frame := <-before.waits:
			l.queue(frame)
		default:
			return
		}
	}
}

// Send takes a frame from the guest; it does not keep it.
func (p *Port) Send(frame []byte) {
	if len(frame) < minFrame || len(frame) > maxFrame {
		p.counts.dropped.Add(1)
		return
	}
	kept := append([]byte(nil), frame...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.learned[[macBytes]byte(frame)]; l != nil {
		l.queue(kept)
		return
	}
	for _, l := range p.peers {
		l.queue(kept)
	}
}

// receive takes a frame of a peer, which is this port's from now on.
func (p *Port) receive(l *link, frame []byte) {
	if len(frame) < minFrame || len(frame) > maxFrame {
		p.counts.dropped.Add(1)
		return
	}
	p.counts.received.Add(1)
	from := [macBytes]byte(frame[macBytes:])
	if from[0]&1 == 0 { // a group's address sends nothing
		p.learn(from, l)
	}
	if !p.deliver(frame) {
		p.counts.dropped.Add(1)
	}
}

func (p *Port) learn(mac [macBytes]byte, l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.learned[mac] == l || p.peers[l.peer.VM] != l {
		return
	}
	if _, known := p.learned[mac]; !known && len(p.learned) >= maxLearned {
		for old := range p.learned {
			delete(p.learned, old)
			break
		}
	}
	p.learned[mac] = l
}

// accept takes a connection that a peer has dialed.
func (p *Port) accept(conn net.Conn, hello hello) {
	p.mu.Lock()
	l := p.peers[hello.from]
	if p.closed || l == nil || p.self < hello.from {
		p.mu.Unlock()
		conn.Close()
		return
	}
	p.running.Add(1)
	p.mu.Unlock()
	defer p.running.Done()
	l.serve(conn, &hello)
}

// Close cuts the port off.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	for _, l := range p.peers {
		p.drop(l)
	}
	p.mu.Unlock()
	p.running.Wait()
	return nil
}
