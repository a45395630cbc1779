package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// intruder is a bare connection to a plane.
func intruder(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testPatience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// mustBeClosed reads until the other side closes, and fails if it does not.
func mustBeClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection was not closed")
	}
}

func giantFrame() []byte {
	frame := wire.AppendFrame(nil, wire.FrameHeader{Type: wire.FrameHello}, nil)
	frame[4], frame[5], frame[6], frame[7] = 0xff, 0xff, 0xff, 0xff
	return frame
}

func giantEnvelope() []byte {
	frame, _ := wire.AppendEnvelope(nil, &wire.Envelope{Cluster: "test-cluster", Sender: 9, Kind: wire.EnvelopeHello})
	frame[4], frame[5], frame[6], frame[7] = 0xff, 0xff, 0xff, 0xff
	return frame
}

func TestStrangersAreDisconnected(t *testing.T) {
	w := newWorld(t, 2, func(_ int, cfg *PagesConfig) { cfg.HandshakeTimeout = 200 * time.Millisecond })
	w.connect()
	cfg := testPeersConfig(t, 1, newMailbox())
	cfg.HandshakeTimeout = 200 * time.Millisecond
	peers := listenPeers(t, cfg)
	garbage := bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 100)
	pagesBad := func() uint64 { return w.planes[1].Counters().BadHandshakes }
	peersBad := func() uint64 { return peers.Counters().BadHandshakes }
	for name, c := range map[string]struct {
		addr string
		say  []byte
		bad  func() uint64
	}{
		"pages: garbage":          {w.planes[1].Addr(), garbage, pagesBad},
		"pages: giant length":     {w.planes[1].Addr(), giantFrame(), pagesBad},
		"pages: silence":          {w.planes[1].Addr(), nil, pagesBad},
		"pages: other frame":      {w.planes[1].Addr(), wire.AppendFrame(nil, wire.FrameHeader{Type: wire.FramePing, VM: 7}, make([]byte, 8)), pagesBad},
		"pages: truncated hello":  {w.planes[1].Addr(), wire.AppendFrame(nil, wire.FrameHeader{Type: wire.FrameHello, VM: 7}, make([]byte, 50)), pagesBad},
		"monitor: garbage":        {peers.Addr(), garbage, peersBad},
		"monitor: giant length":   {peers.Addr(), giantEnvelope(), peersBad},
		"monitor: silence":        {peers.Addr(), nil, peersBad},
		"monitor: a page's frame": {peers.Addr(), giantFrame(), peersBad},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.bad()
			conn := intruder(t, c.addr)
			if _, err := conn.Write(c.say); err != nil {
				t.Fatal(err)
			}
			mustBeClosed(t, conn)
			waitCount(t, "bad handshakes", c.bad, before+1)
		})
	}
	w.send(0, 1, 1, 50) // the honest go on
	w.waitPage(1, 0, 50)
}

// dialAs runs the dialer's handshake with a page plane under an identity of the test's choice.
func dialAs(t *testing.T, addr string, who wire.Identity, secret string, toServer ident.ServerID, toPart ident.Part) (net.Conn, error) {
	conn := intruder(t, addr)
	hs := wire.NewHandshake(who, []byte(secret), newNonce())
	_, err := offer(conn, pageHello{}, hs, hs.Hello(toServer, toPart), time.Now().Add(testPatience))
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(testPatience))
	}
	return conn, err
}

func part0() wire.Identity {
	return wire.Identity{Plane: wire.PlanePages, Cluster: "test-cluster", Server: 100, VM: 7, Part: 0, Epoch: 1}
}

func TestImpostorsAreRefused(t *testing.T) {
	w := newWorld(t, 2, func(_ int, cfg *PagesConfig) { cfg.HandshakeTimeout = time.Second })
	w.setMembers(1, w.members, 1)
	for name, c := range map[string]struct {
		secret string
		spoil  func(i *wire.Identity)
	}{
		"wrong secret":  {"guess", func(i *wire.Identity) {}},
		"other cluster": {"secret of VM 7", func(i *wire.Identity) { i.Cluster = "other" }},
		"other VM":      {"secret of VM 7", func(i *wire.Identity) { i.VM = 8 }},
		"other server":  {"secret of VM 7", func(i *wire.Identity) { i.Server = 66 }},
		"no member":     {"secret of VM 7", func(i *wire.Identity) { i.Part = 5 }},
		"itself":        {"secret of VM 7", func(i *wire.Identity) { i.Part, i.Server = 1, 101 }},
		"later epoch":   {"secret of VM 7", func(i *wire.Identity) { i.Epoch = 99 }},
	} {
		t.Run(name, func(t *testing.T) {
			who := part0()
			c.spoil(&who)
			conn, err := dialAs(t, w.planes[1].Addr(), who, c.secret, 101, 1)
			if err == nil {
				t.Fatal("it was let in")
			}
			t.Log(err)
			if name != "wrong secret" { // there it is the dialer that notices and goes
				mustBeClosed(t, conn)
			}
		})
	}
	if w.planes[1].conns[0].Load() != nil {
		t.Error("an impostor is connected")
	}
}

// A member of the VM that has gone mad is disconnected and counted, and the plane lives on.
func TestMadMembersAreDisconnected(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.setMembers(1, w.members, 1)
	head := wire.FrameHeader{Type: wire.FramePages, VM: 7, Epoch: 1, From: 0}
	device := head
	device.Type = wire.FrameDevice
	ping := head
	ping.Type = wire.FramePing
	hello := head
	hello.Type = wire.FrameHello
	otherVM, otherPart := ping, ping
	otherVM.VM, otherPart.From = 8, 3
	var toOther wire.PagesWriter
	toOther.Add(&wire.PageMsg{Kind: wire.KindGetShared, VM: 7, From: 0, To: 9}, nil)
	bad := func() uint64 { return w.planes[1].Counters().BadFrames }
	other := func() uint64 { return w.planes[1].Counters().OtherVM }
	at := 0
	for name, c := range map[string]struct {
		say   []byte
		count func() uint64
	}{
		"garbage":          {bytes.Repeat([]byte{0xa5}, 100), bad},
		"giant length":     {giantFrame(), bad},
		"empty pages":      {wire.AppendFrame(nil, head, nil), bad},
		"bad pages":        {wire.AppendFrame(nil, head, make([]byte, 64)), bad},
		"to another part":  {toOther.Finish(head), bad},
		"bad device":       {wire.AppendFrame(nil, device, make([]byte, 64)), bad},
		"bad ping":         {wire.AppendFrame(nil, ping, make([]byte, 9)), bad},
		"a second hello":   {wire.AppendFrame(nil, hello, make([]byte, 9)), bad},
		"another VM":       {wire.AppendFrame(nil, otherVM, make([]byte, 8)), other},
		"as another part":  {wire.AppendFrame(nil, otherPart, make([]byte, 8)), other},
		"reply to nothing": {wire.AppendFrame(wire.AppendFrame(nil, device, wire.AppendDevice(nil, wire.DeviceMsg{ID: 1, Kind: 1, Reply: true})), ping, nil), bad},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.count()
			conn, err := dialAs(t, w.planes[1].Addr(), part0(), "secret of VM 7", 101, 1)
			if err != nil {
				t.Fatal(err)
			}
			at = w.rec[1].waitFor(t, at, "up", 0)
			if _, err := conn.Write(c.say); err != nil {
				t.Fatal(err)
			}
			mustBeClosed(t, conn)
			waitCount(t, "bad frames", c.count, before+1)
			at = w.rec[1].waitFor(t, at, "down", 0)
		})
	}
	w.setMembers(1, w.members, 0)
	w.rec[0].waitFor(t, 0, "up", 1)
	w.send(0, 1, 1, 60)
	w.waitPage(1, 0, 60)
}

// A handler that cannot make sense of a message has the connection dropped.
func TestHandlerMayRefuseAMessage(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.rec[1].pages = func(ident.Part, ident.Epoch, *wire.PageItems) error { return errors.New("no such page") }
	w.connect()
	w.send(0, 1, 1, 70)
	w.rec[0].waitFor(t, 0, "down", 1)
	waitCount(t, "bad frames", func() uint64 { return w.planes[1].Counters().BadFrames }, 1)
}

// The other end of a connection that we dialed may be anybody.
func TestFalseAcceptorsAreRefused(t *testing.T) {
	for name, serve := range map[string]func(conn net.Conn){
		"garbage": func(conn net.Conn) { conn.Write(bytes.Repeat([]byte("garbage "), 100)) },
		"giant":   func(conn net.Conn) { conn.Write(giantFrame()); conn.Write(giantEnvelope()) },
		"mirror":  func(conn net.Conn) { io.Copy(conn, conn) },
		"closes":  func(conn net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					conn.SetDeadline(time.Now().Add(testPatience))
					serve(conn)
					conn.Close()
				}
			}()
			w := newWorld(t, 1, nil)
			members := append(w.members, wire.WorkerMember{Part: 1, Server: 101, Addr: listener.Addr().String()})
			if err := w.planes[0].SetMembers(1, members); err != nil {
				t.Fatal(err)
			}
			b := newMailbox()
			p := listenPeers(t, testPeersConfig(t, 1, b))
			p.SetPeers(map[ident.ServerID]string{2: listener.Addr().String()})
			waitCount(t, "failed dials of the page plane", func() uint64 { return w.planes[0].Counters().DialFailures }, 2)
			waitCount(t, "failed dials of the monitor plane", func() uint64 { return p.Counters().DialFailures }, 2)
			w.planes[0].Close()
			p.Close()
		})
	}
}

func TestMonitorPlaneRefusesStrangersAndLiars(t *testing.T) {
	p, b := pair(t)
	dial := func(who wire.Identity, secret string) (net.Conn, error) {
		conn := intruder(t, p[1].Addr())
		hs := wire.NewHandshake(who, []byte(secret), newNonce())
		_, err := offer(conn, monitorHello{}, hs, hs.Hello(1, 0), time.Now().Add(testPatience))
		return conn, err
	}
	three := wire.Identity{Plane: wire.PlaneMonitor, Cluster: "test-cluster", Server: 3}
	other := three
	other.Cluster = "other"
	self := three
	self.Server = 1
	if _, err := dial(three, "guess"); err == nil {
		t.Error("a wrong secret is let in")
	}
	if _, err := dial(other, "secret of the cluster"); err == nil {
		t.Error("another cluster is let in")
	}
	if _, err := dial(self, "secret of the cluster"); err == nil {
		t.Error("somebody with our own id is let in")
	}
	nobody := three
	nobody.Server = 0
	for name, e := range map[string]wire.Envelope{
		"nobody's raft":   {Cluster: "test-cluster", Sender: 0, Kind: wire.EnvelopeRaft},
		"another sender":  {Cluster: "test-cluster", Sender: 2, Kind: wire.EnvelopeRaft},
		"another cluster": {Cluster: "other", Sender: 3, Kind: wire.EnvelopeRaft},
		"a stray reply":   {Cluster: "test-cluster", Sender: 3, Kind: wire.EnvelopeReply},
		"a second hello":  {Cluster: "test-cluster", Sender: 3, Kind: wire.EnvelopeHello},
	} {
		before := p[1].Counters().BadFrames
		who := three
		if e.Sender == 0 {
			who = nobody
		}
		conn, err := dial(who, "secret of the cluster")
		if err != nil {
			t.Fatal(err)
		}
		frame, _ := wire.AppendEnvelope(nil, &e)
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		mustBeClosed(t, conn)
		if p[1].Counters().BadFrames != before+1 {
			t.Errorf("%s was not counted", name)
		}
	}
	p[2].Send(1, wire.EnvelopeRaft, []byte("still here"))
	b[1].wait(t, 0, "kind 2 from 2 epoch 3 incarnation 20: still here")
}

func TestUnprovenConnectionsAreFew(t *testing.T) {
	cfg := testPeersConfig(t, 1, newMailbox())
	cfg.MaxUnauthenticated = 3
	p := listenPeers(t, cfg)
	for range 3 {
		intruder(t, p.Addr())
	}
	waitCount(t, "accepts", func() uint64 { return p.Counters().Accepts }, 3)
	mustBeClosed(t, intruder(t, p.Addr()))
	waitCount(t, "too many", func() uint64 { return p.Counters().TooMany }, 1)
	p.Close() // ends the three in their handshake at once
}
