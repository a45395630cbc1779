package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Proxy is a bad network between two processes: a TCP relay that can be told to hold traffic back (Cut), to slow it down and stall it at
// random (Shape), and to break connections (Reset). For tests and drills of real processes; within one process Pages.Cut and
// Peers.Cut do. TCP hides loss from its users, who see only that nothing comes for a while: hence stalls, not losses.
type Proxy struct {
	listener net.Listener
	target   string
	done     chan struct{}
	running  sync.WaitGroup

	mu      sync.Mutex
	rng     *rand.Rand    // protected by mu
	shape   Shape         // protected by mu
	cut     bool          // protected by mu
	changed chan struct{} // protected by mu; closed and replaced when cut changes
	conns   map[net.Conn]struct{}
	closed  bool
}

// Shape is how a Proxy treats each piece of a stream, which is what one read returned.
type Shape struct {
	Delay         time.Duration // for every piece
	Jitter        time.Duration // on top, evenly distributed from 0
	StallPermille int           // chance of a piece to be held for Stall, as after a lost packet
	Stall         time.Duration
}

// ListenProxy starts a relay on a port of the kernel's choice, on the given host, to the target address. Its random choices
// follow the seed; which piece gets which is up to the operating system.
func ListenProxy(host, target string, seed uint64) (*Proxy, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("link: proxy for %s: %w", target, err)
	}
	p := &Proxy{
		listener: listener, target: target, done: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 0)),
		changed: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}
	p.running.Go(p.acceptLoop)
	return p, nil
}

// Addr returns the address to connect to in place of the target's.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Shape sets how traffic is treated from now on. The zero Shape passes it on as it comes.
func (p *Proxy) Shape(s Shape) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shape = s
}

// Cut holds all traffic back, new connections included, or lets it go on. Nothing is lost and no connection breaks, as in a network
// whose cable was pulled for a while.
func (p *Proxy) Cut(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = on
	close(p.changed)
	p.changed = make(chan struct{})
}

// Reset breaks all connections.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not an orderly end
		}
		conn.Close()
	}
}

// Close ends the relay and waits for it.
func (p *Proxy) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.done)
	}
	p.mu.Unlock()
	err := p.listener.Close()
	p.Reset()
	p.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Proxy) acceptLoop() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.relay(conn) })
	}
}

// relay connects to the target and passes both directions on until one ends.
func (p *Proxy) relay(near net.Conn) {
	if !p.hold(near) {
		return
	}
	defer p.drop(near)
	if !p.await(0) {
		return
	}
	far, err := net.DialTimeout("tcp", p.target, DefaultDialTimeout)
	if err != nil || !p.hold(far) {
		return
	}
	defer p.drop(far)
	var both sync.WaitGroup
	both.Go(func() { p.pump(near, far) })
	both.Go(func() { p.pump(far, near) })
	both.Wait()
}

// hold registers a connection for Reset; it closes the connection if the proxy is closed.
func (p *Proxy) hold(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Proxy) drop(conn net.Conn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	conn.Close()
}

// piece is a part of a stream that is under way.
type piece struct {
	bytes []byte
	due   time.Time
}

// pump passes one direction on: what was read waits for its time in a line, so that a delay costs time but not throughput.
func (p *Proxy) pump(from, to net.Conn) {
	line := make(chan piece, 1024)
	var reader sync.WaitGroup
	ended := make(chan struct{})
	reader.Go(func() {
		defer close(line)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				select {
				case line <- piece{buf[:n], p.due()}:
				case <-ended:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for next := range line {
		if !p.await(time.Until(next.due)) {
			break
		}
		if _, err := to.Write(next.bytes); err != nil {
			break
		}
	}
	close(ended)
	from.Close()
	to.Close()
	reader.Wait()
}

// due says when a piece that came now may go on.
func (p *Proxy) due() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	delay := p.shape.Delay
	if p.shape.Jitter > 0 {
		delay += time.Duration(p.rng.Int64N(int64(p.shape.Jitter)))
	}
	if p.shape.StallPermille > 0 && p.rng.IntN(1000) < p.shape.StallPermille {
		delay += p.shape.Stall
	}
	return time.Now().Add(delay)
}

// await waits for a delay, then until there is no cut; it returns false when the proxy is closed.
func (p *Proxy) await(delay time.Duration) bool {
	if delay > 0 && wait(delay, p.done) != nil {
		return false
	}
	for {
		p.mu.Lock()
		cut, changed := p.cut, p.changed
		p.mu.Unlock()
		if !cut {
			return true
		}
		select {
		case <-changed:
		case <-p.done:
			return false
		}
	}
}
