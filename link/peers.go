package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// PeersHandler is what a serve process does with what arrives on the monitor plane.
type PeersHandler interface {
	// HandleEnvelope takes a raft or monitor envelope. Calls for one peer come one after the other, those for different peers at
	// once; the body is the handler's to keep. An error says that the envelope is refused (another epoch, a server outside the view):
	// it is counted, and the connection stays.
	HandleEnvelope(e wire.Envelope) error

	// HandleRequest takes a join or other request and returns the kind and body of its answer; it may take until ctx ends. With an
	// error the requester's Call fails with that error's text.
	HandleRequest(ctx context.Context, e wire.Envelope) (wire.EnvelopeKind, []byte, error)

	// PeerUp says that our connection to the peer is established.
	PeerUp(id ident.ServerID)

	// PeerDown is a hint: a connection with the peer was closed by the other side, or nothing listens at its address (reset), or it
	// does not answer (not reset). It repeats with each vain attempt. It is not called for peers that SetPeers removed or after
	// Close.
	PeerDown(id ident.ServerID, reset bool)
}

// PeersConfig says who this end of the monitor plane is.
type PeersConfig struct {
	ClusterID  string
	Self       ident.ServerID // 0 before the server has joined: then only Call works, and nobody connects
	Secret     []byte         // of the cluster; both sides of each connection prove that they know it
	ListenAddr string         // "127.0.0.1:0"
	Handler    PeersHandler

	// Stamp returns the incarnation and the view epoch that each outgoing envelope carries. It is called from many goroutines and
	// must not wait for anything.
	Stamp func() (ident.Incarnation, ident.Epoch)

	// Wrap, if set, takes a fresh connection, before the handshake, to put encryption around it.
	Wrap func(conn net.Conn, dialer bool) (net.Conn, error)

	// Vouch, if set, says whether the holder of what Wrap returned may be the server that it has proved to know the secret as; 0 is one
	// that has no number yet. An error ends the connection.
	Vouch func(conn net.Conn, who ident.ServerID) error

	HandshakeTimeout   time.Duration // 0: DefaultHandshakeTimeout
	DialTimeout        time.Duration // 0: DefaultDialTimeout
	QueueBytes         int           // 0: DefaultQueueBytes; per peer, the oldest envelope is dropped beyond it
	MaxUnauthenticated int           // 0: DefaultMaxUnauthenticated; incoming connections beyond it are closed at once
	Logf               func(format string, args ...any)
}

// Defaults of PeersConfig.
const (
	DefaultDialTimeout        = time.Second
	DefaultQueueBytes         = 32 << 20
	DefaultMaxUnauthenticated = 64
)

// Peers is the monitor plane of one server: it listens for other servers, and keeps a connection to each peer that SetPeers names.
//
// Each connection carries envelopes one way, from the side that dialed it; so two servers that dial each other at once never have
// to agree which connection to keep. Only a Call's reply goes the other way. Both directions between two servers are thus two connections,
// and each side learns of the other's end from either.
//
// Lock order: Peers.mu, then peer.mu.
type Peers struct {
	cfg      PeersConfig
	listener net.Listener
	count    peersCounts
	ctx      context.Context // ends with Close
	end      context.CancelFunc
	running  sync.WaitGroup // every goroutine

	mu    sync.Mutex
	peers map[ident.ServerID]*peer    // protected by mu
	conns map[net.Conn]struct{}       // protected by mu; open connections
	cuts  map[ident.ServerID]struct{} // protected by mu
	heal  chan struct{}               // protected by mu; closed and replaced when cuts or impairments change

	impaired map[ident.ServerID]*impaired // protected by mu
}

// ListenPeers starts to listen. The error names the address when it is taken.
func ListenPeers(cfg PeersConfig) (*Peers, error) {
	if cfg.Handler == nil || cfg.Stamp == nil || len(cfg.Secret) == 0 || cfg.ClusterID == "" || len(cfg.ClusterID) > wire.ClusterIDLimit {
		return nil, fmt.Errorf("link: monitor plane of server %d: incomplete configuration", cfg.Self)
	}
	setDefault(&cfg.HandshakeTimeout, DefaultHandshakeTimeout)
	setDefault(&cfg.DialTimeout, DefaultDialTimeout)
	setDefault(&cfg.QueueBytes, DefaultQueueBytes)
	setDefault(&cfg.MaxUnauthenticated, DefaultMaxUnauthenticated)
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		return nil, fmt.Errorf("link: monitor plane: listen on %s: %w", cfg.ListenAddr, err)
	}
	ctx, end := context.WithCancel(background)
	p := &Peers{
		cfg: cfg, listener: listener, ctx: ctx, end: end, heal: make(chan struct{}),
		peers: make(map[ident.ServerID]*peer), conns: make(map[net.Conn]struct{}), cuts: make(map[ident.ServerID]struct{}),
	}
	p.running.Go(p.acceptLoop)
	return p, nil
}

// Addr returns the address that it listens on, "127.0.0.1:34567".
func (p *Peers) Addr() string { return p.listener.Addr().String() }

// SetPeers says which servers to keep connections to, and where they listen, in place of what was said before. Self is ignored.
// Removed peers are disconnected and their queues dropped; a changed address is dialed anew.
func (p *Peers) SetPeers(peers map[ident.ServerID]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	for id, q := range p.peers {
		if addr, ok := peers[id]; !ok || addr != q.addr {
			q.remove()
			delete(p.peers, id)
		}
	}
	for id, addr := range peers {
		if id == p.cfg.Self || p.peers[id] != nil {
			continue
		}
		q := newPeer(p, id, addr)
		p.peers[id] = q
		p.running.Go(q.run)
	}
}

// Send queues an envelope for a peer; it never blocks. It returns false, and counts, if the peer is unknown or the body too large.
// Envelopes arrive in order, at most once, or not at all: a full queue drops its oldest, a reset loses what was under way. The body
// must not be changed after.
func (p *Peers) Send(to ident.ServerID, kind wire.EnvelopeKind, body []byte) bool {
	p.mu.Lock()
	q := p.peers[to]
	p.mu.Unlock()
	if q == nil || len(body) > wire.EnvelopeBodyLimit {
		p.count.dropped.Add(1)
		return false
	}
	q.enqueue(outgoing{kind: kind, body: body})
	return true
}

// stamped returns an envelope from this server.
func (p *Peers) stamped(kind wire.EnvelopeKind, body []byte) *wire.Envelope {
	incarnation, epoch := p.cfg.Stamp()
	return &wire.Envelope{Cluster: p.cfg.ClusterID, Sender: p.cfg.Self, Incarnation: incarnation, Epoch: epoch, Kind: kind, Body: body}
}

// Cut turns a blackhole between this server and a peer on or off: nothing is sent to it, nothing from it is handled, no connection
// with it is made. For tests and drills.
func (p *Peers) Cut(id ident.ServerID, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.cuts[id] = struct{}{}
	} else {
		delete(p.cuts, id)
	}
	close(p.heal)
	p.heal = make(chan struct{})
}

// cut tells whether a peer is cut off, and gives a channel that closes when cuts change.
func (p *Peers) cut(id ident.ServerID) (bool, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, is := p.cuts[id]
	return is, p.heal
}

// hold registers an open connection, so that Close ends it. After Close it refuses.
func (p *Peers) hold(conn net.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return ErrClosed
	}
	p.conns[conn] = struct{}{}
	return nil
}

// release closes a connection and forgets it.
func (p *Peers) release(conn net.Conn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	conn.Close()
}

// down reports a peer as down, if it is still one.
func (p *Peers) down(id ident.ServerID, reset bool) {
	p.mu.Lock()
	tell := p.peers[id] != nil && p.ctx.Err() == nil
	p.mu.Unlock()
	if tell {
		p.cfg.Handler.PeerDown(id, reset)
	}
}

// Close ends everything and waits for it: no goroutine is left, no callback comes after it. Not to be called from a handler.
func (p *Peers) Close() error {
	p.mu.Lock()
	p.end()
	for conn := range p.conns {
		conn.Close()
	}
	p.mu.Unlock()
	err := p.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // closed before
	}
	p.running.Wait()
	return err
}

// PeersCounters are counts since ListenPeers.
type PeersCounters struct {
	Sent, Received           uint64 // envelopes
	SentBytes, ReceivedBytes uint64 // of bodies

	Dropped       uint64 // envelopes that a full queue, a reset or a cut lost
	Refused       uint64 // envelopes that the handler refused
	BadFrames     uint64 // connections dropped because of malformed or oversized bytes, or a foreign cluster or sender
	BadHandshakes uint64 // connections dropped because the other side is not one of us, or was silent
	TooMany       uint64 // connections closed at once by MaxUnauthenticated

	Dials, DialFailures, Accepts uint64
}

// peersCounts is the live form of PeersCounters.
type peersCounts struct {
	sent, received, sentBytes, receivedBytes            atomic.Uint64
	dropped, refused, badFrames, badHandshakes, tooMany atomic.Uint64
	dials, dialFailures, accepts                        atomic.Uint64
}

// Counters returns a snapshot.
func (p *Peers) Counters() PeersCounters {
	c := &p.count
	return PeersCounters{
		Sent: c.sent.Load(), Received: c.received.Load(), SentBytes: c.sentBytes.Load(), ReceivedBytes: c.receivedBytes.Load(),
		Dropped: c.dropped.Load(), Refused: c.refused.Load(), BadFrames: c.badFrames.Load(), BadHandshakes: c.badHandshakes.Load(),
		TooMany: c.tooMany.Load(), Dials: c.dials.Load(), DialFailures: c.dialFailures.Load(), Accepts: c.accepts.Load(),
	}
}
