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
	// Interval is the time between polls while nothing happens; 0 means 500 ms.
	Interval time.Duration
	// CallTimeout bounds one poll; 0 means 2 s, the time after which a stopped server is given up.
	CallTimeout time.Duration
}

// Feed polls and publishes. Its methods may be called from any goroutine.
type Feed struct {
	config  Config
	updates chan Update
	wake    chan struct{}

	// The following belong to the goroutine in Run.
	last       *Snapshot
	conn       Conn
	addrs      []string
	generation uint64
	// astray counts the polls in a row that a server without a quorum answered.
	astray int

	mu sync.Mutex
	// client is the connection in use, nil between connections. protected by mu.
	client api.CellvisorClient
	closer io.Closer
	// watched is the name of the VM whose counters are wanted, "" for none. protected by mu.
	watched  string
	counters bool
	// events holds what the event stream brought. protected by mu.
	events eventLog
}

// New returns a feed that does nothing until Run.
func New(c Config) *Feed {
	if c.Interval <= 0 {
		c.Interval = 500 * time.Millisecond
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = 2 * time.Second
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

// Refresh asks for a poll now, while the cluster is lost an attempt to reconnect.
func (f *Feed) Refresh() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Watch asks for the counters of a VM in the following snapshots, "" for none.
func (f *Feed) Watch(vm string) {
	f.mu.Lock()
	changed := f.watched != vm
	f.watched = vm
	f.mu.Unlock()
	if changed && vm != "" {
		f.Refresh()
	}
}

// WatchCounters asks for the answering server's own counters, or no longer.
func (f *Feed) WatchCounters(on bool) {
	f.mu.Lock()
	changed := f.counters != on
	f.counters = on
	f.mu.Unlock()
	if changed && on {
		f.Refresh()
	}
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

// Run polls until ctx ends. It closes its connections before it returns.
func (f *Feed) Run(ctx context.Context) {
	var followers sync.WaitGroup
	followers.Go(func() { f.followEvents(ctx) })
	defer followers.Wait()
	defer f.hangUp()
	for ctx.Err() == nil {
		began := time.Now()
		snapshot, err := f.attempt(ctx)
		if ctx.Err() != nil {
			return
		}
		pause, wakeable := f.config.Interval, time.Duration(0)
		if err != nil {
			f.conn.Err = err
			f.conn.Attempt++
			pause = Backoff(f.conn.Attempt)
			f.conn.RetryAt = time.Now().Add(pause)
			f.next()
		} else {
			f.last = snapshot
			f.conn = Conn{Addr: f.conn.Addr}
			f.learn(snapshot)
			f.seekQuorum(snapshot)
			wakeable = MinInterval
		}
		f.publish(Update{Snapshot: f.last, Conn: f.conn})
		f.pause(ctx, pause-time.Since(began), wakeable-time.Since(began))
	}
}

// attempt makes sure of a connection and polls over it.
func (f *Feed) attempt(ctx context.Context) (*Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, f.config.CallTimeout)
	defer cancel()
	client, err := f.connect()
	if err != nil {
		return nil, err
	}
	return f.poll(ctx, client)
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

// astrayPolls is how often a server without a quorum is asked before another one is tried.
const astrayPolls = 4

// seekQuorum goes to another server when this one is cut off: it may be the only one that is.
func (f *Feed) seekQuorum(s *Snapshot) {
	if s.Status.GetQuorum() && s.Status.GetServerState() == api.ServerState_SERVER_STATE_LIVE {
		f.astray = 0
		return
	}
	if f.astray++; f.astray >= astrayPolls && len(f.addrs) > 1 {
		f.astray = 0
		f.next()
	}
}

// publish replaces an update that was not taken yet.
func (f *Feed) publish(u Update) {
	select {
	case <-f.updates:
	default:
	}
	f.updates <- u
}

// pause waits for the pause to pass, or for a wake-up, which counts once wakeable has passed.
func (f *Feed) pause(ctx context.Context, pause, wakeable time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	early := time.NewTimer(wakeable)
	defer early.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
		return
	case <-early.C:
	}
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-f.wake:
	}
}
