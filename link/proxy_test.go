package link

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// listenEcho returns the address of a server that sends everything back.
func listenEcho(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	return listener.Addr().String()
}

func newProxy(t *testing.T, target string) *Proxy {
	p, err := ListenProxy("127.0.0.1", target, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestProxyDelaysAndKeepsOrder(t *testing.T) {
	p := newProxy(t, listenEcho(t))
	p.Shape(Shape{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, StallPermille: 500, Stall: 5 * time.Millisecond})
	conn := intruder(t, p.Addr())
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	start := time.Now()
	go conn.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("what came back is not what was sent: %v", err)
	}
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("there and back took %v", took)
	}
}

func TestProxyCutsAndResets(t *testing.T) {
	p := newProxy(t, listenEcho(t))
	conn := intruder(t, p.Addr())
	echo := func(text string) error {
		if _, err := conn.Write([]byte(text)); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, len(text)))
		return err
	}
	if err := echo("before"); err != nil {
		t.Fatal(err)
	}
	p.Cut(true)
	conn.SetDeadline(time.Now().Add(30 * time.Millisecond))
	if err := echo("during"); err == nil {
		t.Error("something came through the cut")
	}
	p.Cut(false)
	conn.SetDeadline(time.Now().Add(testPatience))
	if _, err := io.ReadFull(conn, make([]byte, len("during"))); err != nil {
		t.Errorf("after the cut: %v", err)
	}
	p.Reset()
	mustBeClosed(t, conn)
}

// Both planes live through a network that stalls and breaks.
func TestPagesThroughABadNetwork(t *testing.T) {
	w := newWorld(t, 2, nil)
	p := newProxy(t, w.planes[1].Addr())
	p.Shape(Shape{Jitter: time.Millisecond, StallPermille: 50, Stall: 5 * time.Millisecond})
	w.members[1].Addr = p.Addr()
	w.connect()
	at := 0
	for i := range 20 {
		w.send(0, 1, 1, ident.PageNo(100+i))
		w.waitPage(1, 0, ident.PageNo(100+i))
		if _, _, err := w.planes[1].Request(0, 1, wire.DeviceConsole, []byte("x"), time.Now().Add(testPatience)); err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			p.Reset()
			at = w.rec[0].waitFor(t, at, "down", 1)
			at = w.rec[0].waitFor(t, at, "up", 1)
			w.rec[1].waitFor(t, 0, "up", 0)
		}
	}
}
