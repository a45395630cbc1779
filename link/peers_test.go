package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// mailbox is a PeersHandler that keeps what it is told, and lets a test wait for it.
type mailbox struct {
	mu      sync.Mutex
	got     []string // "raft 2 body", "up 2", "down 2", "silent 2"
	changed chan struct{}
	refuse  func(e wire.Envelope) error
	request func(ctx context.Context, e wire.Envelope) (wire.EnvelopeKind, []byte, error)
}

func newMailbox() *mailbox { return &mailbox{changed: make(chan struct{})} }

func (b *mailbox) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, fmt.Sprintf(format, args...))
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *mailbox) HandleEnvelope(e wire.Envelope) error {
	if b.refuse != nil {
		if err := b.refuse(e); err != nil {
			return err
		}
	}
	b.note("kind %d from %d epoch %d incarnation %d: %s", e.Kind, e.Sender, e.Epoch, e.Incarnation, e.Body)
	return nil
}

func (b *mailbox) HandleRequest(ctx context.Context, e wire.Envelope) (wire.EnvelopeKind, []byte, error) {
	if b.request != nil {
		return b.request(ctx, e)
	}
	return wire.EnvelopeJoinReply, append([]byte("welcome "), e.Body...), nil
}

func (b *mailbox) PeerUp(id ident.ServerID) { b.note("up %d", id) }

func (b *mailbox) PeerDown(id ident.ServerID, reset bool) {
	if reset {
		b.note("down %d", id)
	} else {
		b.note("silent %d", id)
	}
}

// wait waits for an entry from index i on, and returns the index after it.
func (b *mailbox) wait(t testing.TB, i int, want string) int {
	t.Helper()
	timeout := time.After(testPatience)
	for {
		b.mu.Lock()
		changed := b.changed
		for ; i < len(b.got); i++ {
			if b.got[i] == want {
				b.mu.Unlock()
				return i + 1
			}
		}
		b.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for %q; got %q", want, b.all())
		}
	}
}

func (b *mailbox) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.got...)
}

func (b *mailbox) count() int { return len(b.all()) }

func testPeersConfig(t testing.TB, id ident.ServerID, h PeersHandler) PeersConfig {
	return PeersConfig{
		ClusterID: "test-cluster", Self: id, Secret: []byte("secret of the cluster"), ListenAddr: "127.0.0.1:0", Handler: h,
		Stamp: func() (ident.Incarnation, ident.Epoch) { return ident.Incarnation(10 * id), 3 },
		Logf:  func(format string, args ...any) { t.Logf("server %d: "+format, append([]any{id}, args...)...) },
	}
}

func listenPeers(t testing.TB, cfg PeersConfig) *Peers {
	t.Helper()
	p, err := ListenPeers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// pair returns two servers, 1 and 2, that know each other and are connected both ways.
func pair(t testing.TB) (p [3]*Peers, b [3]*mailbox) {
	for id := 1; id <= 2; id++ {
		b[id] = newMailbox()
		p[id] = listenPeers(t, testPeersConfig(t, ident.ServerID(id), b[id]))
	}
	p[1].SetPeers(map[ident.ServerID]string{1: p[1].Addr(), 2: p[2].Addr()})
	p[2].SetPeers(map[ident.ServerID]string{1: p[1].Addr(), 2: p[2].Addr()})
	b[1].wait(t, 0, "up 2")
	b[2].wait(t, 0, "up 1")
	return p, b
}

func TestPeersDeliverInOrder(t *testing.T) {
	p, b := pair(t)
	at := 0
	for i := range 100 {
		p[1].Send(2, wire.EnvelopeRaft, fmt.Appendf(nil, "n%d", i))
	}
	for i := range 100 {
		at = b[2].wait(t, at, fmt.Sprintf("kind %d from 1 epoch 3 incarnation 10: n%d", wire.EnvelopeRaft, i))
	}
	if p[1].Send(9, wire.EnvelopeRaft, nil) {
		t.Error("sent to a server that nobody knows")
	}
}

func TestPeersCarryLargeBodies(t *testing.T) {
	p, b := pair(t)
	body := bytes.Repeat([]byte("x"), wire.EnvelopeBodyLimit)
	var got int
	var mu sync.Mutex
	b[2].refuse = func(e wire.Envelope) error {
		mu.Lock()
		defer mu.Unlock()
		got = len(e.Body)
		return errors.New("seen")
	}
	if !p[1].Send(2, wire.EnvelopeMonitor, body) {
		t.Fatal("the largest body is refused")
	}
	if p[1].Send(2, wire.EnvelopeMonitor, append(body, 'x')) {
		t.Fatal("a body above the limit is taken")
	}
	waitCount(t, "refused", func() uint64 { return p[2].Counters().Refused }, 1)
	mu.Lock()
	defer mu.Unlock()
	if got != len(body) {
		t.Errorf("%d bytes arrived of %d", got, len(body))
	}
}

// What is large may take long, as long as the peer reads; one that reads nothing is given up.
func TestWriteWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		const pieces = 5
		read := make(chan error, 1)
		go func() {
			piece := make([]byte, writePiece)
			for range pieces {
				<-time.After(writePatience - time.Second)
				if _, err := io.ReadFull(theirs, piece); err != nil {
					read <- err
					return
				}
			}
			read <- nil
		}()
		if err := writeWhole(ours, make([]byte, pieces*writePiece)); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		if err := writeWhole(ours, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("nobody reads: %v", err)
		}
	})
}

func TestPeersReportResetAndReconnect(t *testing.T) {
	p, b := pair(t)
	addr := p[2].Addr()
	at := b[1].count()
	p[2].Close()
	at = b[1].wait(t, at, "down 2")
	cfg := testPeersConfig(t, 2, b[2])
	cfg.ListenAddr = addr
	q := listenPeers(t, cfg)
	at = b[1].wait(t, at, "up 2")
	p[1].Send(2, wire.EnvelopeMonitor, []byte("again"))
	b[2].wait(t, 0, "kind 3 from 1 epoch 3 incarnation 10: again")
	q.Close()
	b[1].wait(t, at, "down 2")
}

func TestPeersRemovedPeerIsSilent(t *testing.T) {
	p, b := pair(t)
	p[1].SetPeers(nil)
	p[2].SetPeers(nil)
	before := b[1].count()
	p[2].Close()
	p[1].Close()
	if n := b[1].count(); n != before {
		t.Errorf("a removed peer was reported: %q", b[1].got[before:])
	}
}

func TestCallReachesWhoeverListens(t *testing.T) {
	b := newMailbox()
	p := listenPeers(t, testPeersConfig(t, 1, b))
	joiner := listenPeers(t, testPeersConfig(t, 0, newMailbox())) // a server that has no id yet
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	e, err := joiner.Call(ctx, p.Addr(), wire.EnvelopeJoin, []byte("me"))
	if err != nil || e.Sender != 1 || e.Kind != wire.EnvelopeJoinReply || string(e.Body) != "welcome me" {
		t.Fatalf("got %+v, %v", e, err)
	}
	b.request = func(context.Context, wire.Envelope) (wire.EnvelopeKind, []byte, error) {
		return 0, nil, errors.New("cell c does not exist")
	}
	if _, err := joiner.Call(ctx, p.Addr(), wire.EnvelopeJoin, nil); !errors.Is(err, ErrRemote) || !bytes.Contains([]byte(err.Error()), []byte("cell c does not exist")) {
		t.Errorf("got %v", err)
	}
	if b.count() != 0 {
		t.Errorf("calls left hints behind: %q", b.all())
	}
}

func TestCallEndsWithItsContextAndWithClose(t *testing.T) {
	b := newMailbox()
	entered := make(chan struct{}, 2)
	b.request = func(ctx context.Context, e wire.Envelope) (wire.EnvelopeKind, []byte, error) {
		entered <- struct{}{}
		<-ctx.Done() // ends when the requester goes
		return 0, nil, ctx.Err()
	}
	p := listenPeers(t, testPeersConfig(t, 1, b))
	caller := listenPeers(t, testPeersConfig(t, 2, newMailbox()))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-entered
		cancel()
	}()
	if _, err := caller.Call(ctx, p.Addr(), wire.EnvelopeRequest, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() {
		<-entered
		caller.Close()
	}()
	if _, err := caller.Call(context.Background(), p.Addr(), wire.EnvelopeRequest, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestPeersDropOldestWhenFull(t *testing.T) {
	cfg := testPeersConfig(t, 1, newMailbox())
	cfg.QueueBytes = 3 * (envelopeCost + 2)
	p := listenPeers(t, cfg)
	q := newPeer(p, 2, "nowhere")
	defer q.remove()
	for i := range 5 {
		q.enqueue(outgoing{kind: wire.EnvelopeRaft, body: fmt.Appendf(nil, "n%d", i)})
	}
	var left []string
	for _, o := range q.takeAll() {
		left = append(left, string(o.body))
	}
	if fmt.Sprint(left) != "[n2 n3 n4]" || p.Counters().Dropped != 2 {
		t.Errorf("left %v, dropped %d", left, p.Counters().Dropped)
	}
}

func TestPeersCutIsABlackhole(t *testing.T) {
	p, b := pair(t)
	p[1].Cut(2, true)
	dropped := p[1].Counters().Dropped
	p[1].Send(2, wire.EnvelopeRaft, []byte("into the void"))
	p[2].Send(1, wire.EnvelopeRaft, []byte("from the void"))
	waitCount(t, "dropped", func() uint64 { return p[1].Counters().Dropped }, dropped+2)
	p[1].Cut(2, false)
	p[1].Send(2, wire.EnvelopeRaft, []byte("healed"))
	b[2].wait(t, 0, "kind 2 from 1 epoch 3 incarnation 10: healed")
	for _, got := range append(b[1].all(), b[2].all()...) {
		if bytes.Contains([]byte(got), []byte("void")) {
			t.Errorf("%q came through the cut", got)
		}
	}
}
