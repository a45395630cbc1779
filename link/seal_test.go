package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
	"pgregory.net/rapid"
)

// pipeSocket is a socket whose other end is a buffer. It hands out at most some bytes at a time.
type pipeSocket struct {
	rawSocket
	bytes []byte
	most  int
}

func (s *pipeSocket) read(buf []byte) (int, error) {
	if len(s.bytes) == 0 {
		return 0, io.EOF
	}
	n := copy(buf, s.bytes[:min(len(s.bytes), s.most)])
	s.bytes = s.bytes[n:]
	return n, nil
}

func sealPair(t require, rekey uint64) (*sealer, *sealKey) {
	secret := bytes.Repeat([]byte{7}, wire.TrafficSecretBytes)
	out, err1 := newSealKey(secret)
	in, err2 := newSealKey(secret)
	if err1 != nil || err2 != nil {
		t.Fatalf("%v %v", err1, err2)
	}
	out.rekeyAt, in.rekeyAt = rekey, rekey
	return &sealer{key: out}, in
}

type require interface{ Fatalf(string, ...any) }

// Whatever the sizes of what is sent, read and received at a time, and however often the key changes, the stream arrives as it was.
func TestSealedStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, in := sealPair(t, rapid.Uint64Range(1, 5).Draw(t, "rekey"))
		var plain, sealed []byte
		for range rapid.IntRange(1, 12).Draw(t, "pieces") {
			piece := bytes.Repeat([]byte{byte(len(plain))}, rapid.SampledFrom([]int{1, 64, 4200, sealPlainLimit, sealPlainLimit + 1, 200_000}).Draw(t, "size"))
			out, err := s.seal(piece)
			if err != nil {
				t.Fatal(err)
			}
			plain, sealed = append(plain, piece...), append(sealed, out...)
		}
		sock := newSealedSocket(&pipeSocket{bytes: sealed, most: rapid.SampledFrom([]int{1 << 20, 5000, 100_000}).Draw(t, "chunk")}, in)
		var got []byte
		buf := make([]byte, rapid.SampledFrom([]int{100, 8192, 1 << 20}).Draw(t, "buffer"))
		for {
			n, err := sock.read(buf)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes arrived of %d", len(got), len(plain))
		}
	})
}

// A record that was changed, repeated, left out, moved or sent back is refused.
func TestSealedStreamRefuses(t *testing.T) {
	records := func(s *sealer) (out [][]byte) {
		for i := range 3 {
			r, err := s.seal(bytes.Repeat([]byte{byte(i)}, 100))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, bytes.Clone(r))
		}
		return out
	}
	for name, spoil := range map[string]func(r [][]byte) [][]byte{
		"a bit of the text":  func(r [][]byte) [][]byte { r[1][20] ^= 1; return r },
		"a bit of the tag":   func(r [][]byte) [][]byte { r[1][len(r[1])-1] ^= 1; return r },
		"a shorter length":   func(r [][]byte) [][]byte { r[1][0]--; return r },
		"an enormous length": func(r [][]byte) [][]byte { r[1][3] = 0xff; return r },
		"no contents":        func(r [][]byte) [][]byte { r[1][0] = sealTagBytes; return r },
		"repeated":           func(r [][]byte) [][]byte { return [][]byte{r[0], r[1], r[1]} },
		"left out":           func(r [][]byte) [][]byte { return [][]byte{r[0], r[2]} },
		"in another order":   func(r [][]byte) [][]byte { return [][]byte{r[1], r[0]} },
		"plain, not sealed":  func([][]byte) [][]byte { return [][]byte{giantFrame()} },
		"of another direction": func([][]byte) [][]byte {
			k, err := newSealKey(bytes.Repeat([]byte{8}, wire.TrafficSecretBytes))
			if err != nil {
				t.Fatal(err)
			}
			return records(&sealer{key: k})
		},
	} {
		s, in := sealPair(t, sealRekeyRecords)
		sock := newSealedSocket(&pipeSocket{bytes: bytes.Join(spoil(records(s)), nil), most: 1 << 20}, in)
		buf := make([]byte, 4096)
		var err error
		for err == nil {
			_, err = sock.read(buf)
		}
		if !errors.Is(err, wire.ErrBadFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tap relays connections to a target and keeps what passes.
type tap struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu   sync.Mutex
	seen bytes.Buffer // protected by mu
}

// Write implements io.Writer.
func (p *tap) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.Write(b)
}

func listenTap(t *testing.T, target string) *tap {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{listener: l, target: target}
	p.running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				near.Close()
				continue
			}
			pass := func(from, to net.Conn) {
				_, _ = io.Copy(io.MultiWriter(to, p), from)
				from.Close()
				to.Close()
			}
			p.running.Go(func() { pass(near, far) })
			p.running.Go(func() { pass(far, near) })
		}
	})
	return p
}

// On the wire of an encrypted connection nothing can be read; on that of another one it can, so the test would notice.
func TestEncryptedOnTheWire(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		w := newWorld(t, 2, func(part int, cfg *PagesConfig) { cfg.Seal = sealed && part == 1 }) // one side's wish is enough
		p := listenTap(t, w.planes[1].Addr())
		w.members[1].Addr = p.listener.Addr().String()
		w.connect()
		o := w.planes[0].NewOutbox()
		o.Add(&wire.PageMsg{Kind: wire.KindData, Flags: wire.FlagContents, To: 1, Page: 3}, bytes.Repeat([]byte("very private :-) "), ident.PageSize)[:ident.PageSize])
		o.Flush(1)
		w.waitPage(1, 0, 3)
		if c := w.planes[0].conns[1].Load(); c == nil || (c.sealer != nil) != sealed {
			t.Errorf("encryption is not %v", sealed)
		}
		for _, plane := range w.planes {
			plane.Close()
		}
		p.listener.Close()
		p.running.Wait()
		if readable := bytes.Contains(p.seen.Bytes(), []byte("very private")); readable == sealed {
			t.Errorf("encryption %v, contents readable %v", sealed, readable)
		}
	}
}
