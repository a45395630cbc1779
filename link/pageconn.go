package link

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/futex"
	"github.com/cellvisor/cellvisor/wire"
)

// pageConn is one established connection to a peer part.
//
//	             kill                reader and writer return
//	established ──────▶ dead ──────────────────────────────────▶ closed
//
// Two threads serve it: the reader, on which handlers run to completion, and the writer, which sleeps unless a socket was full. Senders
// on any thread write straight to the socket while the queue is empty, so in the usual case a message is in the peer's kernel
// when the sender returns.
//
// Lock order: Pages.mu, then outMu or reqMu; neither of those two is held while taking another lock.
type pageConn struct {
	plane  *Pages
	member *member
	sock   socket

	items  wire.PageItems // the reader's, of the frame in hand; a field so that no frame allocates
	heard  atomic.Uint64  // frames so far; heartbeat sees whether it moves
	dead   chan struct{}  // closed by kill
	gone   chan struct{}  // closed after the last callback about this connection
	wake   chan struct{}  // tells the writer that the queue is not empty; capacity 1
	seen   uint64         // heartbeat's: heard at the last tick
	ticks  int            // heartbeat's: ticks without a frame
	silent bool           // heartbeat's: reported as silent

	sealer *sealer     // protected by outMu; nil: not encrypted
	outMu  futex.Mutex // held over a send, by threads that serve pages
	killed error       // protected by outMu; why, nil while established
	queue  [][]byte    // protected by outMu; bytes that wait for the socket, in order; the writer works on the first
	queued int         // protected by outMu; bytes in queue

	late      []lateFrame // protected by outMu; what a drill holds up, in order
	lateBytes int         // protected by outMu
	lateRuns  bool        // protected by outMu; lateLoop runs
	lateCount atomic.Int32

	reqMu   sync.Mutex
	replies map[uint64]*replyWait // protected by reqMu; open requests; nil once dead
}

func newPageConn(p *Pages, m *member, sock socket) *pageConn {
	return &pageConn{
		plane: p, member: m, sock: sock, dead: make(chan struct{}), gone: make(chan struct{}), wake: make(chan struct{}, 1),
		replies: make(map[uint64]*replyWait),
	}
}

// serve runs the connection until it is dead, on the calling goroutine, which becomes its reader and must be given up afterwards. The
// caller has entered the connection into Pages.conns.
func (c *pageConn) serve() {
	servePagesThread()
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	c.plane.cfg.Handler.PeerUp(c.member.part)
	err := c.readLoop()
	c.kill(err)
	writer.Wait()
	c.sock.close()
	c.plane.retire(c)
	close(c.gone)
}

// kill breaks the connection for the given reason. Everybody who waits on it returns. Only the first reason counts.
func (c *pageConn) kill(why error) {
	c.outMu.Lock()
	first := c.killed == nil
	if first {
		c.killed = why
		c.queue, c.queued = nil, 0
		c.sock.shutdown()
		close(c.dead)
	}
	c.outMu.Unlock()
	if first {
		c.loseReplies()
	}
}

// errBadPeer and the like are reasons for kill that are no errors of the socket.
var (
	errBadPeer  = errors.New("link: the peer sent what no honest peer sends")
	errReplaced = errors.New("link: the peer has connected again")
	errOverflow = errors.New("link: the peer does not read, and its queue is full")
)

// readBufferBytes holds the largest frame. It is touched only as far as one read fills it.
const readBufferBytes = wire.FrameLimit

// readLoop reads and handles frames until the connection breaks.
func (c *pageConn) readLoop() error {
	buf := make([]byte, readBufferBytes)
	start, end := 0, 0
	for {
		n, err := c.sock.read(buf[end:])
		if malformed(err) {
			c.plane.count.badFrames.Add(1)
			return c.bad(err)
		}
		if err != nil {
			return err
		}
		end += n
		c.plane.count.bytesIn.Add(uint64(n))
		for {
			h, body, size, err := wire.NextFrame(buf[start:end])
			if err != nil {
				c.plane.count.badFrames.Add(1)
				return c.bad(err)
			}
			if size == 0 {
				break
			}
			start += size
			if err := c.handle(h, body); err != nil {
				return err
			}
		}
		// What is left is a part of one frame. At the start of the buffer there is room for the rest of it.
		end = copy(buf, buf[start:end])
		start = 0
	}
}

func (c *pageConn) bad(err error) error {
	c.plane.cfg.Logf("link: VM %d: connection to %s at %s dropped: %v", c.plane.cfg.VM, c.member.part, c.member.addr, err)
	return errors.Join(errBadPeer, err)
}

// handle deals with one frame. An error drops the connection.
func (c *pageConn) handle(h wire.FrameHeader, body []byte) error {
	p := c.plane
	p.count.framesIn.Add(1)
	if h.VM != p.cfg.VM || h.From != c.member.part {
		p.count.otherVM.Add(1)
		return c.bad(errors.New("a frame of another VM or part"))
	}
	if p.isCut(c.member.part) {
		return nil
	}
	c.heard.Add(1)
	switch h.Type {
	case wire.FramePages:
		if h.Epoch != ident.Epoch(p.epoch.Load()) {
			p.count.otherEpoch.Add(1)
			return nil
		}
		var err error
		if c.items, err = wire.ParsePages(h, p.cfg.Self, body); err == nil {
			err = p.cfg.Handler.HandlePages(h.From, h.Epoch, &c.items)
		}
		if err != nil {
			p.count.badFrames.Add(1)
			return c.bad(err)
		}
	case wire.FrameDevice:
		m, err := wire.ParseDevice(body)
		if err != nil {
			p.count.badFrames.Add(1)
			return c.bad(err)
		}
		c.handleDevice(h.Epoch, m)
	case wire.FramePing:
		if len(body) != pingBytes {
			p.count.badFrames.Add(1)
			return c.bad(errors.New("a ping of an impossible size"))
		}
		c.sendFrame(wire.FramePong, ident.Epoch(p.epoch.Load()), body)
	case wire.FramePong:
	default:
		p.count.badFrames.Add(1)
		return c.bad(errors.New("a handshake in the middle of a connection"))
	}
	return nil
}

// send passes whole frames to the socket, or to the queue behind it. It never blocks, and keeps nothing of buf.
func (c *pageConn) send(buf []byte) bool {
	p := c.plane
	if p.isCut(c.member.part) {
		p.count.dropped.Add(1)
		return true // as far as the sender can tell, the network swallowed it
	}
	if p.impaired[c.member.part].Load() != nil || c.lateCount.Load() > 0 {
		return c.sendLate(buf)
	}
	return c.sendNow(buf)
}

// sendNow is send without what a drill does to the link.
func (c *pageConn) sendNow(buf []byte) bool {
	p := c.plane
	c.outMu.Lock()
	if c.killed != nil {
		c.outMu.Unlock()
		p.count.dropped.Add(1)
		return false
	}
	sent, err := 0, error(nil)
	if c.sealer != nil {
		buf, err = c.sealer.seal(buf)
	}
	if err == nil && c.queued == 0 {
		sent, err = c.sock.trySend(buf)
	}
	if err == nil && sent < len(buf) {
		p.count.queued.Add(1)
		if c.queued+len(buf)-sent > p.cfg.OverflowBytes {
			p.count.overflows.Add(1)
			err = errOverflow
		} else {
			c.enqueue(buf[sent:])
		}
	}
	c.outMu.Unlock()
	if err != nil {
		c.kill(err)
		return false
	}
	p.count.framesOut.Add(1)
	p.count.bytesOut.Add(uint64(len(buf)))
	return true
}

// queueChunkBytes is the least that a chunk of the queue holds, so that many small sends become few large writes.
const queueChunkBytes = 64 << 10

// enqueue appends bytes to the queue. The caller holds outMu.
func (c *pageConn) enqueue(rest []byte) {
	c.queued += len(rest)
	if last := len(c.queue) - 1; last > 0 && cap(c.queue[last])-len(c.queue[last]) >= len(rest) {
		c.queue[last] = append(c.queue[last], rest...)
	} else {
		c.queue = append(c.queue, append(make([]byte, 0, max(len(rest), queueChunkBytes)), rest...))
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// writeLoop drains the queue. The first chunk is the writer's alone while it sends without the lock: senders append behind it.
func (c *pageConn) writeLoop() {
	servePagesThread()
	for {
		select {
		case <-c.dead:
			return
		case <-c.wake:
		}
		for {
			c.outMu.Lock()
			if len(c.queue) == 0 {
				c.outMu.Unlock()
				break
			}
			chunk := c.queue[0]
			c.outMu.Unlock()
			n, err := c.sock.send(chunk)
			if err != nil {
				c.kill(err)
				return
			}
			if !c.sentQueued(n) {
				return
			}
		}
	}
}

// sentQueued takes n bytes off the queue's first chunk.
func (c *pageConn) sentQueued(n int) bool {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.killed != nil {
		return false
	}
	c.queued -= n
	if c.queue[0] = c.queue[0][n:]; len(c.queue[0]) == 0 {
		c.queue[0] = nil
		c.queue = c.queue[1:]
	}
	return true
}

// sendFrame sends one small frame.
func (c *pageConn) sendFrame(t wire.FrameType, epoch ident.Epoch, body []byte) bool {
	var room [256]byte
	return c.send(wire.AppendFrame(room[:0], wire.FrameHeader{Type: t, VM: c.plane.cfg.VM, Epoch: epoch, From: c.plane.cfg.Self}, body))
}

const pingBytes = 8

// beat is one tick of the heartbeat: it pings, and reports the peer after a number of ticks without a sign of it.
func (c *pageConn) beat(limit int) {
	if heard := c.heard.Load(); heard != c.seen {
		c.seen, c.ticks = heard, 0
		if c.silent {
			c.silent = false
			c.plane.cfg.Handler.PeerUp(c.member.part)
		}
	} else if c.ticks++; c.ticks == limit+1 {
		c.silent = true
		c.plane.cfg.Handler.PeerDown(c.member.part, false)
	}
	c.sendFrame(wire.FramePing, ident.Epoch(c.plane.epoch.Load()), make([]byte, pingBytes))
}
