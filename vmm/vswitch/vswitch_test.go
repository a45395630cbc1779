package vswitch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

const patience = time.Minute

// guest is one end of a segment.
type guest struct {
	t        *testing.T
	vm       ident.VMID
	port     *Port
	listener *Listener
	got      chan []byte
}

func key(a, b ident.VMID) []byte { return fmt.Appendf(nil, "key of %d and %d", min(a, b), max(a, b)) }

func newGuests(t *testing.T, n int) []*guest {
	t.Helper()
	var all []*guest
	for i := range n {
		g := &guest{t: t, vm: ident.VMID(i + 1), got: make(chan []byte, 4096)}
		var err error
		if g.listener, err = Listen(g.vm, "127.0.0.1"); err != nil {
			t.Fatal(err)
		}
		g.port = NewPort(g.vm, "lan", func(frame []byte) bool { g.got <- frame; return true })
		g.listener.Add(g.port)
		t.Cleanup(func() { g.listener.Close(); g.port.Close() })
		all = append(all, g)
	}
	join(all, all)
	return all
}

// join tells guests about all.
func join(tell, all []*guest) {
	for _, g := range tell {
		var peers []Peer
		for _, o := range all {
			peers = append(peers, Peer{VM: o.vm, Addr: o.listener.Addr(), Key: key(g.vm, o.vm)})
		}
		g.listener.SetPeers("lan", peers)
	}
}

func frame(to, from byte, text string) []byte {
	f := make([]byte, minFrame, 100)
	f[0], f[5], f[6], f[11] = 2, to, 2, from
	if to == 0xff {
		copy(f, "\xff\xff\xff\xff\xff\xff")
	}
	return append(f, text...)
}

func (g *guest) want(f []byte) {
	g.t.Helper()
	for {
		select {
		case got := <-g.got:
			if bytes.Equal(got, f) {
				return
			}
		case <-time.After(patience):
			g.t.Fatalf("VM %d did not get %q", g.vm, f)
		}
	}
}

func TestFramesFindTheirWay(t *testing.T) {
	all := newGuests(t, 3)
	all[0].port.Send(frame(0xff, 1, "who is there?"))
	all[1].want(frame(0xff, 1, "who is there?"))
	all[2].want(frame(0xff, 1, "who is there?"))
	all[2].port.Send(frame(1, 3, "me"))
	all[0].want(frame(1, 3, "me"))
	// From here on the address is known: nobody else hears.
	all[0].port.Send(frame(3, 1, "only you"))
	all[2].want(frame(3, 1, "only you"))
	all[0].port.Send(frame(0xff, 1, "all again"))
	select {
	case f := <-all[1].got:
		if !bytes.Equal(f, frame(0xff, 1, "all again")) {
			t.Errorf("VM 2 heard %q", f)
		}
	case <-time.After(patience):
		t.Fatal("nothing more came")
	}
}

func TestPeerThatMovesIsFoundAgain(t *testing.T) {
	all := newGuests(t, 2)
	all[1].port.Send(frame(0xff, 2, "hello"))
	all[0].want(frame(0xff, 2, "hello"))
	moved := &guest{t: t, vm: 2, got: make(chan []byte, 16)}
	var err error
	if moved.listener, err = Listen(2, "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	moved.port = NewPort(2, "lan", func(f []byte) bool { moved.got <- f; return true })
	moved.listener.Add(moved.port)
	t.Cleanup(func() { moved.listener.Close(); moved.port.Close() })
	join([]*guest{all[0], moved}, []*guest{all[0], moved})
	all[0].port.Send(frame(2, 1, "still there?"))
	moved.want(frame(2, 1, "still there?"))
}

// What is sent while a peer is on its way is there when it has arrived.
func TestFramesWaitForAPeerThatMoves(t *testing.T) {
	all := newGuests(t, 2)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	all[0].listener.SetPeers("lan", []Peer{{VM: 2, Addr: gone.Addr().String(), Key: key(1, 2)}})
	all[0].port.Send(frame(2, 1, "first"))
	all[0].port.Send(frame(2, 1, "second"))
	join(all[:1], all)
	all[1].want(frame(2, 1, "first"))
	all[1].want(frame(2, 1, "second"))
}

func TestStrangersAreNotHeard(t *testing.T) {
	all := newGuests(t, 2)
	all[0].port.Send(frame(0xff, 1, "up"))
	all[1].want(frame(0xff, 1, "up"))
	conn, err := net.Dial("tcp", all[1].listener.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := hello{from: 1, to: 2, segment: "lan"}
	if _, err := conn.Write(h.encode()); err != nil {
		t.Fatal(err)
	}
	forged := append(binary.LittleEndian.AppendUint16(nil, 64), make([]byte, 64)...)
	_, _ = conn.Write(forged)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1<<16)
	for err == nil { // the connection is closed, and nothing was delivered
		_, err = conn.Read(buf)
	}
	select {
	case f := <-all[1].got:
		t.Errorf("a stranger's frame was delivered: %q", f)
	default:
	}
	// The real one comes back.
	for {
		all[0].port.Send(frame(0xff, 1, "again"))
		select {
		case <-all[1].got:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestPortBoundsWhatItKeeps(t *testing.T) {
	all := newGuests(t, 2)
	for i := range maxLearned + 100 {
		f := frame(0xff, 0, "x")
		binary.BigEndian.PutUint32(f[7:], uint32(i))
		all[1].port.Send(f)
		if i%64 == 63 {
			all[0].want(f)
		}
	}
	all[0].port.mu.Lock()
	defer all[0].port.mu.Unlock()
	if n := len(all[0].port.learned); n > maxLearned {
		t.Errorf("%d addresses learned, at most %d are allowed", n, maxLearned)
	}
}

func FuzzHello(f *testing.F) {
	h := hello{from: 1, to: 2, segment: "lan"}
	f.Add(h.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := readHello(bytes.NewReader(b)); err == nil && (h.segment == "" || len(h.segment) > maxSegment) {
			t.Errorf("segment %q", h.segment)
		}
	})
}
