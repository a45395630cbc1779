package wire

import (
	"crypto/hkdf"
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
//
// The nonces of the page plane are X25519 public keys made for this one connection. If either side says Sealed, what follows the handshake is
// encrypted under keys from TrafficSecrets: who records it can read it neither now nor once the secret is known.

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
	Sealed   bool   // the sender wants what follows the handshake to be encrypted
	Reason   string // of a Refuse
}

// AppendHello appends the encoded message to dst. A reason is cut to its limit; an impossible cluster id panics: it is the caller's own.
func AppendHello(dst []byte, h *Hello) []byte {
	if len(h.From.Cluster) < 1 || len(h.From.Cluster) > ClusterIDLimit {
		panic("wire: cluster id of an impossible length")
	}
	reason := h.Reason[:min(len(h.Reason), reasonLimit)]
	dst = append(dst, byte(h.Step), byte(h.From.Plane), byte(h.From.Part), byte(h.ToPart), byte(len(h.From.Cluster)), byte(len(reason)), flag(h.Sealed), 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.From.Server))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.ToServer))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.From.VM))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.From.Epoch))
	dst = append(dst, h.Nonce[:]...)
	dst = append(dst, h.MAC[:]...)
	dst = append(dst, h.From.Cluster...)
	return append(dst, reason...)
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
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
		Sealed:   src[6] == 1,
	}
	idBytes, reasonBytes := int(src[4]), int(src[5])
	switch {
	case h.Step == 0 || h.Step >= helloStepEnd:
		return Hello{}, fmt.Errorf("wire: handshake message of unknown step %d: %w", src[0], ErrBadFrame)
	case h.From.Plane == 0 || h.From.Plane >= planeEnd:
		return Hello{}, fmt.Errorf("wire: handshake for unknown plane %d: %w", src[1], ErrBadFrame)
	case h.From.Part >= ident.MaxParts || h.ToPart >= ident.MaxParts:
		return Hello{}, fmt.Errorf("wire: handshake from part %d to %d: %w", src[2], src[3], ErrBadFrame)
	case idBytes < 1 || idBytes > ClusterIDLimit || reasonBytes > reasonLimit || src[6] > 1 || src[7] != 0:
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
	Seal bool // this side wants what follows to be encrypted; set before the first step

	self       Identity
	secret     []byte
	nonce      Nonce
	transcript []byte // all messages so far, MACs included
	peer       Nonce  // the other side's
	peerSeal   bool   // the other side wants encryption
}

// NewHandshake starts a handshake of self. The secret is not copied.
func NewHandshake(self Identity, secret []byte, nonce Nonce) *Handshake {
	return &Handshake{self: self, secret: secret, nonce: nonce}
}

// Hello is the dialer's first message, to the given peer (server 0: whoever it is).
func (h *Handshake) Hello(toServer ident.ServerID, toPart ident.Part) Hello {
	m := Hello{Step: StepHello, From: h.self, ToServer: toServer, ToPart: toPart, Nonce: h.nonce, Sealed: h.Seal}
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
	h.peer, h.peerSeal = hello.Nonce, hello.Sealed
	m := Hello{Step: StepChallenge, From: h.self, ToServer: hello.From.Server, ToPart: hello.From.Part, Nonce: h.nonce, Sealed: h.Seal}
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
	h.peer, h.peerSeal = challenge.Nonce, challenge.Sealed
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

// Sealed tells whether what follows the handshake is encrypted: if either side wants it. Both know, and nobody between them can change it:
// it is under the MACs.
func (h *Handshake) Sealed() bool { return h.Seal || h.peerSeal }

// Peer is the other side's nonce, its public key on the page plane.
func (h *Handshake) Peer() Nonce { return h.peer }

// TrafficSecretBytes is the size of a traffic secret.
const TrafficSecretBytes = sha256.Size

// TrafficSecrets are what the keys of the two directions come from, once the handshake is over: what the dialer sends, and what the acceptor
// sends. They depend on the secret, on what the two sides agreed on by their public keys, and on every byte of the handshake.
func (h *Handshake) TrafficSecrets(agreed []byte) (dialer, acceptor []byte, err error) {
	ikm := append(append([]byte(nil), h.secret...), agreed...)
	salt := sha256.Sum256(h.transcript)
	both, err := hkdf.Key(sha256.New, ikm, salt[:], "cellvisor pages 1", 2*TrafficSecretBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("wire: keys of a connection: %w", err)
	}
	return both[:TrafficSecretBytes], both[TrafficSecretBytes:], nil
}

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
