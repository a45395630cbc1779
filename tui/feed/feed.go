package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// Dialer connects to the control API at an address. The closer may be nil.
type Dialer func(addr string) (api.CellvisorClient, io.Closer, error)

// Config sets up a feed.
type Config struct {
	// Addrs is where to begin, at least one. The servers' own addresses are learned from the cluster; all are tried in turn when the
	// server in use fails.
	Addrs []string
	// Dial connects; required.
	Dial Dialer
	// Every is the least time between two updates; 0 means MinInterval.
	Every time.Duration
	// Interval is the time between two questions for what was asked for with Want; 0 means 500 ms.
	Interval time.Duration
	// CallTimeout is the time after which a server that says nothing is given up; 0 means 3 s. A server says something every second.
	CallTimeout time.Duration
}

// Feed follows the cluster and publishes. Its methods may be called from any goroutine.
type Feed struct {
	config  Config
	updates chan Update
	wake    chan struct{}

	// The following belong to the goroutine in Run.
	last       *Snapshot
	conn       Conn
	addrs      []string
	generation uint64
	world      world
	detail     detail
	events     eventLog
	// astraySince is when the server in use was first found without a quorum.
	astraySince time.Time

	mu sync.Mutex
	// client is the connection in use, nil between connections. protected by mu.
	client api.CellvisorClient
	closer io.Closer
	want   Want // protected by mu
}

// New returns a feed that does nothing until Run.
func New(c Config) *Feed {
	if c.Interval <= 0 {
		c.Interval = 500 * time.Millisecond
	}
	if c.Every <= 0 {
		c.Every = MinInterval
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = silence
	}
	return &Feed{
		config:  c,
		updates: make(chan Update, 1),
		wake:    make(chan struct{}, 1),
		addrs:   slices.Clone(c.Addrs),
	}
}

// Updates returns the channel of updates. It holds at most one, the newest.
func (f *Feed) Updates() <-chan Update { return f.updates }

// Refresh asks for what is wanted now, while the cluster is lost for an attempt to reconnect.
func (f *Feed) Refresh() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Want replaces what is asked for beyond the lists.
func (f *Feed) Want(w Want) {
	f.mu.Lock()
	changed := f.want != w
	f.want = w
	f.mu.Unlock()
	if changed && w != (Want{}) {
		f.Refresh()
	}
}

func (f *Feed) wanted() Want {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.want
}

// ErrNotConnected is returned for calls made while no server is known to answer.
var ErrNotConnected = errors.New("not connected to the cluster")

// Client returns the connection in use. It may fail at any time; callers repeat reads with a new one.
func (f *Feed) Client() (api.CellvisorClient, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.client == nil {
		return nil, ErrNotConnected
	}
	return f.client, nil
}

// Run follows the cluster until ctx ends. It closes its connections before it returns.
func (f *Feed) Run(ctx context.Context) {
	defer f.hangUp()
	for ctx.Err() == nil {
		err := f.session(ctx)
		f.next()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errAstray):
			f.astraySince = time.Time{}
			continue
		}
		f.conn.Err = err
		f.conn.Attempt++
		pause := Backoff(f.conn.Attempt)
		f.conn.RetryAt = time.Now().Add(pause)
		f.publish(Update{Snapshot: f.last, Conn: f.conn})
		f.pause(ctx, pause)
	}
}

func (f *Feed) connect() (api.CellvisorClient, error) {
	if client, err := f.Client(); err == nil {
		return client, nil
	}
	addr := f.addrs[0]
	f.conn.Addr = addr
	client, closer, err := f.config.Dial(addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.client, f.closer = client, closer
	return client, nil
}

// next gives up the connection and puts the next address in front.
func (f *Feed) next() {
	f.hangUp()
	f.addrs = append(f.addrs[1:], f.addrs[0])
}

func (f *Feed) hangUp() {
	f.mu.Lock()
	closer := f.closer
	f.client, f.closer = nil, nil
	f.mu.Unlock()
	if closer != nil {
		// Nothing can be done about a connection that does not close.
		_ = closer.Close()
	}
}

// learn keeps the addresses of the live servers for when the present one fails, the one in use first, the configured one always.
func (f *Feed) learn(s *Snapshot) {
	current := f.addrs[0]
	addrs := []string{current}
	add := func(a string) {
		if a != "" && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	// The server that answers is reachable as current already.
	for _, server := range s.Servers {
		if server.GetState() == api.ServerState_SERVER_STATE_LIVE && server.GetName() != s.Status.GetServer() {
			add(server.GetApiAddr())
		}
	}
	for _, a := range f.config.Addrs {
		add(a)
	}
	f.addrs = addrs
}

// astrayPatience is how long a server without a quorum is listened to before another one is tried.
const astrayPatience = 2 * time.Second

// publish replaces an update that was not taken yet.
func (f *Feed) publish(u Update) {
	select {
	case <-f.updates:
	default:
	}
	f.updates <- u
}

// pause waits for the pause to pass, or for a wake-up.
func (f *Feed) pause(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-f.wake:
	}
}
