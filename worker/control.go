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

	"github.com/cellvisor/cellvisor/wire"
)

// orphanAfter is how long a worker that has no serve goes on existing after its lease has lapsed. Until then a new serve may adopt it.
const orphanAfter = time.Minute

// control is the worker's end of the socket that serve supervises it by. Any number of serves may connect, one after the other; the latest
// one is told everything.
type control struct {
	listener *net.UnixListener
	log      zerolog.Logger
	greet    func() []wire.FromWorker // what each new connection is told first
	handle   func(wire.ToWorker)
	alone    func() // called when the connection has ended

	mu   sync.Mutex
	conn net.Conn  // protected by mu; nil while no serve is connected
	lost time.Time // protected by mu; when the last connection ended
}

// listenControl makes the control socket in the working directory: a socket's path has 107 bytes at most, a data directory may be deeper.
func listenControl(log zerolog.Logger, greet func() []wire.FromWorker, handle func(wire.ToWorker)) (*control, error) {
	const path = wire.WorkerCtlSocket
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &control{listener: l, log: log, greet: greet, handle: handle, lost: time.Now()}, nil
}

// serve accepts connections until the listener is closed.
func (c *control) serve() {
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
		go c.read(conn)
	}
}

// adopt makes conn the connection to serve.
func (c *control) adopt(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn = conn
	for _, m := range c.greet() {
		c.write(m)
	}
}

func (c *control) read(conn net.Conn) {
	defer c.drop(conn)
	for {
		var m wire.ToWorker
		if err := wire.ReadJSON(conn, &m, wire.JSONLimit); err != nil {
			if err != io.EOF && !errors.Is(err, net.ErrClosed) {
				c.log.Warn().Err(err).Msg("control connection ended")
			}
			return
		}
		c.handle(m)
	}
}

func (c *control) drop(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
		c.lost = time.Now()
		if c.alone != nil {
			c.alone()
		}
	}
}

// send tells serve, if one is connected, and whether one is. What matters beyond a connection is told again by greet.
func (c *control) send(m wire.FromWorker) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.write(m)
	}
	return c.conn != nil
}

// write requires mu. A serve that does not read for a second is treated as gone.
func (c *control) write(m wire.FromWorker) {
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	if err := wire.WriteJSON(c.conn, m); err != nil {
		c.log.Warn().Err(err).Msg("control connection lost")
		c.conn.Close() // its reader drops it
	}
}

// orphaned tells whether there has been no serve for too long.
func (c *control) orphaned() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn == nil && time.Since(c.lost) > orphanAfter
}

// processStartTime reads when this process started, in clock ticks since boot: field 22 of /proc/self/stat.
func processStartTime() (uint64, error) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, err
	}
	_, after, ok := strings.Cut(string(text), ") ") // the name in parentheses may hold spaces
	fields := strings.Fields(after)
	const index = 22 - 3 // after the third field
	if !ok || len(fields) <= index {
		return 0, fmt.Errorf("/proc/self/stat: unexpected text %q", text)
	}
	return strconv.ParseUint(fields[index], 10, 64)
}

// announce makes the ready message, which each serve that connects is told first.
func (w *Worker) announce() {
	started, err := processStartTime()
	if err != nil {
		w.fail(fmt.Errorf("own start time: %w", err))
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready = &wire.WorkerReady{VM: w.spec.VM, Part: w.spec.Part, PID: os.Getpid(), StartTime: started, PageAddr: w.plane.pages.Addr(), Replica: w.replica.plane.Addr(), NetAddr: w.netAddr()}
}
