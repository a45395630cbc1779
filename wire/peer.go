package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cellvisor/cellvisor/ident"
)

// The monitor plane: what serve processes say to each other. Each message is an envelope:
//
//	 0  magic        2 bytes  'C' 'M'
//	 2  version      1 byte   EnvelopeVersion
//	 3  kind         1 byte   EnvelopeKind
//	 4  length       4 bytes  of the body
//	 8  sender       8 bytes  ident.ServerID
//	16  incarnation  8 bytes  of the sender, 0 before it was admitted
//	24  epoch        8 bytes  of the sender's view
//	32  idBytes      1 byte   length of the cluster id, 1 to ClusterIDLimit
//	33  zero         7 bytes
//	40  the cluster id, then the body
//
// All integers are little endian.

// EnvelopeVersion is the version of the monitor plane.
const EnvelopeVersion = 1

// Sizes on the monitor plane, in bytes.
const (
	EnvelopeHeaderBytes = 40
	ClusterIDLimit      = 64
	EnvelopeBodyLimit   = 16 << 20
)

// EnvelopeKind says what an envelope's body is.
type EnvelopeKind uint8

// Kinds of envelopes. Zero is none.
const (
	EnvelopeHello     EnvelopeKind = 1 + iota // a step of the handshake
	EnvelopeRaft                              // a raft message
	EnvelopeMonitor                           // a monitor's message; floor 3 knows its encoding
	EnvelopeJoin                              // a server asks to be admitted
	EnvelopeJoinReply                         // the answer to that
	EnvelopeRequest                           // a forwarded request that wants one reply, such as a proposal sent to the leader
	EnvelopeReply                             // the answer to that
	EnvelopeError                             // a request could not be served; the body says why
	EnvelopePing                              // says that the sender's process runs; no body
	EnvelopeGang                              // a GangSlice or GangReport
	EnvelopeLoad                              // a LoadReport
	EnvelopeAudit                             // the head of the sender's audit log
	EnvelopeLend                              // a LendMessage
	envelopeKindEnd
)

// Envelope is one message of the monitor plane.
type Envelope struct {
	Cluster     string
	Sender      ident.ServerID
	Incarnation ident.Incarnation
	Epoch       ident.Epoch // of the sender's view
	Kind        EnvelopeKind
	Body        []byte
}

// AppendEnvelope appends the envelope to dst. It fails, with dst unchanged, if the body or the cluster id exceeds its limit.
func AppendEnvelope(dst []byte, e *Envelope) ([]byte, error) {
	if len(e.Body) > EnvelopeBodyLimit {
		return dst, fmt.Errorf("wire: envelope body of %d bytes, limit %d: %w", len(e.Body), EnvelopeBodyLimit, ErrTooLarge)
	}
	if len(e.Cluster) < 1 || len(e.Cluster) > ClusterIDLimit {
		return dst, fmt.Errorf("wire: cluster id of %d bytes, limit %d: %w", len(e.Cluster), ClusterIDLimit, ErrTooLarge)
	}
	dst = append(dst, 'C', 'M', EnvelopeVersion, byte(e.Kind))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(e.Body)))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Sender))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Incarnation))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Epoch))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(len(e.Cluster)))
	dst = append(dst, e.Cluster...)
	return append(dst, e.Body...), nil
}

// ReadEnvelope reads one envelope whose body has at most bodyLimit bytes (EnvelopeBodyLimit at most). It checks the header before it
// allocates for the body, and allocates no more than about twice what the peer really sends. The body is the caller's to keep. A
// stream that ends between envelopes gives io.EOF itself.
func ReadEnvelope(r io.Reader, bodyLimit int) (Envelope, error) {
	var head [EnvelopeHeaderBytes + ClusterIDLimit]byte
	if _, err := io.ReadFull(r, head[:EnvelopeHeaderBytes]); err != nil {
		if err == io.EOF {
			return Envelope{}, io.EOF
		}
		return Envelope{}, fmt.Errorf("wire: read an envelope's header: %w", err)
	}
	e, idBytes, bodyBytes, err := parseEnvelopeHeader(head[:], min(bodyLimit, EnvelopeBodyLimit))
	if err != nil {
		return Envelope{}, err
	}
	id := head[EnvelopeHeaderBytes : EnvelopeHeaderBytes+idBytes]
	if _, err := io.ReadFull(r, id); err != nil {
		return Envelope{}, fmt.Errorf("wire: read an envelope's cluster id: %w", noEOF(err))
	}
	e.Cluster = string(id)
	if bodyBytes > 0 {
		if e.Body, err = readGrowing(r, bodyBytes); err != nil {
			return Envelope{}, fmt.Errorf("wire: read an envelope's body of %d bytes: %w", bodyBytes, err)
		}
	}
	return e, nil
}

func parseEnvelopeHeader(head []byte, bodyLimit int) (e Envelope, idBytes, bodyBytes int, err error) {
	if head[0] != 'C' || head[1] != 'M' {
		return e, 0, 0, fmt.Errorf("wire: envelope starts with %#x %#x: %w", head[0], head[1], ErrBadFrame)
	}
	if head[2] != EnvelopeVersion {
		return e, 0, 0, fmt.Errorf("wire: monitor-plane version %d, this is version %d: %w", head[2], EnvelopeVersion, ErrBadFrame)
	}
	e.Kind = EnvelopeKind(head[3])
	if e.Kind == 0 || e.Kind >= envelopeKindEnd {
		return e, 0, 0, fmt.Errorf("wire: envelope of unknown kind %d: %w", head[3], ErrBadFrame)
	}
	length := binary.LittleEndian.Uint32(head[4:])
	if int64(length) > int64(bodyLimit) {
		return e, 0, 0, fmt.Errorf("wire: envelope with a body of %d bytes, limit %d: %w: %w", length, bodyLimit, ErrTooLarge, ErrBadFrame)
	}
	e.Sender = ident.ServerID(binary.LittleEndian.Uint64(head[8:]))
	e.Incarnation = ident.Incarnation(binary.LittleEndian.Uint64(head[16:]))
	e.Epoch = ident.Epoch(binary.LittleEndian.Uint64(head[24:]))
	id := binary.LittleEndian.Uint64(head[32:])
	if id < 1 || id > ClusterIDLimit {
		return e, 0, 0, fmt.Errorf("wire: envelope with a cluster id of %d bytes, limit %d: %w", id, ClusterIDLimit, ErrBadFrame)
	}
	return e, int(id), int(length), nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
