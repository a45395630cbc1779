package link

import (
	"context"
	"net"
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

	// PeerDown is a hint: a connection with the peer was closed by the other side (reset), or none could be made to its address
	// because nothing listens there (reset too) or because it does not answer. It repeats with each vain attempt. It is not called
	// for peers that SetPeers removed or after Close.
	PeerDown(id ident.ServerID, reset bool)
}

// PeersConfig says who this end of the monitor plane is.
type PeersConfig struct {
	ClusterID  string
	Self       ident.ServerID
	Secret     []byte // of the cluster; both sides of each connection prove that they know it
	ListenAddr string // "127.0.0.1:0"
	Handler    PeersHandler

	// Stamp returns the incarnation and the view epoch that each outgoing envelope carries.
	Stamp func() (ident.Incarnation, ident.Epoch)

	// Wrap, if set, takes a fresh connection, before the handshake, to put encryption around it.
	Wrap func(conn net.Conn, dialer bool) (net.Conn, error)

	HandshakeTimeout   time.Duration // 0: DefaultHandshakeTimeout
	DialTimeout        time.Duration // 0: DefaultDialTimeout
	QueueBytes         int           // 0: DefaultQueueBytes; per peer, the oldest envelope is dropped beyond it
	MaxUnauthenticated int           // 0: DefaultMaxUnauthenticated; incoming connections beyond it are closed at once
	Logf               func(format string, args ...any)
}

// Defaults of PeersConfig.
const (
	DefaultDialTimeout        = time.Second
	DefaultQueueBytes         = 64 << 20
	DefaultMaxUnauthenticated = 64
)

// Peers is the monitor plane of one server: it listens for other servers, and keeps a connection to each peer that SetPeers names.
type Peers struct{}

// ListenPeers starts to listen. The error names the address when it is taken.
func ListenPeers(cfg PeersConfig) (*Peers, error) { panic("link: body follows") }

// Addr returns the address that it listens on, "127.0.0.1:34567".
func (p *Peers) Addr() string { panic("link: body follows") }

// SetPeers says which servers to keep connections to, and where they listen, in place of what was said before. Self is ignored.
// Removed peers are disconnected and their queues dropped; a changed address is dialed anew.
func (p *Peers) SetPeers(peers map[ident.ServerID]string) { panic("link: body follows") }

// Send queues an envelope for a peer; it never blocks. It returns false, and counts, if the peer is unknown or the body too large.
// Envelopes arrive in order, at most once, or not at all: a full queue drops its oldest, a reset loses what was under way. The body
// must not be changed after.
func (p *Peers) Send(to ident.ServerID, kind wire.EnvelopeKind, body []byte) bool {
	panic("link: body follows")
}

// Call dials addr, whoever listens there, sends a request (a join, before the server knows anyone) and waits for the reply until ctx
// ends. The reply's Sender says who answered.
func (p *Peers) Call(ctx context.Context, addr string, kind wire.EnvelopeKind, body []byte) (wire.Envelope, error) {
	panic("link: body follows")
}

// Cut turns a blackhole between this server and a peer on or off: nothing is sent to it, nothing from it is handled, no connection
// with it is made or broken. For tests and drills.
func (p *Peers) Cut(id ident.ServerID, on bool) { panic("link: body follows") }

// PeersCounters are counts since ListenPeers.
type PeersCounters struct {
	Sent, Received               uint64 // envelopes
	SentBytes, ReceivedBytes     uint64
	Dropped                      uint64 // envelopes that a full queue, a reset or a cut lost
	Refused                      uint64 // envelopes that the handler refused, or for another cluster
	BadFrames                    uint64 // connections dropped because of malformed or oversized bytes
	BadHandshakes                uint64 // connections dropped because the other side is not one of us, or was silent
	TooMany                      uint64 // connections closed at once by MaxUnauthenticated
	Dials, DialFailures, Accepts uint64
}

// Counters returns a snapshot.
func (p *Peers) Counters() PeersCounters { panic("link: body follows") }

// Close ends everything and waits for it: no goroutine is left, no callback comes after it.
func (p *Peers) Close() error { panic("link: body follows") }
