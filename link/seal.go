package link

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/wire"
)

// Encryption of the page plane. After the handshake each direction is a stream of records:
//
//	length of the rest (4 bytes, little endian) | ciphertext | tag (16 bytes)
//
// AES-128-GCM under a key of this direction of this connection; the nonce is the number of the record, the length is authenticated with it.
// So a record that is changed, repeated, left out, moved, or sent back to where it came from breaks the connection. After rekeyRecords the key is
// replaced by one derived from it, long before GCM's limits. A frame may lie in several records, and a record may hold several frames: they are
// the bytes of one stream.
const (
	sealHeaderBytes  = 4
	sealTagBytes     = 16
	sealPlainLimit   = 64 << 10 // of a record
	sealRecordLimit  = sealHeaderBytes + sealPlainLimit + sealTagBytes
	sealKeyBytes     = 16
	sealRekeyRecords = 1 << 22
)

// sealKey is the state of one direction, at either end.
type sealKey struct {
	aead    cipher.AEAD
	secret  []byte
	records uint64 // under this key
	rekeyAt uint64 // sealRekeyRecords; tests lower it
	nonce   [12]byte
}

func newSealKey(secret []byte) (*sealKey, error) {
	k := &sealKey{rekeyAt: sealRekeyRecords}
	return k, k.take(secret)
}

// take makes the key of a traffic secret the one in use.
func (k *sealKey) take(secret []byte) error {
	key, err := hkdf.Expand(sha256.New, secret, "cellvisor pages key", sealKeyBytes)
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	k.secret, k.records = secret, 0
	return nil
}

// next returns the nonce of the next record.
func (k *sealKey) next() ([]byte, error) {
	if k.records == k.rekeyAt {
		secret, err := hkdf.Expand(sha256.New, k.secret, "cellvisor pages next", wire.TrafficSecretBytes)
		if err != nil {
			return nil, err
		}
		if err := k.take(secret); err != nil {
			return nil, err
		}
	}
	binary.BigEndian.PutUint64(k.nonce[4:], k.records)
	k.records++
	return k.nonce[:], nil
}

// sealer encrypts what is sent. It belongs to the connection's outMu.
type sealer struct {
	key *sealKey
	buf []byte
}

// keepSealedBytes is how much of the buffer is kept between sends.
const keepSealedBytes = 256 << 10

// seal returns the records of a piece of the stream, valid until the next call.
func (s *sealer) seal(plain []byte) ([]byte, error) {
	if cap(s.buf) > keepSealedBytes {
		s.buf = nil
	}
	out := s.buf[:0]
	for len(plain) > 0 {
		piece := plain[:min(len(plain), sealPlainLimit)]
		plain = plain[len(piece):]
		nonce, err := s.key.next()
		if err != nil {
			return nil, err
		}
		at := len(out)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(piece)+sealTagBytes))
		out = s.key.aead.Seal(out, nonce, piece, out[at:at+sealHeaderBytes])
	}
	s.buf = out
	return out, nil
}

// sealedSocket decrypts what is read from a socket. What is sent through it has been encrypted already, by pageConn.send.
type sealedSocket struct {
	socket
	key        *sealKey
	in         []byte // read but not decrypted: in[start:end]
	start, end int
	plain      []byte // room for a record that did not fit where it was wanted
	rest       []byte // of it, not passed on yet
}

func newSealedSocket(under socket, key *sealKey) *sealedSocket {
	return &sealedSocket{socket: under, key: key, in: make([]byte, 4*sealRecordLimit)}
}

// read decrypts at most what one read of the socket brought. A record that is not what the peer sealed is an error of the peer's.
func (s *sealedSocket) read(buf []byte) (int, error) {
	for {
		if len(s.rest) > 0 {
			n := copy(buf, s.rest)
			s.rest = s.rest[n:]
			return n, nil
		}
		n, err := s.open(buf)
		if n > 0 || err != nil {
			return n, err
		}
		if len(s.rest) > 0 {
			continue
		}
		s.end = copy(s.in, s.in[s.start:s.end])
		s.start = 0
		if n, err = s.socket.read(s.in[s.end:]); err != nil {
			return 0, err
		}
		s.end += n
	}
}

// open decrypts whole records into buf as long as they fit; one that does not fit at all goes to rest.
func (s *sealedSocket) open(buf []byte) (int, error) {
	done := 0
	for s.end-s.start >= sealHeaderBytes {
		size := int(binary.LittleEndian.Uint32(s.in[s.start:]))
		if size <= sealTagBytes || size > sealPlainLimit+sealTagBytes {
			return 0, fmt.Errorf("link: a sealed record of %d bytes: %w", size, wire.ErrBadFrame)
		}
		plain := size - sealTagBytes
		if s.end-s.start < sealHeaderBytes+size || plain > len(buf)-done && done > 0 {
			break
		}
		into := buf[done:done]
		if plain > len(buf) {
			if s.plain == nil {
				s.plain = make([]byte, sealPlainLimit)
			}
			into = s.plain[:0]
		}
		nonce, err := s.key.next()
		if err != nil {
			return 0, err
		}
		body := s.start + sealHeaderBytes
		opened, err := s.key.aead.Open(into, nonce, s.in[body:body+size], s.in[s.start:body])
		if err != nil {
			return 0, fmt.Errorf("link: a sealed record was changed on its way, or is not of this connection: %w", wire.ErrBadFrame)
		}
		s.start = body + size
		if plain > len(buf) {
			s.rest = opened
			break
		}
		done += plain
	}
	return done, nil
}

// ephemeral is this side's part in what the two sides of a page-plane connection agree on.
type ephemeral struct {
	key *ecdh.PrivateKey
}

func newEphemeral() (ephemeral, wire.Nonce, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return ephemeral{}, wire.Nonce{}, err
	}
	return ephemeral{key}, wire.Nonce(key.PublicKey().Bytes()), nil
}

// session holds the keys of a connection that is encrypted.
type session struct {
	out, in *sealKey
}

// session makes the keys after a handshake; nil if neither side wants encryption.
func (e ephemeral) session(hs *wire.Handshake, dialer bool) (*session, error) {
	if !hs.Sealed() {
		return nil, nil
	}
	nonce := hs.Peer()
	public, err := ecdh.X25519().NewPublicKey(nonce[:])
	if err != nil {
		return nil, fmt.Errorf("link: the peer's public key: %w: %w", err, wire.ErrHandshake)
	}
	agreed, err := e.key.ECDH(public)
	if err != nil {
		return nil, fmt.Errorf("link: the peer's public key: %w: %w", err, wire.ErrHandshake)
	}
	out, in, err := hs.TrafficSecrets(agreed)
	if err != nil {
		return nil, err
	}
	if !dialer {
		out, in = in, out
	}
	s := &session{}
	if s.out, err = newSealKey(out); err != nil {
		return nil, err
	}
	s.in, err = newSealKey(in)
	return s, err
}
