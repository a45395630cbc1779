package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// orphanAfter is how long a worker that has no serve goes on existing after its lease has lapsed. Until then a new serve may adopt it.
const orphanAfter = time.Minute

// control is the worker's end of the socket that serve supervises it by. Any number of serves may connect, one after the other; the latest
// one is told everything.
//
//	serve ──lease────────────────────────────▶ renew, at once
//	      ──everything else──▶ inbox ────────▶ handle, one after the other: this may take seconds
//	      ◀──────────────────── queue ◀─────── send, which never waits
//
// So a lease does not lapse while something else is carried out, and whoever has something to say may hold any lock.
type control struct {
	listener *net.UnixListener
	log      zerolog.Logger
	greet    func() []wire.FromWorker // what each new connection is told first
	renew    func(until ident.Micros)
	handle   func(wire.ToWorker)
	alone    func() // called when a connection has ended
	inbox    chan wire.ToWorker

	mu   sync.Mutex // a leaf
	now  *talk      // protected by mu; nil while no serve is connected
	lost time.Time  // protected by mu; when the last connection ended
}

// talk is one connection to serve.
type talk struct {
	conn  net.Conn
	queue []wire.FromWorker // protected by control.mu; not written yet
	more  chan struct{}     // holds a token when the queue has grown
	over  chan struct{}     // closed by its reader
}

const (
	controlInbox  = 256             // messages that wait to be carried out; then serve has to wait
	controlQueue  = 1024            // messages that wait for serve to read them; then it is treated as gone
	writePatience = 5 * time.Second // for serve to read one
)

// listenControl makes the control socket in the working directory: a socket's path has 107 bytes at most, a data directory may be deeper.
func listenControl(log zerolog.Logger) (*control, error) {
	const path = wire.WorkerCtlSocket
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &control{listener: l, log: log, inbox: make(chan wire.ToWorker, controlInbox), lost: time.Now()}, nil
}

// serve accepts connections until the listener is closed.
func (c *control) serve() {
	go c.carryOut()
	for {
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			return
		}
		if err := fromServe(conn); err != nil {
			c.log.Warn().Err(err).Msg("a stranger at the control socket")
			conn.Close()
			continue
		}
		c.adopt(conn)
	}
}

// carryOut does what serves say, for as long as the process lives.
func (c *control) carryOut() {
	for m := range c.inbox {
		c.handle(m)
	}
}

// adopt makes conn the connection to serve.
func (c *control) adopt(conn net.Conn) {
	t := &talk{conn: conn, more: make(chan struct{}, 1), over: make(chan struct{})}
	c.mu.Lock()
	before := c.now
	c.now = t
	c.mu.Unlock()
	if before != nil {
		before.conn.Close()
		c.alone()
	}
	go c.write(t)
	go c.read(t)
}

func (c *control) read(t *talk) {
	defer c.drop(t)
	for {
		var m wire.ToWorker
		if err := wire.ReadJSON(t.conn, &m, wire.JSONLimit); err != nil {
			if err != io.EOF && !errors.Is(err, net.ErrClosed) {
				c.log.Warn().Err(err).Msg("control connection ended")
			}
			return
		}
		if m.Lease != nil {
			c.renew(m.Lease.UntilBootMicros)
			continue
		}
		c.inbox <- m
	}
}

func (c *control) drop(t *talk) {
	t.conn.Close()
	close(t.over)
	c.mu.Lock()
	ours := c.now == t
	if ours {
		c.now, c.lost = nil, time.Now()
	}
	c.mu.Unlock()
	if ours {
		c.alone()
	}
}

// send tells serve, if one is connected, and whether one is. What matters beyond a connection is told again by greet. It does not wait.
func (c *control) send(m wire.FromWorker) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.now
	if t == nil {
		return false
	}
	if len(t.queue) >= controlQueue {
		c.log.Warn().Int("messages", len(t.queue)).Msg("serve reads nothing: control connection given up")
		t.conn.Close() // its reader drops it
		return true
	}
	t.queue = append(t.queue, m)
	select {
	case t.more <- struct{}{}:
	default:
	}
	return true
}

// write is the thread that writes to a connection: first what every new one is told, then what is sent. Whatever changes meanwhile is sent after it.
func (c *control) write(t *talk) {
	next := c.greet()
	for {
		for _, m := range next {
			_ = t.conn.SetWriteDeadline(time.Now().Add(writePatience))
			if err := wire.WriteJSON(t.conn, m); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					c.log.Warn().Err(err).Msg("control connection lost")
				}
				t.conn.Close() // its reader drops it
				return
			}
		}
		select {
		case <-t.more:
		case <-t.over:
			return
		}
		c.mu.Lock()
		next, t.queue = t.queue, nil
		c.mu.Unlock()
	}
}

// orphaned tells whether there has been no serve for too long.
func (c *control) orphaned() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now == nil && time.Since(c.lost) > orphanAfter
}

// identity reads the PID of this process as others see it, who are not in its PID namespace, and when it started, in clock ticks since boot: fields 1 and 22 of
// /proc/self/stat.
func identity() (pid int, started uint64, err error) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, err
	}
	before, after, ok := strings.Cut(string(text), ") ") // the name in parentheses may hold spaces
	fields := strings.Fields(after)
	const index = 22 - 3 // after the third field
	if !ok || len(fields) <= index {
		return 0, 0, fmt.Errorf("/proc/self/stat: unexpected text %q", text)
	}
	number, _, _ := strings.Cut(before, " ")
	if pid, err = strconv.Atoi(number); err != nil {
		return 0, 0, fmt.Errorf("/proc/self/stat: unexpected text %q", text)
	}
	started, err = strconv.ParseUint(fields[index], 10, 64)
	return pid, started, err
}

// announce makes the ready message, which each serve that connects is told first.
func (w *Worker) announce() {
	pid, started, err := identity()
	if err != nil {
		w.fail(fmt.Errorf("own process: %w", err))
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready = &wire.WorkerReady{VM: w.spec.VM, Part: w.spec.Part, PID: pid, StartTime: started, PageAddr: w.plane.pages.Addr(), Replica: w.replica.plane.Addr(), NetAddr: w.netAddr(), Level: levelOf(w.spec), Turns: true}
}
