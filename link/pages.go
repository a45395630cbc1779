package link

import (
	"errors"
	"net"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// PagesHandler is what a worker does with what arrives on its page plane. The calls for one peer come from that peer's reader thread,
// one after the other, in the order in which the peer sent; calls for different peers come at once from different threads. A handler runs
// to completion on the reader thread: it may lock the worker's core, step it and flush an Outbox, but must never wait for another
// peer, or two workers wait for each other.
type PagesHandler interface {
	// HandlePages takes one frame of page messages of the current epoch. The items alias the reader's buffer: what is kept must be
	// copied. An error says that a message makes no sense; it is counted, and the connection is dropped.
	HandlePages(from ident.Part, epoch ident.Epoch, items *wire.PageItems) error

	// HandleDevice takes a device request of the current epoch. It answers with req.Reply, now or later, from any thread. The payload
	// aliases the reader's buffer.
	HandleDevice(from ident.Part, epoch ident.Epoch, req DeviceRequest)

	// PeerUp says that the connection to a member is established and both sides have taken the epoch of its handshake, so that what
	// is sent from now on arrives or the connection breaks.
	PeerUp(part ident.Part)

	// PeerDown is a hint. With reset, the connection to the member broke: what was sent last may be lost. Without, nothing was heard
	// for PagesConfig.SilentAfter; the connection stays, and PeerUp follows when the peer is heard again. It is not called for peers
	// that SetMembers removed or after Close.
	PeerDown(part ident.Part, reset bool)
}

// PagesConfig says who this end of the page plane is.
type PagesConfig struct {
	ClusterID  string
	VM         ident.VMID
	Self       ident.Part
	Server     ident.ServerID
	Secret     []byte // of the VM; both sides of each connection prove that they know it
	ListenHost string // "127.0.0.1"; the port is the kernel's choice
	Handler    PagesHandler

	// Wrap, if set, takes a fresh connection, before the handshake, to put encryption around it. The raw descriptor is used past the
	// handshake only when Wrap is nil or returns the connection that it was given.
	Wrap func(conn net.Conn, dialer bool) (net.Conn, error)

	SilentAfter      time.Duration // 0: DefaultSilentAfter
	HandshakeTimeout time.Duration // 0: DefaultHandshakeTimeout
	OverflowBytes    int           // 0: DefaultOverflowBytes; what waits for a peer's full socket before its connection is dropped
	Logf             func(format string, args ...any)
}

// Defaults of PagesConfig.
const (
	DefaultSilentAfter      = time.Second
	DefaultHandshakeTimeout = 5 * time.Second
	DefaultOverflowBytes    = 16 << 20
)

// Errors of Request, to branch on. All are wrapped with the peer and the operation.
var (
	ErrPeerGone = errors.New("the peer is not a member")                           // removed, before or during the request
	ErrReset    = errors.New("the connection broke before the reply arrived")      // it may or may not have been served
	ErrDeadline = errors.New("no reply before the deadline")                       // it may or may not have been served
	ErrClosed   = errors.New("the page plane is closed")                           // by Close
	ErrRefused  = errors.New("the peer refused the handshake")                     // and says why
	ErrHostile  = errors.New("the peer does not prove that it knows the secret")   // or is somebody else
	ErrEpoch    = errors.New("the epoch is older than the one that is in force")   // SetMembers with a lower epoch
	ErrSelf     = errors.New("this end is not among the members that it was told") // SetMembers without Self
)

// DeviceRequest is a device request from a peer.
type DeviceRequest struct {
	Kind    wire.DeviceKind
	OneWay  bool   // Reply does nothing
	Payload []byte // valid until HandleDevice returns

	id    uint64
	epoch ident.Epoch
	conn  *pageConn
}

// Reply answers the request. It never blocks. It may be called at most once, from any thread, even after the peer has gone.
func (r DeviceRequest) Reply(status wire.DeviceStatus, payload []byte) {
	if r.OneWay || r.conn == nil {
		return
	}
	r.conn.sendDevice(r.epoch, wire.DeviceMsg{ID: r.id, Kind: r.Kind, Reply: true, Status: status, Payload: payload})
}

// Pages is the page plane of one worker.
type Pages struct{}

// ListenPages starts to listen on a port of the kernel's choice. Nothing is dialed, and no handshake completed, before SetMembers.
func ListenPages(cfg PagesConfig) (*Pages, error) { panic("link: body follows") }

// Addr returns the address to put into WorkerReady, "127.0.0.1:34567".
func (p *Pages) Addr() string { panic("link: body follows") }

// SetMembers says who belongs to the VM from this epoch on. The lower part of each pair dials and goes on dialing while the other is a
// member. Parts that are missing, or have moved to another server or address, are disconnected; Requests to them fail at once. An
// epoch below the one in force is refused with ErrEpoch; the same members again change nothing.
func (p *Pages) SetMembers(epoch ident.Epoch, members []wire.WorkerMember) error {
	panic("link: body follows")
}

// Outbox collects page messages for any number of peers and sends them with one write for each peer. It belongs to one owner, such as
// the worker's core under its lock, and is reused without allocating.
type Outbox struct{}

// NewOutbox returns an empty outbox.
func (p *Pages) NewOutbox() *Outbox { panic("link: body follows") }

// Add appends a message for a peer: the encoded message and, if contents is not nil, the page's 4 KiB, which are copied once, here.
func (o *Outbox) Add(to ident.Part, msg, contents []byte) { panic("link: body follows") }

// Flush sends everything, stamped with the epoch, and empties the outbox. It never blocks: what the socket does not take at once is
// queued, up to OverflowBytes, and what is beyond that breaks the connection. Messages to a peer that is not connected are dropped
// and counted.
func (o *Outbox) Flush(epoch ident.Epoch) { panic("link: body follows") }

// Request asks a peer's device service and waits for the answer, until the deadline and no longer. While the peer is a member that is
// not connected yet, it waits for the connection. It fails at once when the peer is removed (ErrPeerGone), when the connection breaks
// after the request was sent (ErrReset) and on Close (ErrClosed). For vCPU threads; never call it from a PagesHandler.
func (p *Pages) Request(to ident.Part, epoch ident.Epoch, kind wire.DeviceKind, payload []byte, deadline time.Time) ([]byte, wire.DeviceStatus, error) {
	panic("link: body follows")
}

// Notify sends a device request that wants no answer. It never blocks; it returns false if the peer is not connected.
func (p *Pages) Notify(to ident.Part, epoch ident.Epoch, kind wire.DeviceKind, payload []byte) bool {
	panic("link: body follows")
}

// Cut turns a blackhole between this part and a peer on or off: nothing is sent to it, nothing from it is handled, no connection
// with it is made or broken. For tests and drills.
func (p *Pages) Cut(part ident.Part, on bool) { panic("link: body follows") }

// PagesCounters are counts since ListenPages.
type PagesCounters struct {
	FramesIn, FramesOut, BytesIn, BytesOut uint64
	OtherEpoch                             uint64 // frames refused because they carry another epoch
	OtherVM                                uint64 // connections dropped because a frame was for another VM, or from another part
	BadFrames                              uint64 // connections dropped because of malformed bytes
	BadHandshakes                          uint64 // connections dropped because the other side is not one of us, or was silent
	Dropped                                uint64 // outgoing frames for peers that were not connected, or cut
	Queued                                 uint64 // sends that the socket did not take whole
	Overflows                              uint64 // connections dropped because the queue was full
	Resets                                 uint64 // connections to members that broke
	Dials, DialFailures, Accepts           uint64
}

// Counters returns a snapshot.
func (p *Pages) Counters() PagesCounters { panic("link: body follows") }

// Close ends everything and waits for it: no goroutine or thread is left, no callback comes after it.
func (p *Pages) Close() error { panic("link: body follows") }

type pageConn struct{}

func (c *pageConn) sendDevice(epoch ident.Epoch, m wire.DeviceMsg) {}
