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

// PagesHandler is what a worker does with what arrives on its page plane. The calls for one peer come from that peer's reader thread,
// one after the other, in the order in which the peer sent; calls for different peers come at once from different threads. A handler runs
// to completion on the reader thread: it may lock the worker's core, step it and flush an Outbox, but must never wait for another
// peer, or two workers wait for each other.
type PagesHandler interface {
	// HandlePages takes one frame of page messages, sent in the current epoch, all well formed, of this VM, from that part to this
	// one. Bodies alias the reader's buffer: what is kept must be copied. An error says that a message makes no sense; it is counted,
	// and the connection is dropped. The epoch is that of the frame; SetMembers may have changed the current one since.
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

	// Listener, if set, takes the connections, in place of one on ListenHost. Close closes it.
	Listener net.Listener

	// Dial, if set, connects to a member's page plane in place of DialPages.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Seal says that frames are encrypted (see seal.go); they are if either side of a connection says so.
	Seal bool

	// Wrap, if set, takes a fresh connection, before the handshake, to put encryption around it. Frames then go through what it
	// returns, not through the bare socket, at the price of the direct path's speed.
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
	ErrEpoch    = errors.New("the epoch is older than the one that is in force")   // SetMembers with a lower epoch
	ErrSelf     = errors.New("this end is not among the members that it was told") // SetMembers without Self
)

// Pages is the page plane of one worker.
type Pages struct {
	cfg      PagesConfig
	listener net.Listener
	count    pagesCounts
	epoch    atomic.Uint64 // changed under mu, read by every frame

	// conns are the established connections by part, for senders; changed under mu.
	conns [ident.MaxParts]atomic.Pointer[pageConn]
	cut   atomic.Uint64 // an ident.PartSet

	impaired [ident.MaxParts]atomic.Pointer[impaired] // by part, for senders; changed under mu; nil: nothing is done to it

	mu      sync.Mutex
	closed  bool
	members [ident.MaxParts]*member // protected by mu; nil: not a member, or Self
	changed chan struct{}           // protected by mu; closed and replaced whenever members, epoch, conns or cut change
	fresh   map[net.Conn]struct{}   // protected by mu; connections in their handshake, for Close
	done    chan struct{}           // closed by Close
	running sync.WaitGroup          // every goroutine
	reqID   atomic.Uint64

	impairments map[ident.ServerID]*impaired // protected by mu
}

// member is one peer part, as SetMembers told. It is replaced, never changed.
type member struct {
	part   ident.Part
	server ident.ServerID
	addr   string
	ctx    context.Context // ends when it is removed or replaced
	remove context.CancelFunc
}

// maxFreshConns bounds incoming connections that have not proved who they are. A VM has fewer peers than this.
const maxFreshConns = 2 * ident.MaxParts

// ListenPages starts to listen on a port of the kernel's choice. Nothing is dialed, and no handshake completed, before SetMembers.
func ListenPages(cfg PagesConfig) (*Pages, error) {
	if cfg.Handler == nil || len(cfg.Secret) == 0 || cfg.ClusterID == "" || len(cfg.ClusterID) > wire.ClusterIDLimit || cfg.Self >= ident.MaxParts {
		return nil, fmt.Errorf("link: page plane of VM %d part %s: incomplete configuration", cfg.VM, cfg.Self)
	}
	setDefault(&cfg.SilentAfter, DefaultSilentAfter)
	setDefault(&cfg.HandshakeTimeout, DefaultHandshakeTimeout)
	setDefault(&cfg.OverflowBytes, DefaultOverflowBytes)
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.Dial == nil {
		cfg.Dial = DialPages
	}
	listener := cfg.Listener
	if listener == nil {
		var err error
		if listener, err = ListenPort(cfg.ListenHost); err != nil {
			return nil, fmt.Errorf("link: page plane of VM %d: %w", cfg.VM, err)
		}
	}
	p := &Pages{
		cfg: cfg, listener: listener, changed: make(chan struct{}), fresh: make(map[net.Conn]struct{}), done: make(chan struct{}),
	}
	p.running.Go(p.acceptLoop)
	p.running.Go(p.heartbeat)
	return p, nil
}

// ListenPort opens a port of the kernel's choice for a page plane.
func ListenPort(host string) (net.Listener, error) {
	l, err := (&net.ListenConfig{Control: tuneSocket}).Listen(background, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", host, err)
	}
	return l, nil
}

// Addr returns the address to put into WorkerReady, "127.0.0.1:34567".
func (p *Pages) Addr() string { return p.listener.Addr().String() }

// SetMembers says who belongs to the VM from this epoch on. The lower part of each pair dials and goes on dialing while the other is a
// member. Parts that are missing, or have moved to another server or address, are disconnected; Requests to them fail at once. An
// epoch below the one in force is refused with ErrEpoch; the same members again change nothing. It does not wait for anything.
func (p *Pages) SetMembers(epoch ident.Epoch, members []wire.WorkerMember) error {
	var want [ident.MaxParts]*member
	self := false
	for _, m := range members {
		switch {
		case m.Part >= ident.MaxParts || m.Part != p.cfg.Self && want[m.Part] != nil:
			return fmt.Errorf("link: VM %d epoch %d: member %s is listed twice or impossible", p.cfg.VM, epoch, m.Part)
		case m.Part == p.cfg.Self:
			self = true
		default:
			ctx, remove := context.WithCancel(background)
			want[m.Part] = &member{part: m.Part, server: m.Server, addr: m.Addr, ctx: ctx, remove: remove}
		}
	}
	if !self {
		return fmt.Errorf("link: VM %d epoch %d part %s: %w", p.cfg.VM, epoch, p.cfg.Self, ErrSelf)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if now := ident.Epoch(p.epoch.Load()); epoch < now || epoch == 0 {
		return fmt.Errorf("link: VM %d: epoch %d after %d: %w", p.cfg.VM, epoch, now, ErrEpoch)
	}
	p.epoch.Store(uint64(epoch))
	for part, old := range p.members {
		m := want[part]
		if old != nil && m != nil && old.server == m.server && old.addr == m.addr {
			continue
		}
		if old != nil {
			old.remove()
			if c := p.conns[part].Swap(nil); c != nil {
				c.kill(ErrPeerGone)
			}
		}
		p.members[part] = m
		if m != nil && p.cfg.Self < m.part {
			p.running.Go(func() { p.dialLoop(m) })
		}
	}
	p.impairMembers()
	p.noteChange()
	return nil
}

// Forget takes a part off the members at once, in the epoch in force: it is gone, so nobody need wait for it until the next SetMembers.
func (p *Pages) Forget(part ident.Part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if part >= ident.MaxParts || p.closed || p.members[part] == nil {
		return
	}
	p.members[part].remove()
	p.members[part] = nil
	if c := p.conns[part].Swap(nil); c != nil {
		c.kill(ErrPeerGone)
	}
	p.noteChange()
}

// noteChange wakes everyone who waits for a change. The caller holds mu.
func (p *Pages) noteChange() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Cut turns a blackhole between this part and a peer on or off: nothing is sent to it, nothing from it is handled, no connection
// with it is made or broken. For tests and drills.
func (p *Pages) Cut(part ident.Part, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := ident.PartSet(p.cut.Load()).Clear(part)
	if on {
		set = set.Set(part)
	}
	p.cut.Store(uint64(set))
	p.noteChange()
}

func (p *Pages) isCut(part ident.Part) bool { return ident.PartSet(p.cut.Load()).Has(part) }

// Close ends everything and waits for it: no goroutine or thread is left, no callback comes after it. Not to be called from a handler.
func (p *Pages) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.running.Wait()
		return nil
	}
	p.closed = true
	close(p.done)
	for part := range p.members {
		if m := p.members[part]; m != nil {
			m.remove()
			p.members[part] = nil
		}
		if c := p.conns[part].Swap(nil); c != nil {
			c.kill(ErrClosed)
		}
	}
	for conn := range p.fresh {
		conn.Close()
	}
	p.noteChange()
	p.mu.Unlock()
	err := p.listener.Close()
	p.running.Wait()
	return err
}

// heartbeat pings every peer, and reports one from which nothing came for SilentAfter. It counts its own ticks instead of asking a
// clock, so a process that was stopped does not blame its peers for the time it slept.
func (p *Pages) heartbeat() {
	const ticks = 4
	ticker := time.NewTicker(max(p.cfg.SilentAfter/ticks, time.Millisecond))
	defer ticker.Stop()
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		linked := false
		for part := range p.conns {
			if c := p.conns[part].Load(); c != nil {
				linked = true
				c.beat(ticks)
			}
		}
		tick := ticker.C
		if linked {
			changed = nil
		} else {
			tick = nil // most VMs are alone: they are not woken for nothing
		}
		select {
		case <-p.done:
			return
		case <-changed:
		case <-tick:
		}
	}
}
