package link

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

func TestSetMembersRefuses(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.connect()
	p := w.planes[0]
	w.setMembers(5, w.members, 0)
	w.setMembers(5, w.members, 0)
	for name, c := range map[string]struct {
		epoch   ident.Epoch
		members []wire.WorkerMember
		want    error
	}{
		"an older epoch": {4, w.members, ErrEpoch},
		"without itself": {6, w.members[1:], ErrSelf},
		"twice":          {6, append(w.members, w.members[1]), nil},
		"impossible":     {6, append(w.members, wire.WorkerMember{Part: ident.MaxParts}), nil},
	} {
		if err := p.SetMembers(c.epoch, c.members); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	w.send(0, 1, 1, 99) // the connection has lived through all of that
	w.waitPage(1, 0, 99)
}

func TestFramesOfAnotherEpochAreRefused(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.connect()
	w.setMembers(2, w.members, 1)
	w.send(0, 1, 1, 10)
	waitCount(t, "frames of another epoch", func() uint64 { return w.planes[1].Counters().OtherEpoch }, 1)
	_, status, err := w.planes[0].Request(1, 1, wire.DeviceConsole, nil, time.Now().Add(testPatience))
	if err != nil || status != wire.DeviceNotReady {
		t.Errorf("a request of an old epoch: status %d, %v", status, err)
	}
	w.setMembers(2, w.members, 0)
	w.send(0, 1, 2, 11)
	w.waitPage(1, 0, 11)
	for _, e := range w.rec[1].all() {
		if e.page == 10 {
			t.Errorf("a message of an old epoch was handled")
		}
	}
}

// A dialer that is ahead is let in only when the acceptor has caught up, so that it can send at once.
func TestPeerUpMeansSameEpoch(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.setMembers(3, w.members, 0)
	waitCount(t, "accepted connections", func() uint64 { return w.planes[1].Counters().Accepts }, 1)
	w.setMembers(3, w.members, 1)
	w.rec[0].waitFor(t, 0, "up", 1)
	w.send(0, 1, 3, 12)
	w.waitPage(1, 0, 12)
	if n := w.planes[1].Counters().OtherEpoch; n != 0 {
		t.Errorf("%d frames were refused for their epoch", n)
	}
}

func TestReconnectAfterReset(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.connect()
	w.planes[0].conns[1].Load().sock.shutdown()
	for i, r := range w.rec {
		at := r.waitFor(t, 0, "down", ident.Part(1-i))
		r.waitFor(t, at, "up", ident.Part(1-i))
	}
	w.send(0, 1, 1, 20)
	w.waitPage(1, 0, 20)
	w.send(1, 0, 1, 21)
	w.waitPage(0, 1, 21)
}

func TestPeerThatRestartsElsewhereIsDialedAnew(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.connect()
	w.planes[1].Close()
	w.rec[0].waitFor(t, 0, "down", 1)
	rec := newRecorder()
	cfg := testConfig(1, rec)
	cfg.Server = 555
	p, err := ListenPages(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	members := []wire.WorkerMember{w.members[0], {Part: 1, Server: 555, Addr: p.Addr()}}
	if err := p.SetMembers(2, members); err != nil {
		t.Fatal(err)
	}
	w.setMembers(2, members, 0)
	rec.waitFor(t, 0, "up", 0)
}

// Unwedge: whoever waits for a peer is released at once, whatever way the peer goes.
func TestRequestsEndWhenThePeerGoes(t *testing.T) {
	for name, c := range map[string]struct {
		part int // whose plane asks
		end  func(w *world)
		want error
	}{
		"removed":          {1, func(w *world) { w.setMembers(2, w.members[1:], 1) }, ErrPeerGone},
		"peer closes":      {1, func(w *world) { w.planes[0].Close() }, ErrReset},
		"connection reset": {1, func(w *world) { w.planes[0].conns[1].Load().sock.shutdown() }, ErrReset},
		"we close":         {1, func(w *world) { w.planes[1].Close() }, ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2, nil)
			asked := make(chan struct{}, 1)
			w.rec[0].device = func(ident.Part, DeviceRequest) { asked <- struct{}{} } // never answers
			w.connect()
			failed := make(chan error, 1)
			go func() {
				_, _, err := w.planes[c.part].Request(0, 1, wire.DeviceClock, nil, time.Now().Add(time.Hour))
				failed <- err
			}()
			<-asked
			c.end(w)
			select {
			case err := <-failed:
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			case <-time.After(testPatience):
				t.Fatal("the request still waits")
			}
		})
	}
}

func TestRequestBeforeTheConnection(t *testing.T) {
	w := newWorld(t, 2, nil)
	soon := time.Now().Add(20 * time.Millisecond)
	if _, _, err := w.planes[0].Request(1, 1, wire.DeviceClock, nil, soon); !errors.Is(err, ErrPeerGone) {
		t.Errorf("to a stranger: got %v", err)
	}
	w.setMembers(1, w.members, 0)
	if _, _, err := w.planes[0].Request(1, 1, wire.DeviceClock, nil, time.Now().Add(20*time.Millisecond)); !errors.Is(err, ErrDeadline) {
		t.Errorf("to an absent member: got %v", err)
	}
	failed := make(chan error, 1)
	go func() {
		_, _, err := w.planes[0].Request(1, 1, wire.DeviceClock, nil, time.Now().Add(time.Hour))
		failed <- err
	}()
	w.setMembers(1, w.members, 1)
	if err := <-failed; err != nil {
		t.Errorf("to a member that comes: got %v", err)
	}
}

func TestRequestKeepsItsDeadline(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.rec[0].device = func(ident.Part, DeviceRequest) {}
	w.connect()
	start := time.Now()
	_, _, err := w.planes[1].Request(0, 1, wire.DeviceClock, nil, start.Add(30*time.Millisecond))
	if took := time.Since(start); !errors.Is(err, ErrDeadline) || took < 30*time.Millisecond {
		t.Errorf("got %v after %v", err, took)
	}
}

func TestRepliesMayComeLaterAndFromAnywhere(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.rec[0].device = func(_ ident.Part, r DeviceRequest) {
		text := append([]byte("late "), r.Payload...)
		go r.Reply(wire.DeviceBad, text)
	}
	notified := make(chan string, 1)
	w.rec[1].device = func(_ ident.Part, r DeviceRequest) {
		r.Reply(wire.DeviceOK, nil) // nobody waits for it
		notified <- string(r.Payload)
	}
	w.connect()
	got, status, err := w.planes[1].Request(0, 1, wire.DeviceGeneric, []byte("x"), time.Now().Add(testPatience))
	if err != nil || status != wire.DeviceBad || string(got) != "late x" {
		t.Errorf("got %q, %d, %v", got, status, err)
	}
	if !w.planes[0].Notify(1, 1, wire.DeviceGeneric, []byte("note")) || <-notified != "note" {
		t.Error("the notice was lost")
	}
}

// A peer that does not read must never block a sender: two workers that wait for each other's sockets wait for ever.
func TestSendNeverBlocks(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, 2, func(part int, cfg *PagesConfig) { cfg.OverflowBytes = 4 << 20 })
	w.rec[1].pages = func(ident.Part, ident.Epoch, *wire.PageItems) error {
		<-release
		return nil
	}
	w.connect()
	defer close(release)
	o := w.planes[0].NewOutbox()
	contents := make([]byte, ident.PageSize)
	for w.planes[0].Counters().Overflows == 0 {
		for range 64 {
			o.Add(&wire.PageMsg{Kind: wire.KindData, Flags: wire.FlagContents, To: 1}, contents)
		}
		o.Flush(1)
		if sent := w.planes[0].Counters().BytesOut; sent > 1<<30 {
			t.Fatalf("%d bytes went to a peer that reads nothing", sent)
		}
	}
	w.rec[0].waitFor(t, 0, "down", 1)
	if w.planes[0].Counters().Queued == 0 {
		t.Error("nothing was queued")
	}
}

// What went through the queue arrives whole and in order.
func TestQueuedFramesArriveInOrder(t *testing.T) {
	const n = 4000 // 16 MiB: more than both sockets' buffers, less than the queue besides
	release := make(chan struct{})
	done := make(chan error, 1)
	next := ident.PageNo(0)
	w := newWorld(t, 2, func(part int, cfg *PagesConfig) { cfg.OverflowBytes = 64 << 20 })
	w.rec[1].pages = func(_ ident.Part, _ ident.Epoch, items *wire.PageItems) error {
		<-release
		var m wire.PageMsg
		for body, ok := items.Next(&m); ok; body, ok = items.Next(&m) {
			if m.Page != next || body[0] != byte(next) || body[ident.PageSize-1] != byte(next) {
				done <- fmt.Errorf("page %d, filled with %d, instead of %d", m.Page, body[0], next)
				return nil
			}
			if next++; next == n {
				done <- nil
			}
		}
		return nil
	}
	w.connect()
	o := w.planes[0].NewOutbox()
	contents := make([]byte, ident.PageSize)
	for i := range n {
		for j := range contents {
			contents[j] = byte(i)
		}
		o.Add(&wire.PageMsg{Kind: wire.KindData, Flags: wire.FlagContents, To: 1, Page: ident.PageNo(i)}, contents)
		if i%7 == 0 {
			o.Flush(1)
		}
		if i == n/2 {
			close(release)
		}
	}
	o.Flush(1)
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(testPatience):
		t.Fatal("the last page has not come")
	}
	t.Logf("%d sends were queued", w.planes[0].Counters().Queued)
}

func TestCutIsABlackhole(t *testing.T) {
	w := newWorld(t, 2, func(part int, cfg *PagesConfig) { cfg.SilentAfter = 20 * time.Millisecond })
	w.connect()
	w.planes[0].Cut(1, true)
	w.send(0, 1, 1, 30)
	w.send(1, 0, 1, 31)
	at := w.rec[0].waitFor(t, 0, "silent", 1)
	w.rec[1].waitFor(t, 0, "silent", 0)
	if _, _, err := w.planes[0].Request(1, 1, wire.DeviceClock, nil, time.Now().Add(20*time.Millisecond)); !errors.Is(err, ErrDeadline) {
		t.Errorf("a request through the cut: got %v", err)
	}
	w.planes[0].Cut(1, false)
	w.rec[0].waitFor(t, at, "up", 1)
	w.send(0, 1, 1, 32)
	w.waitPage(1, 0, 32)
	for _, r := range w.rec {
		for _, e := range r.all() {
			if e.page == 30 || e.page == 31 {
				t.Errorf("page %d came through the cut", e.page)
			}
		}
	}
}

// wrapper hides a connection's descriptor, as encryption would.
type wrapper struct{ net.Conn }

func TestWrappedConnectionsWork(t *testing.T) {
	w := newWorld(t, 2, func(part int, cfg *PagesConfig) {
		cfg.Wrap = func(conn net.Conn, dialer bool) (net.Conn, error) { return wrapper{conn}, nil }
	})
	w.connect()
	w.send(0, 1, 1, 40)
	w.waitPage(1, 0, 40)
	got, _, err := w.planes[0].Request(1, 1, wire.DeviceConsole, []byte("x"), time.Now().Add(testPatience))
	if err != nil || string(got) != "echo x" {
		t.Errorf("got %q, %v", got, err)
	}
}
