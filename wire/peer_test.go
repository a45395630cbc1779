package wire

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"pgregory.net/rapid"
)

func TestEnvelopesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 5).Draw(t, "envelopes")
		var stream []byte
		var want []Envelope
		for range n {
			e := Envelope{
				Cluster:     rapid.StringN(1, 16, ClusterIDLimit).Draw(t, "cluster"),
				Sender:      ident.ServerID(rapid.Uint64().Draw(t, "sender")),
				Incarnation: ident.Incarnation(rapid.Uint64().Draw(t, "incarnation")),
				Epoch:       ident.Epoch(rapid.Uint64().Draw(t, "epoch")),
				Kind:        EnvelopeKind(rapid.IntRange(1, int(envelopeKindEnd)-1).Draw(t, "kind")),
				Body:        rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "body"),
			}
			var err error
			if stream, err = AppendEnvelope(stream, &e); err != nil {
				t.Fatal(err)
			}
			want = append(want, e)
		}
		r := bytes.NewReader(stream)
		for _, e := range want {
			got, err := ReadEnvelope(r, EnvelopeBodyLimit)
			if err != nil || !bytes.Equal(got.Body, e.Body) {
				t.Fatalf("got %+v, %v; want %+v", got, err, e)
			}
			got.Body, e.Body = nil, nil
			if got.Cluster != e.Cluster || got.Sender != e.Sender || got.Incarnation != e.Incarnation || got.Epoch != e.Epoch || got.Kind != e.Kind {
				t.Fatalf("got %+v, want %+v", got, e)
			}
		}
		if _, err := ReadEnvelope(r, EnvelopeBodyLimit); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
	})
}

func TestEnvelopeRefuses(t *testing.T) {
	good, err := AppendEnvelope(nil, &Envelope{Cluster: "c", Sender: 1, Kind: EnvelopeRaft, Body: []byte("body")})
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"magic":          func(b []byte) []byte { b[1] = 'V'; return b },
		"version":        func(b []byte) []byte { b[2] = 9; return b },
		"kind zero":      func(b []byte) []byte { b[3] = 0; return b },
		"unknown kind":   func(b []byte) []byte { b[3] = byte(envelopeKindEnd); return b },
		"giant length":   func(b []byte) []byte { b[7] = 0xff; return b },
		"no cluster id":  func(b []byte) []byte { b[32] = 0; return b },
		"long id":        func(b []byte) []byte { b[32] = ClusterIDLimit + 1; return b },
		"padding":        func(b []byte) []byte { b[39] = 1; return b },
		"cut in header":  func(b []byte) []byte { return b[:20] },
		"cut in id":      func(b []byte) []byte { return b[:EnvelopeHeaderBytes] },
		"cut in body":    func(b []byte) []byte { return b[:len(b)-1] },
		"above my limit": func(b []byte) []byte { b[4] = 200; return append(b, make([]byte, 200)...) },
	} {
		_, err := ReadEnvelope(bytes.NewReader(spoil(bytes.Clone(good))), 100)
		if !errors.Is(err, ErrBadFrame) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := AppendEnvelope(nil, &Envelope{Kind: EnvelopeRaft}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("no cluster id: got %v", err)
	}
	if _, err := AppendEnvelope(nil, &Envelope{Cluster: "c", Kind: EnvelopeRaft, Body: make([]byte, EnvelopeBodyLimit+1)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("giant body: got %v", err)
	}
}

// allocated returns how many bytes f allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A peer that announces much and sends little costs little.
func TestLengthPrefixesAllocateNothingByThemselves(t *testing.T) {
	liar, _ := AppendEnvelope(nil, &Envelope{Cluster: "c", Sender: 1, Kind: EnvelopeRaft})
	liar[4], liar[5], liar[6], liar[7] = 0, 0, 0, 1 // 16 MiB
	if n := allocated(func() { ReadEnvelope(bytes.NewReader(liar), EnvelopeBodyLimit) }); n > 4*growStep {
		t.Errorf("an envelope without its body allocates %d bytes", n)
	}
	var v any
	if n := allocated(func() { ReadJSON(strings.NewReader("\x00\x00\x40\x00"), &v, JSONLimit) }); n > 4*growStep {
		t.Errorf("a control frame without its body allocates %d bytes", n)
	}
}

func FuzzEnvelope(f *testing.F) {
	seed, _ := AppendEnvelope(nil, &Envelope{Cluster: "c", Sender: 1, Kind: EnvelopeRaft, Body: []byte("body")})
	f.Add(seed)
	f.Add(append(seed, seed...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		for {
			left := r.Len()
			e, err := ReadEnvelope(r, EnvelopeBodyLimit)
			if err != nil {
				return
			}
			read := stream[len(stream)-left : len(stream)-r.Len()]
			again, err := AppendEnvelope(nil, &e)
			if err != nil || !bytes.Equal(again, read) {
				t.Fatalf("decoded %x, encoded %x, %v", read, again, err)
			}
		}
	})
}
