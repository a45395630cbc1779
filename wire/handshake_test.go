package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"pgregory.net/rapid"
)

// shake runs a handshake, each message going through the codec and then through meddle.
func shake(dialer, acceptor *Handshake, to Identity, meddle func(h *Hello)) error {
	pass := func(h Hello) *Hello {
		meddle(&h)
		got, err := ParseHello(AppendHello(nil, &h))
		if err != nil {
			panic(err)
		}
		return &got
	}
	challenge, err := acceptor.Challenge(pass(dialer.Hello(to.Server, to.Part)))
	if err != nil {
		return err
	}
	proof, err := dialer.Proof(pass(challenge))
	if err != nil {
		return err
	}
	accept, err := acceptor.Accept(pass(proof))
	if err != nil {
		return err
	}
	return dialer.Accepted(pass(accept))
}

func identities() (dialer, acceptor Identity) {
	return Identity{Plane: PlanePages, Cluster: "c", Server: 1, VM: 7, Part: 0, Epoch: 3}, Identity{Plane: PlanePages, Cluster: "c", Server: 2, VM: 7, Part: 1, Epoch: 3}
}

func TestHandshake(t *testing.T) {
	d, a := identities()
	secret := []byte("secret")
	honest := func(*Hello) {}
	if err := shake(NewHandshake(d, secret, Nonce{1}), NewHandshake(a, secret, Nonce{2}), a, honest); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(i *Identity){
		"plane":   func(i *Identity) { i.Plane = PlaneMonitor },
		"cluster": func(i *Identity) { i.Cluster = "other" },
		"VM":      func(i *Identity) { i.VM = 8 },
	} {
		other := d
		spoil(&other)
		if err := shake(NewHandshake(other, secret, Nonce{1}), NewHandshake(a, secret, Nonce{2}), a, honest); !errors.Is(err, ErrHandshake) {
			t.Errorf("another %s: got %v", name, err)
		}
	}
	for name, to := range map[string]Identity{"server": {Server: 9, Part: 1}, "part": {Server: 2, Part: 9}} {
		if err := shake(NewHandshake(d, secret, Nonce{1}), NewHandshake(a, secret, Nonce{2}), to, honest); !errors.Is(err, ErrHandshake) {
			t.Errorf("to another %s: got %v", name, err)
		}
	}
	if err := shake(NewHandshake(d, []byte("wrong"), Nonce{1}), NewHandshake(a, secret, Nonce{2}), a, honest); !errors.Is(err, ErrHandshake) {
		t.Errorf("another secret: got %v", err)
	}
	refuse := func(h *Hello) {
		if h.Step == StepAccept {
			*h = NewHandshake(a, secret, Nonce{}).Refuse("not a member")
		}
	}
	if err := shake(NewHandshake(d, secret, Nonce{1}), NewHandshake(a, secret, Nonce{2}), a, refuse); !errors.Is(err, ErrRefused) {
		t.Errorf("refused: got %v", err)
	}
}

// Whatever one bit of one message is turned over by somebody in between, one side notices.
func TestHandshakeNoticesEveryChange(t *testing.T) {
	d, a := identities()
	secret := []byte("secret")
	rapid.Check(t, func(t *rapid.T) {
		step := HelloStep(rapid.IntRange(1, int(StepAccept)).Draw(t, "step"))
		field := rapid.SampledFrom([]string{"epoch", "server", "toServer", "toPart", "part", "nonce", "mac", "step"}).Draw(t, "field")
		if step == StepHello && field == "mac" {
			t.Skip("a Hello has no MAC")
		}
		bit := rapid.IntRange(0, 255).Draw(t, "bit")
		err := shake(NewHandshake(d, secret, Nonce{1}), NewHandshake(a, secret, Nonce{2}), a, func(h *Hello) {
			if h.Step != step {
				return
			}
			switch field {
			case "epoch":
				h.From.Epoch ^= 1 << (bit % 64)
			case "server":
				h.From.Server ^= 1 << (bit % 64)
			case "toServer":
				h.ToServer ^= 1 << (bit % 64)
			case "toPart":
				h.ToPart ^= 1 << (bit % 6)
			case "part":
				h.From.Part ^= 1 << (bit % 6)
			case "nonce":
				h.Nonce[bit/8] ^= 1 << (bit % 8)
			case "mac":
				h.MAC[bit/8] ^= 1 << (bit % 8)
			case "step":
				h.Step = HelloStep(1 + (int(h.Step)+bit%3)%4)
			}
		})
		if err == nil {
			t.Fatalf("nobody noticed")
		}
	})
}

// A recorded handshake is of no use in another connection, and one side's messages are of no use against itself.
func TestHandshakeResistsReplayAndReflection(t *testing.T) {
	d, a := identities()
	secret := []byte("secret")
	var recorded []Hello
	if err := shake(NewHandshake(d, secret, Nonce{1}), NewHandshake(a, secret, Nonce{2}), a, func(h *Hello) { recorded = append(recorded, *h) }); err != nil {
		t.Fatal(err)
	}
	fresh := NewHandshake(a, secret, Nonce{3})
	if _, err := fresh.Challenge(&recorded[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Accept(&recorded[2]); !errors.Is(err, ErrHandshake) {
		t.Errorf("a replayed proof: got %v", err)
	}
	victim := NewHandshake(a, secret, Nonce{4})
	challenge, err := victim.Challenge(&recorded[0])
	if err != nil {
		t.Fatal(err)
	}
	challenge.Step = StepProof
	if _, err := victim.Accept(&challenge); !errors.Is(err, ErrHandshake) {
		t.Errorf("a reflected challenge: got %v", err)
	}
}

func drawHello(t *rapid.T) Hello {
	h := Hello{
		Step: HelloStep(rapid.IntRange(1, int(helloStepEnd)-1).Draw(t, "step")),
		From: Identity{
			Plane:   Plane(rapid.IntRange(1, int(planeEnd)-1).Draw(t, "plane")),
			Cluster: rapid.StringN(1, 16, ClusterIDLimit).Draw(t, "cluster"),
			Server:  ident.ServerID(rapid.Uint64().Draw(t, "server")),
			VM:      ident.VMID(rapid.Uint64().Draw(t, "vm")),
			Part:    ident.Part(rapid.IntRange(0, ident.MaxParts-1).Draw(t, "part")),
			Epoch:   ident.Epoch(rapid.Uint64().Draw(t, "epoch")),
		},
		ToServer: ident.ServerID(rapid.Uint64().Draw(t, "toServer")),
		ToPart:   ident.Part(rapid.IntRange(0, ident.MaxParts-1).Draw(t, "toPart")),
		Reason:   rapid.StringN(0, 50, reasonLimit).Draw(t, "reason"),
	}
	copy(h.Nonce[:], rapid.SliceOfN(rapid.Byte(), NonceBytes, NonceBytes).Draw(t, "nonce"))
	copy(h.MAC[:], rapid.SliceOfN(rapid.Byte(), macBytes, macBytes).Draw(t, "mac"))
	return h
}

// Encryption is on if either side wants it, both know the same keys, and whoever removes the wish on the way breaks the handshake.
func TestTrafficSecrets(t *testing.T) {
	d, a := identities()
	for _, c := range []struct{ dialer, acceptor bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		dialer, acceptor := NewHandshake(d, []byte("s"), Nonce{1}), NewHandshake(a, []byte("s"), Nonce{2})
		dialer.Seal, acceptor.Seal = c.dialer, c.acceptor
		if err := shake(dialer, acceptor, a, func(*Hello) {}); err != nil {
			t.Fatal(err)
		}
		if want := c.dialer || c.acceptor; dialer.Sealed() != want || acceptor.Sealed() != want {
			t.Errorf("%+v: sealed %v and %v", c, dialer.Sealed(), acceptor.Sealed())
		}
		d1, a1, err1 := dialer.TrafficSecrets([]byte("agreed"))
		d2, a2, err2 := acceptor.TrafficSecrets([]byte("agreed"))
		if err1 != nil || err2 != nil || !bytes.Equal(d1, d2) || !bytes.Equal(a1, a2) || bytes.Equal(d1, a1) {
			t.Errorf("%+v: secrets %x %x %x %x", c, d1, a1, d2, a2)
		}
		if other, _, _ := dialer.TrafficSecrets([]byte("different")); bytes.Equal(other, d1) {
			t.Error("what was agreed on does not count")
		}
		if dialer.Peer() != (Nonce{2}) || acceptor.Peer() != (Nonce{1}) {
			t.Error("nonces")
		}
		dialer, acceptor = NewHandshake(d, []byte("s"), Nonce{1}), NewHandshake(a, []byte("s"), Nonce{2})
		dialer.Seal, acceptor.Seal = c.dialer, c.acceptor
		err := shake(dialer, acceptor, a, func(h *Hello) { h.Sealed = false })
		if (c.dialer || c.acceptor) && !errors.Is(err, ErrHandshake) {
			t.Errorf("%+v: the wish was removed on the way: %v", c, err)
		}
	}
}

func TestHelloRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHello(t)
		encoded := AppendHello(nil, &h)
		if len(encoded) > HelloLimit {
			t.Fatalf("%d bytes", len(encoded))
		}
		if got, err := ParseHello(encoded); err != nil || got != h {
			t.Fatalf("got %+v, %v; want %+v", got, err, h)
		}
	})
}

func FuzzHello(f *testing.F) {
	d, _ := identities()
	hello := NewHandshake(d, []byte("s"), Nonce{1}).Hello(2, 1)
	f.Add(AppendHello(nil, &hello))
	f.Fuzz(fuzzHello)
}

func fuzzHello(t *testing.T, body []byte) {
	h, err := ParseHello(body)
	if err != nil {
		return
	}
	if again := AppendHello(nil, &h); !bytes.Equal(again, body) {
		t.Fatalf("decoded %x, encoded %x", body, again)
	}
	_, a := identities()
	side := NewHandshake(a, []byte("s"), Nonce{2})
	_, _ = side.Challenge(&h)
	if _, err := side.Accept(&h); err == nil {
		t.Fatal("a fuzzer guessed a MAC")
	}
	if side.Accepted(&h) == nil {
		t.Fatal("a fuzzer guessed a MAC")
	}
}
