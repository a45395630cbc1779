package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// The handshake of both planes: each side proves that it knows the secret (the VM's on the page plane, the cluster's on the monitor
// plane) without showing it.
//
//	dialer                                    acceptor
//	  Hello{who, whom, nonce}          ──▶
//	                                   ◀──    Challenge{who, nonce, MAC}
//	  Proof{MAC}                       ──▶
//	                                   ◀──    Accept{MAC}
//
// At any step the acceptor may answer Refuse{reason} and close. Each MAC is HMAC-SHA256 under the secret over the step's name and all
// messages before it, so that none can be replayed into another connection, or reflected to its sender.

// HelloStep is a message's place in the handshake.
type HelloStep uint8

// Steps of the handshake. Zero is none.
const (
	StepHello HelloStep = 1 + iota
	StepChallenge
	StepProof
	StepAccept
	StepRefuse
	helloStepEnd
)

// Plane tells the two planes apart, so that a proof for one is none for the other.
type Plane uint8

// Planes.
const (
	PlanePages Plane = 1 + iota
	PlaneMonitor
	planeEnd
)

// NonceBytes and macBytes are the sizes of a nonce and of a MAC. HelloLimit bounds an encoded Hello.
const (
	NonceBytes  = 32
	macBytes    = sha256.Size
	reasonLimit = 200
	helloFixed  = 40 + NonceBytes + macBytes
	HelloLimit  = helloFixed + ClusterIDLimit + reasonLimit
)

// Nonce is a number used once, from the operating system's randomness.
type Nonce [NonceBytes]byte

// Identity is who one side says that it is.
type Identity struct {
	Plane   Plane
	Cluster string
	Server  ident.ServerID
	VM      ident.VMID  // page plane
	Part    ident.Part  // page plane
	Epoch   ident.Epoch // of the VM or the view
}

// Hello is one message of the handshake.
type Hello struct {
	Step     HelloStep
	From     Identity
	ToServer ident.ServerID // whom the sender means to talk to; 0 on the monitor plane: whoever it is
	ToPart   ident.Part     // page plane
	Nonce    Nonce
	MAC      [macBytes]byte
	Reason   string // of a Refuse
}

// AppendHello appends the encoded message to dst. A reason is cut to its limit; an impossible cluster id panics: it is the caller's own.
func AppendHello(dst []byte, h *Hello) []byte {
	if len(h.From.Cluster) < 1 || len(h.From.Cluster) > ClusterIDLimit {
		panic("wire: cluster id of an impossible length")
	}
	reason := h.Reason[:min(len(h.Reason), reasonLimit)]
	dst = append(dst, byte(h.Step), byte(h.From.Plane), byte(h.From.Part), byte(h.ToPart), byte(len(h.From.Cluster)), byte(len(reason)), 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.From.Server))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.ToServer))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.From.VM))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.From.Epoch))
	dst = append(dst, h.Nonce[:]...)
	dst = append(dst, h.MAC[:]...)
	dst = append(dst, h.From.Cluster...)
	return append(dst, reason...)
}

// ParseHello decodes a handshake message.
func ParseHello(src []byte) (Hello, error) {
	if len(src) < helloFixed {
		return Hello{}, fmt.Errorf("wire: handshake message of %d bytes: %w", len(src), ErrBadFrame)
	}
	h := Hello{
		Step: HelloStep(src[0]),
		From: Identity{
			Plane:  Plane(src[1]),
			Part:   ident.Part(src[2]),
			Server: ident.ServerID(binary.LittleEndian.Uint64(src[8:])),
			VM:     ident.VMID(binary.LittleEndian.Uint64(src[24:])),
			Epoch:  ident.Epoch(binary.LittleEndian.Uint64(src[32:])),
		},
		ToPart:   ident.Part(src[3]),
		ToServer: ident.ServerID(binary.LittleEndian.Uint64(src[16:])),
	}
	idBytes, reasonBytes := int(src[4]), int(src[5])
	switch {
	case h.Step == 0 || h.Step >= helloStepEnd:
		return Hello{}, fmt.Errorf("wire: handshake message of unknown step %d: %w", src[0], ErrBadFrame)
	case h.From.Plane == 0 || h.From.Plane >= planeEnd:
		return Hello{}, fmt.Errorf("wire: handshake for unknown plane %d: %w", src[1], ErrBadFrame)
	case h.From.Part >= ident.MaxParts || h.ToPart >= ident.MaxParts:
		return Hello{}, fmt.Errorf("wire: handshake from part %d to %d: %w", src[2], src[3], ErrBadFrame)
	case idBytes < 1 || idBytes > ClusterIDLimit || reasonBytes > reasonLimit || src[6] != 0 || src[7] != 0:
		return Hello{}, fmt.Errorf("wire: handshake message with impossible lengths: %w", ErrBadFrame)
	case len(src) != helloFixed+idBytes+reasonBytes:
		return Hello{}, fmt.Errorf("wire: handshake message of %d bytes, its lengths say %d: %w", len(src), helloFixed+idBytes+reasonBytes, ErrBadFrame)
	}
	copy(h.Nonce[:], src[40:])
	copy(h.MAC[:], src[40+NonceBytes:])
	h.From.Cluster = string(src[helloFixed : helloFixed+idBytes])
	h.Reason = string(src[helloFixed+idBytes:])
	return h, nil
}

// Errors of a handshake. ErrHandshake is the other side's fault, ErrRefused its decision; the text says which and why.
var (
	ErrHandshake = errors.New("handshake failed")
	ErrRefused   = errors.New("refused by the other side")
)

// Handshake is the state of one side. It is pure: the caller moves the messages, and brings the nonce. Each method is one step, called
// once, in the order drawn above; an error ends the handshake.
type Handshake struct {
	self       Identity
	secret     []byte
	nonce      Nonce
	transcript []byte // all messages so far, MACs included
}

// NewHandshake starts a handshake of self. The secret is not copied.
func NewHandshake(self Identity, secret []byte, nonce Nonce) *Handshake {
	return &Handshake{self: self, secret: secret, nonce: nonce}
}

// Hello is the dialer's first message, to the given peer (server 0: whoever it is).
func (h *Handshake) Hello(toServer ident.ServerID, toPart ident.Part) Hello {
	m := Hello{Step: StepHello, From: h.self, ToServer: toServer, ToPart: toPart, Nonce: h.nonce}
	h.note(&m)
	return m
}

// Challenge is the acceptor's answer to a Hello. It refuses a Hello for another plane, cluster, VM, server or part; whether the sender
// is a member is for the caller to check, best after Accept, when it has proved something.
func (h *Handshake) Challenge(hello *Hello) (Hello, error) {
	if hello.Step != StepHello {
		return Hello{}, fmt.Errorf("wire: handshake starts with step %d: %w", hello.Step, ErrHandshake)
	}
	if err := h.sameWorld(&hello.From); err != nil {
		return Hello{}, err
	}
	if hello.ToServer != 0 && hello.ToServer != h.self.Server || hello.ToPart != h.self.Part {
		return Hello{}, fmt.Errorf("wire: the peer wants server %d part %s, this is server %d part %s: %w",
			hello.ToServer, hello.ToPart, h.self.Server, h.self.Part, ErrHandshake)
	}
	h.note(hello)
	m := Hello{Step: StepChallenge, From: h.self, ToServer: hello.From.Server, ToPart: hello.From.Part, Nonce: h.nonce}
	h.seal(&m)
	return m, nil
}

// Proof is the dialer's answer to a Challenge: afterwards it knows that the acceptor knows the secret.
func (h *Handshake) Proof(challenge *Hello) (Hello, error) {
	if err := h.check(challenge, StepChallenge); err != nil {
		return Hello{}, err
	}
	if err := h.sameWorld(&challenge.From); err != nil {
		return Hello{}, err
	}
	m := Hello{Step: StepProof, From: h.self, ToServer: challenge.From.Server, ToPart: challenge.From.Part, Nonce: h.nonce}
	h.seal(&m)
	return m, nil
}

// Accept is the acceptor's last message: afterwards it knows that the dialer knows the secret.
func (h *Handshake) Accept(proof *Hello) (Hello, error) {
	if err := h.check(proof, StepProof); err != nil {
		return Hello{}, err
	}
	m := Hello{Step: StepAccept, From: h.self, ToServer: proof.From.Server, ToPart: proof.From.Part, Nonce: h.nonce}
	h.seal(&m)
	return m, nil
}

// Accepted checks the acceptor's last message.
func (h *Handshake) Accepted(accept *Hello) error { return h.check(accept, StepAccept) }

// Refuse is the acceptor's way out at any step.
func (h *Handshake) Refuse(reason string) Hello {
	return Hello{Step: StepRefuse, From: h.self, Reason: reason}
}

func (h *Handshake) sameWorld(from *Identity) error {
	switch {
	case from.Plane != h.self.Plane:
		return fmt.Errorf("wire: the peer speaks plane %d, this is plane %d: %w", from.Plane, h.self.Plane, ErrHandshake)
	case from.Cluster != h.self.Cluster:
		return fmt.Errorf("wire: the peer is of cluster %q, this is cluster %q: %w", from.Cluster, h.self.Cluster, ErrHandshake)
	case from.VM != h.self.VM:
		return fmt.Errorf("wire: the peer is of VM %d, this is VM %d: %w", from.VM, h.self.VM, ErrHandshake)
	}
	return nil
}

// check verifies a sealed message of the given step and adds it to the transcript.
func (h *Handshake) check(m *Hello, step HelloStep) error {
	if m.Step == StepRefuse {
		return fmt.Errorf("wire: %w: %q", ErrRefused, m.Reason)
	}
	if m.Step != step {
		return fmt.Errorf("wire: handshake step %d, expected %d: %w", m.Step, step, ErrHandshake)
	}
	bare := *m
	bare.MAC = [macBytes]byte{}
	want := h.mac(&bare)
	if !hmac.Equal(m.MAC[:], want[:]) {
		return fmt.Errorf("wire: the peer (server %d) does not know the secret: %w", m.From.Server, ErrHandshake)
	}
	h.note(m)
	return nil
}

// seal sets the message's MAC and adds it to the transcript.
func (h *Handshake) seal(m *Hello) {
	m.MAC = h.mac(m)
	h.note(m)
}

// mac is the MAC of a message whose own MAC is zero, after the transcript. The message's encoding starts with its step, which keeps the
// two sides' MACs apart.
func (h *Handshake) mac(m *Hello) (sum [macBytes]byte) {
	mac := hmac.New(sha256.New, h.secret)
	mac.Write([]byte("cellvisor handshake 1\n"))
	mac.Write(h.transcript)
	mac.Write(AppendHello(nil, m))
	mac.Sum(sum[:0])
	return sum
}

func (h *Handshake) note(m *Hello) { h.transcript = AppendHello(h.transcript, m) }
