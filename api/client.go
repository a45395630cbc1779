package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// How long the client waits. A healthy server on a busy machine answers Status in milliseconds.
const (
	probeStagger   = 100 * time.Millisecond // before the next server is asked too
	probePatience  = 1 * time.Second        // for an answer by a server with a quorum, once another one has answered
	dialPatience   = 4 * time.Second        // for any answer at all
	callPatience   = 10 * time.Second       // of a unary call at one server
	callBudget     = 30 * time.Second       // of a call with its repetitions at other servers
	streamSilence  = 1 * time.Second        // of a following stream, which says something four times as often, before another server is asked
	silenceMost    = 2 * time.Second        // the same, after others were silent too
	absence        = 15 * time.Second       // that whoever follows something bears since it last heard of it: all servers may be starting again
	absenceFirst   = 5 * time.Millisecond   // before servers are looked for again meanwhile
	absencePause   = 200 * time.Millisecond // the same, at most: it doubles each time
	callSilence    = 1 * time.Second        // of a unary call, and of its server's status, before another server is asked
	maxMessageSize = 16 << 20
)

// ParseAddrs splits a comma-separated list of addresses, each "unix:///path/api.sock", an absolute path, or host:port.
func ParseAddrs(list string) ([]string, error) {
	var out []string
	for _, a := range strings.Split(list, ",") {
		a = strings.TrimSpace(a)
		if a == "" {
			continue
		}
		switch {
		case strings.HasPrefix(a, "unix:///"):
		case strings.HasPrefix(a, "/"):
			a = "unix://" + a
		default:
			if _, _, err := net.SplitHostPort(a); err != nil {
				return nil, fmt.Errorf("address %q is neither unix:///path nor host:port", a)
			}
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, errors.New("the list of addresses is empty")
	}
	return out, nil
}

// Client talks to a cluster through one of its servers, the current one. It is safe for concurrent use.
type Client struct {
	addrs []string
	tls   *tls.Config // for addresses on TCP; nil: Unix sockets only

	mu      sync.Mutex // protects what follows
	conns   map[string]*grpc.ClientConn
	current string
	alone   string // name of the current server if it had no quorum when it was chosen
}

// Dial chooses a server among those of a comma-separated list (see ParseAddrs): the first that answers and has a quorum, else the first that
// answers. The error has code UNAVAILABLE if none does. It reaches Unix sockets only: see DialTLS.
func Dial(ctx context.Context, list string) (*Client, error) { return DialTLS(ctx, list, nil) }

// DialTLS is Dial with a certificate to show on TCP, where no server talks to a client without one.
func DialTLS(ctx context.Context, list string, cfg *tls.Config) (*Client, error) {
	addrs, err := ParseAddrs(list)
	if err != nil {
		return nil, err
	}
	c := &Client{addrs: addrs, tls: cfg, conns: make(map[string]*grpc.ClientConn)}
	if err := c.choose(ctx, ""); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close gives up all connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns, c.current = nil, ""
}

// Addr returns the current server's address.
func (c *Client) Addr() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// API returns the current server's service. Calls through it are not repeated elsewhere.
func (c *Client) API() CellvisorClient {
	c.mu.Lock()
	addr := c.current
	c.mu.Unlock()
	conn, err := c.conn(addr)
	if err != nil {
		return NewCellvisorClient(deadConn{err})
	}
	return NewCellvisorClient(conn)
}

// At returns the service of the server at one address of the list. Calls through it are not repeated elsewhere.
func (c *Client) At(addr string) CellvisorClient {
	conn, err := c.conn(addr)
	if err != nil {
		return NewCellvisorClient(deadConn{err})
	}
	return NewCellvisorClient(conn)
}

func (c *Client) conn(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		return nil, status.Error(codes.Canceled, "the client is closed")
	}
	if conn := c.conns[addr]; conn != nil {
		return conn, nil
	}
	conn, err := connect(addr, c.tls)
	if err == nil {
		c.conns[addr] = conn
	}
	return conn, err
}

func connect(addr string, cfg *tls.Config) (*grpc.ClientConn, error) {
	target, creds := addr, insecure.NewCredentials()
	if !strings.HasPrefix(addr, "unix:") {
		if cfg == nil {
			return nil, status.Errorf(codes.Unauthenticated,
				"%s asks for a certificate: name yours with --context FILE, or with --ca, --cert and --key; `cellvisor ca issue NAME --role operator` makes one", addr)
		}
		target, creds = "passthrough:///"+addr, credentials.NewTLS(cfg)
	}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageSize)))
}

// answer is what one server said to a probe.
type answer struct {
	addr string
	st   *StatusResponse
	err  error
}

// choose asks all servers for their status, one after the other with a short stagger, and makes the best one current. A server to avoid
// is asked last: it has just failed.
func (c *Client) choose(ctx context.Context, avoid string) error {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	order := make([]string, 0, len(c.addrs))
	for _, a := range c.addrs {
		if a != avoid {
			order = append(order, a)
		}
	}
	if len(order) < len(c.addrs) {
		order = append(order, avoid)
	}
	answers := make(chan answer, len(order))
	next := time.NewTimer(0)
	defer next.Stop()
	var settle <-chan time.Time
	var fallback *answer
	var firstErr error
	for asked, open := 0, len(order); open > 0; {
		select {
		case <-next.C:
			if asked < len(order) {
				go c.probe(ctx, order[asked], answers)
				asked++
				next.Reset(probeStagger)
			}
		case a := <-answers:
			open--
			switch {
			case a.err != nil:
				if firstErr == nil {
					firstErr = a.err
				}
				next.Reset(0)
			case a.st.GetQuorum() && a.st.GetServerState() == ServerState_SERVER_STATE_LIVE:
				c.setCurrent(a)
				return nil
			case fallback == nil:
				fallback = &a
				settle = time.After(probePatience)
			}
		case <-settle:
			open = 0
		case <-ctx.Done():
			open = 0
		}
	}
	if fallback != nil {
		c.setCurrent(*fallback)
		return nil
	}
	return c.unreachable(ctx, firstErr)
}

func (c *Client) unreachable(ctx context.Context, cause error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	why := "no answer"
	if cause != nil && status.Code(cause) != codes.DeadlineExceeded {
		why = certificateTrouble(Message(cause))
		if status.Code(cause) == codes.Unauthenticated {
			return cause
		}
	}
	return status.Errorf(codes.Unavailable, "no server of the cluster answers at %s (%s)", strings.Join(c.addrs, ", "), why)
}

// certificateTrouble puts into words what the two sides of a failed TLS handshake say.
func certificateTrouble(text string) string {
	switch {
	case strings.Contains(text, "remote error: tls:"):
		return "the server refuses this certificate: it has expired, was revoked, is of another cluster, or its authority is not trusted there; " + text
	case strings.Contains(text, "certificate refused:"):
		return "this client refuses the server's certificate: " + text
	}
	return text
}

func (c *Client) setCurrent(a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.alone = a.addr, ""
	if !a.st.GetQuorum() {
		c.alone = a.st.GetServer()
	}
}

// Alone returns the name of the current server if it had no contact with a quorum when it was chosen: it tells what it last knew. Else it returns "".
func (c *Client) Alone() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alone
}

func (c *Client) probe(ctx context.Context, addr string, out chan<- answer) {
	conn, err := c.conn(addr)
	if err != nil {
		out <- answer{addr: addr, err: err}
		return
	}
	st, err := NewCellvisorClient(conn).Status(ctx, &StatusRequest{})
	out <- answer{addr: addr, st: st, err: err}
}

// elsewhere tells whether another server may succeed where one failed with err.
func elsewhere(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted:
		return true
	}
	return false
}

// Call runs an idempotent call at the current server, and again at others as long as servers fail to answer. The caller's context
// bounds all of it; without a deadline of its own it is given half a minute.
func (c *Client) Call(ctx context.Context, call func(context.Context, CellvisorClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, callBudget)
	defer cancel()
	for attempt := 0; ; attempt++ {
		addr := c.Addr()
		actx, acancel := context.WithTimeoutCause(ctx, callPatience, errSilent)
		actx, leave := context.WithCancelCause(actx)
		over := c.watchOver(actx, addr, leave)
		err := call(actx, c.API())
		silent := err != nil && context.Cause(actx) == errSilent && ctx.Err() == nil
		over()
		acancel()
		if err == nil || ctx.Err() != nil || !(elsewhere(err) || silent) || attempt >= 2*len(c.addrs) {
			return err
		}
		if cerr := c.choose(ctx, addr); cerr != nil {
			return cerr
		}
	}
}

var errSilent = errors.New("the server does not answer")

// watchOver ends a call with errSilent when its server says nothing for long, not even how it is, while another one does: a server that stands
// still would otherwise be waited for. A server that is only slow with this call is left in peace.
func (c *Client) watchOver(ctx context.Context, addr string, leave context.CancelCauseFunc) (over func()) {
	ctx, cancel := context.WithCancel(ctx)
	if len(c.addrs) == 1 {
		return cancel
	}
	timer := time.AfterFunc(callSilence, func() {
		for ctx.Err() == nil {
			pctx, pcancel := context.WithTimeout(ctx, callSilence)
			own, others := make(chan answer, 1), make(chan answer, len(c.addrs))
			go c.probe(pctx, addr, own)
			for _, a := range c.addrs {
				if a != addr {
					go c.probe(pctx, a, others)
				}
			}
			<-pctx.Done()
			pcancel()
			if ctx.Err() != nil {
				return
			}
			if !anyAnswer(own) && anyGood(others) {
				leave(errSilent)
				return
			}
		}
	})
	return func() { timer.Stop(); cancel() }
}

func anyAnswer(own <-chan answer) bool {
	select {
	case a := <-own:
		return a.err == nil
	default:
		return false
	}
}

// anyGood tells whether a server that can serve is among those that have answered.
func anyGood(answers <-chan answer) bool {
	for {
		select {
		case a := <-answers:
			if a.err == nil && a.st.GetQuorum() && a.st.GetServerState() == ServerState_SERVER_STATE_LIVE {
				return true
			}
		default:
			return false
		}
	}
}

// deadConn fails every call with err.
type deadConn struct{ err error }

func (d deadConn) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return d.err }

func (d deadConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, d.err
}
