package vswitch

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// The protocol, all numbers little-endian:
//
//	dialer:  magic(4) from(8) to(8) nonce(16) segment length(1) segment
//	acceptor: nonce(16)
//	both, again and again: length(2) sealed frame; the first frame is empty
//
// A sealed frame is the frame and 16 bytes of AES-256-GCM; its nonce is a counter of its direction.
const (
	magic        = 0x31775343 // "CSw1"
	nonceBytes   = 16
	helloBytes   = 4 + 8 + 8 + nonceBytes + 1
	maxSegment   = 63
	tagBytes     = 16
	helloWithin  = 5 * time.Second
	bufferBytes  = 64 << 10
	labelDialer  = "cellvisor switch: dialer to acceptor"
	labelAnswers = "cellvisor switch: acceptor to dialer"
)

var errProtocol = errors.New("not the switch's protocol")

// hello is what a dialer says first.
type hello struct {
	from, to ident.VMID
	nonce    [nonceBytes]byte
	segment  string
}

func (h *hello) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.from))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.to))
	b = append(b, h.nonce[:]...)
	return append(append(b, byte(len(h.segment))), h.segment...)
}

func readHello(r io.Reader) (hello, error) {
	var h hello
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	length := int(b[helloBytes-1])
	if le.Uint32(b[:]) != magic || length == 0 || length > maxSegment {
		return h, errProtocol
	}
	h.from, h.to = ident.VMID(le.Uint64(b[4:])), ident.VMID(le.Uint64(b[12:]))
	copy(h.nonce[:], b[20:])
	segment := make([]byte, length)
	_, err := io.ReadFull(r, segment)
	h.segment = string(segment)
	return h, err
}

// handshake exchanges nonces and derives the connection's keys.
func handshake(conn net.Conn, l *link, greeting *hello) (*sealed, error) {
	_ = conn.SetDeadline(time.Now().Add(helloWithin))
	defer conn.SetDeadline(time.Time{})
	var own, theirs [nonceBytes]byte
	rand.Read(own[:])
	if greeting != nil {
		if _, err := conn.Write(own[:]); err != nil {
			return nil, err
		}
		return newSealed(conn, l.peer.Key, greeting.nonce, own, false)
	}
	h := hello{from: l.port.self, to: l.peer.VM, nonce: own, segment: l.port.segment}
	if _, err := conn.Write(h.encode()); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, theirs[:]); err != nil {
		return nil, err
	}
	return newSealed(conn, l.peer.Key, own, theirs, true)
}

// sealed is a connection whose frames are encrypted. Its two directions may be used by one goroutine each.
type sealed struct {
	in       *bufio.Reader
	out      *bufio.Writer
	inKey    cipher.AEAD
	outKey   cipher.AEAD
	inCount  uint64
	outCount uint64
	buf      []byte // of seal
	conn     net.Conn
}

func newSealed(conn net.Conn, key []byte, dialer, acceptor [nonceBytes]byte, dialed bool) (*sealed, error) {
	derive := func(label string) (cipher.AEAD, error) {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(label))
		m.Write(dialer[:])
		m.Write(acceptor[:])
		block, err := aes.NewCipher(m.Sum(nil))
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	}
	there, err := derive(labelDialer)
	if err != nil {
		return nil, err
	}
	back, err := derive(labelAnswers)
	if err != nil {
		return nil, err
	}
	s := &sealed{in: bufio.NewReaderSize(conn, bufferBytes), out: bufio.NewWriterSize(conn, bufferBytes), inKey: back, outKey: there, conn: conn}
	if !dialed {
		s.inKey, s.outKey = there, back
	}
	return s, nil
}

func counterNonce(n uint64) []byte {
	return binary.LittleEndian.AppendUint64(make([]byte, 4, 12), n)
}

// seal adds a frame to what flush sends.
func (s *sealed) seal(frame []byte) error {
	s.buf = binary.LittleEndian.AppendUint16(s.buf[:0], uint16(len(frame)+tagBytes))
	s.buf = s.outKey.Seal(s.buf, counterNonce(s.outCount), frame, nil)
	s.outCount++
	_, err := s.out.Write(s.buf)
	return err
}

func (s *sealed) flush() error { return s.out.Flush() }

// open returns the next frame, which is the caller's.
func (s *sealed) open() ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return nil, err
	}
	length := int(binary.LittleEndian.Uint16(head[:]))
	if length < tagBytes || length > maxFrame+tagBytes {
		return nil, fmt.Errorf("%w: a frame of %d bytes", errProtocol, length)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(s.in, b); err != nil {
		return nil, err
	}
	frame, err := s.inKey.Open(b[:0], counterNonce(s.inCount), b, nil)
	s.inCount++
	return frame, err
}
