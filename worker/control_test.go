package worker

import (
	"bufio"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// controlTest is a control without a listener, and what its serve sees.
type controlTest struct {
	*control
	t       *testing.T
	renewed chan ident.Micros
	handled chan wire.ToWorker
}

func newControlTest(t *testing.T, greet func() []wire.FromWorker) *controlTest {
	c := &controlTest{t: t, renewed: make(chan ident.Micros, 10), handled: make(chan wire.ToWorker)}
	c.control = &control{log: zerolog.Nop(), inbox: make(chan wire.ToWorker, controlInbox), greet: greet, alone: func() {}}
	c.renew = func(until ident.Micros) { c.renewed <- until }
	c.handle = func(m wire.ToWorker) { c.handled <- m } // waits until the test takes it
	go c.carryOut()
	t.Cleanup(func() { close(c.inbox) })
	return c
}

// connect is a serve that connects. It reads only when it is asked to.
func (c *controlTest) connect() (net.Conn, *bufio.Reader) {
	ours, theirs := net.Pipe()
	c.t.Cleanup(func() { theirs.Close() })
	c.adopt(ours)
	return theirs, bufio.NewReader(theirs)
}

func (c *controlTest) say(conn net.Conn, m wire.ToWorker) {
	c.t.Helper()
	if err := wire.WriteJSON(conn, m); err != nil {
		c.t.Fatal(err)
	}
}

func await[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal(what)
		panic("unreachable")
	}
}

// A lease is renewed however long the worker takes for what came before it, and nothing overtakes anything else.
func TestLeaseDoesNotWait(t *testing.T) {
	c := newControlTest(t, func() []wire.FromWorker { return nil })
	conn, _ := c.connect()
	c.say(conn, wire.ToWorker{Pause: &wire.WorkerPause{Seq: 1}})
	c.say(conn, wire.ToWorker{Members: &wire.WorkerMembers{Epoch: 1}})
	c.say(conn, wire.ToWorker{Lease: &wire.WorkerLease{UntilBootMicros: 7}})
	if until := await(t, c.renewed, "the lease waits"); until != 7 {
		t.Errorf("renewed until %d", until)
	}
	next, _ := c.connect() // another serve: what the first said is still carried out first
	c.say(next, wire.ToWorker{Members: &wire.WorkerMembers{Epoch: 2}})
	if m := await(t, c.handled, "the pause"); m.Pause == nil {
		t.Errorf("%+v", m)
	}
	for epoch := range ident.Epoch(2) {
		if m := await(t, c.handled, "members"); m.Members == nil || m.Members.Epoch != epoch+1 {
			t.Errorf("%+v", m)
		}
	}
}

// Whoever says something may hold a lock that greeting a new serve takes, and nobody waits for a serve that does not read.
func TestSayingWaitsForNobody(t *testing.T) {
	var mu sync.Mutex
	c := newControlTest(t, func() []wire.FromWorker {
		mu.Lock()
		defer mu.Unlock()
		return []wire.FromWorker{{Paused: &wire.WorkerPaused{Seq: 1}}}
	})
	if c.send(wire.FromWorker{}) {
		t.Error("said to nobody")
	}
	mu.Lock()
	_, in := c.connect()
	for seq := range uint64(100) {
		if !c.send(wire.FromWorker{Paused: &wire.WorkerPaused{Seq: seq + 2}}) {
			t.Fatal("there is a serve")
		}
	}
	mu.Unlock()
	for seq := range uint64(101) {
		var m wire.FromWorker
		if err := wire.ReadJSON(in, &m, wire.JSONLimit); err != nil || m.Paused == nil || m.Paused.Seq != seq+1 {
			t.Fatalf("message %d: %+v, %v", seq, m, err)
		}
	}

	// One that never reads is given up when too much waits for it.
	conn, _ := c.connect()
	for c.send(wire.FromWorker{}) {
	}
	if _, err := conn.Write([]byte{0}); err == nil {
		t.Error("the connection is still there")
	}
}
