package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// outgoing is an envelope in a queue. It is stamped when it is sent, so that it carries the epoch of then.
type outgoing struct {
	at   time.Time // when it was queued
	kind wire.EnvelopeKind
	body []byte
}

// envelopeCost is what an envelope without a body counts in a queue, so that a flood of empty ones is bounded as well.
const envelopeCost = 64

// peer is a server that we keep a connection to.
//
//	        dialed                  broken
//	dialing ──────▶ connected ──────────────▶ dialing (after a delay)
//	   └────────────────┴──── remove ───▶ end
type peer struct {
	plane  *Peers
	id     ident.ServerID
	addr   string
	ctx    context.Context // ends when it is removed
	remove context.CancelFunc
	wake   chan struct{} // the queue is not empty; capacity 1

	mu     sync.Mutex
	queue  []outgoing // protected by mu
	queued int        // protected by mu; bytes
}

func newPeer(p *Peers, id ident.ServerID, addr string) *peer {
	ctx, remove := context.WithCancel(p.ctx)
	return &peer{plane: p, id: id, addr: addr, ctx: ctx, remove: remove, wake: make(chan struct{}, 1)}
}

// enqueue appends an envelope, and makes room for it by dropping the oldest.
func (q *peer) enqueue(o outgoing) {
	o.at = time.Now()
	q.mu.Lock()
	q.queue = append(q.queue, o)
	q.queued += envelopeCost + len(o.body)
	for len(q.queue) > 1 && q.queued > q.plane.cfg.QueueBytes {
		q.queued -= envelopeCost + len(q.queue[0].body)
		q.queue[0] = outgoing{}
		q.queue = q.queue[1:]
		q.plane.count.dropped.Add(1)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// takeAll empties the queue.
func (q *peer) takeAll() []outgoing {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.queue
	q.queue, q.queued = nil, 0
	return all
}

// run keeps the connection until the peer is removed.
func (q *peer) run() {
	p := q.plane
	delay := firstRedial
	for q.ctx.Err() == nil {
		if is, heal := p.cut(q.id); is {
			p.count.dropped.Add(uint64(len(q.takeAll())))
			select {
			case <-heal:
			case <-q.wake:
			case <-q.ctx.Done():
			}
			continue
		}
		conn, err := p.dial(q.ctx, q.addr, q.id, p.cfg.DialTimeout)
		if err != nil {
			p.cfg.Logf("link: connect to server %d at %s: %v", q.id, q.addr, err)
			if q.ctx.Err() == nil {
				p.down(q.id, connReset(err))
			}
			_ = wait(delay, q.ctx.Done())
			delay = min(2*delay, lastRedial)
			continue
		}
		delay = firstRedial
		p.cfg.Handler.PeerUp(q.id)
		err = q.carry(conn)
		if q.ctx.Err() == nil {
			p.cfg.Logf("link: connection to server %d at %s: %v", q.id, q.addr, err)
			p.down(q.id, connReset(err))
		}
	}
	p.count.dropped.Add(uint64(len(q.takeAll())))
}

// keepBufferBytes is how much of a connection's send buffer is kept between batches.
const keepBufferBytes = 1 << 20

// carry sends what is queued until the connection breaks or the peer is removed.
func (q *peer) carry(conn net.Conn) error {
	p := q.plane
	defer p.release(conn)
	broken := make(chan error, 1)
	// The other side never sends anything here. Reading tells at once when it has gone.
	p.running.Go(func() {
		n, err := io.Copy(io.Discard, io.LimitReader(conn, 1))
		if err == nil && n > 0 {
			p.count.badFrames.Add(1)
			err = fmt.Errorf("link: server %d talks back: %w", q.id, wire.ErrBadFrame)
		} else if err == nil {
			err = io.EOF
		}
		broken <- err
		conn.Close() // unblocks a write
	})
	var buf []byte
	for {
		select {
		case err := <-broken:
			return err
		case <-q.ctx.Done():
			conn.Close()
			<-broken
			return q.ctx.Err()
		case <-q.wake:
		}
		batch := q.takeAll()
		if is, _ := p.cut(q.id); is {
			p.count.dropped.Add(uint64(len(batch)))
			continue
		}
		if len(batch) == 0 {
			continue
		}
		if err := q.late(batch[0].at, broken); err != nil {
			conn.Close()
			return err
		}
		if err := q.write(conn, batch, &buf); err != nil {
			conn.Close()
			if first := <-broken; connReset(first) {
				return first // the reason why the write failed
			}
			return err
		}
	}
}

// write sends a batch with as few writes as its size allows.
func (q *peer) write(conn net.Conn, batch []outgoing, buf *[]byte) error {
	p := q.plane
	out := (*buf)[:0]
	var bytes uint64
	var pending uint64
	flush := func() error {
		if len(out) == 0 {
			return nil
		}
		if err := writeWhole(conn, out); err != nil {
			return err
		}
		p.count.sent.Add(pending)
		p.count.sentBytes.Add(bytes)
		out, pending, bytes = out[:0], 0, 0
		return nil
	}
	for i, o := range batch {
		var err error
		if out, err = wire.AppendEnvelope(out, p.stamped(o.kind, o.body)); err != nil {
			p.count.dropped.Add(1) // Send has checked the limits
			continue
		}
		pending++
		bytes += uint64(len(o.body))
		if len(out) >= keepBufferBytes || i == len(batch)-1 {
			if err := flush(); err != nil {
				p.count.dropped.Add(uint64(len(batch)-i-1) + pending)
				return err
			}
		}
	}
	if cap(out) <= keepBufferBytes {
		*buf = out[:0]
	} else {
		*buf = nil
	}
	return nil
}

// writePatience is for how long a peer may leave its side of a connection unread before the connection is given up: the queue behind it
// only holds what is out of date by then.
const writePatience = 5 * time.Second

// writePiece is what has to pass in that time: a whole snapshot need not, on a slow network.
const writePiece = 256 << 10

// writeWhole writes all of b to a peer that goes on reading, however slowly.
func writeWhole(conn net.Conn, b []byte) error {
	for len(b) > 0 {
		if err := conn.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
			return err
		}
		n, err := conn.Write(b[:min(len(b), writePiece)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// dial connects to an address and runs the handshake. want is the server that must answer, 0 for whoever does. The connection is held:
// the caller releases it.
func (p *Peers) dial(ctx context.Context, addr string, want ident.ServerID, timeout time.Duration) (net.Conn, error) {
	p.count.dials.Add(1)
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := p.dialHeld(ctx, addr, want, deadline)
	if err != nil {
		p.count.dialFailures.Add(1)
		if errors.Is(err, wire.ErrHandshake) || malformed(err) {
			p.count.badHandshakes.Add(1)
		}
		return nil, err
	}
	return conn, nil
}

func (p *Peers) dialHeld(ctx context.Context, addr string, want ident.ServerID, deadline time.Time) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	endWatch := context.AfterFunc(ctx, func() { conn.Close() })
	wrapped, err := wrapConn(p.cfg.Wrap, conn, true)
	if err == nil {
		hs := wire.NewHandshake(p.identity(), p.cfg.Secret, newNonce())
		var who wire.Identity
		if who, err = offer(wrapped, monitorHello{}, hs, hs.Hello(want, 0), deadline); err == nil {
			err = p.vouch(wrapped, who.Server)
		}
	}
	if !endWatch() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = p.hold(wrapped)
	}
	if err != nil {
		wrapped.Close()
		return nil, err
	}
	return wrapped, nil
}

func (p *Peers) identity() wire.Identity {
	_, epoch := p.cfg.Stamp()
	return wire.Identity{Plane: wire.PlaneMonitor, Cluster: p.cfg.ClusterID, Server: p.cfg.Self, Epoch: epoch}
}

// Call dials addr, whoever listens there, sends a request (a join, before the server knows anyone) and waits for the reply until ctx
// ends. The reply's Sender says who answered. A request that the other side could not serve fails with ErrRemote and its reason.
func (p *Peers) Call(ctx context.Context, addr string, kind wire.EnvelopeKind, body []byte) (wire.Envelope, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)() // Close ends it as well
	fail := func(err error) (wire.Envelope, error) {
		if p.ctx.Err() != nil {
			err = ErrClosed
		} else if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return wire.Envelope{}, fmt.Errorf("link: request %d to %s: %w", kind, addr, err)
	}
	conn, err := p.dial(ctx, addr, 0, p.cfg.DialTimeout)
	if err != nil {
		return fail(err)
	}
	defer p.release(conn)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	frame, err := wire.AppendEnvelope(nil, p.stamped(kind, body))
	if err != nil {
		return fail(err)
	}
	if _, err := conn.Write(frame); err != nil {
		return fail(err)
	}
	reply, err := wire.ReadEnvelope(conn, wire.EnvelopeBodyLimit)
	switch {
	case err != nil:
		return fail(noPlainEOF(err))
	case reply.Cluster != p.cfg.ClusterID:
		p.count.badFrames.Add(1)
		return fail(fmt.Errorf("an answer from cluster %q: %w", reply.Cluster, wire.ErrBadFrame))
	case reply.Kind == wire.EnvelopeError:
		return fail(fmt.Errorf("%w: %s", ErrRemote, reply.Body))
	}
	p.count.sent.Add(1)
	p.count.received.Add(1)
	return reply, nil
}

// ErrRemote is wrapped by the error of a Call that was delivered but could not be served; the text is the other side's.
var ErrRemote = errors.New("the other server says")

func noPlainEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// wrapConn applies a configured wrapper. The result is never nil, so that the caller can close it.
func wrapConn(wrap func(net.Conn, bool) (net.Conn, error), conn net.Conn, dialer bool) (net.Conn, error) {
	if wrap == nil {
		return conn, nil
	}
	wrapped, err := wrap(conn, dialer)
	if err != nil {
		return conn, err
	}
	return wrapped, nil
}
