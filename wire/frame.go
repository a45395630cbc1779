package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// The page plane: what the workers of one VM say to each other. A connection carries frames, each a header and a body:
//
//	 0  magic    2 bytes  'C' 'V'
//	 2  version  1 byte   FrameVersion
//	 3  type     1 byte   FrameType
//	 4  length   4 bytes  of the body
//	 8  vm       8 bytes  ident.VMID
//	16  epoch    8 bytes  of the VM: the view epoch at which its member set last changed
//	24  from     1 byte   the sender's part
//	25  zero     7 bytes
//
// All integers are little endian. A Pages body is a sequence of page messages (see PageMsg), each with its own body behind it.

// FrameVersion is the version of the page plane. Workers of different versions refuse each other in the handshake.
const FrameVersion = 1

// Sizes of page-plane frames in bytes.
const (
	FrameHeaderBytes = 32
	FrameLimit       = 1 << 20 // header and body
	FrameBodyLimit   = FrameLimit - FrameHeaderBytes
	DeviceBodyLimit  = 64 << 10
)

// FrameType says what a frame's body is.
type FrameType uint8

// Frame types. Zero is none.
const (
	FramePages  FrameType = 1 + iota // a batch of page messages
	FrameDevice                      // a device request or its reply
	FrameHello                       // a step of the handshake
	FramePing                        // 8 bytes, to be sent back
	FramePong                        // the 8 bytes of the ping
	frameTypeEnd
)

// String names the type.
func (t FrameType) String() string {
	switch t {
	case FramePages:
		return "pages"
	case FrameDevice:
		return "device"
	case FrameHello:
		return "hello"
	case FramePing:
		return "ping"
	case FramePong:
		return "pong"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// ErrBadFrame is wrapped by every error about bytes that are not a well-formed message. The connection that brought them cannot be
// trusted to be at a frame boundary any more and must be dropped.
var ErrBadFrame = errors.New("malformed frame")

// FrameHeader is a page-plane frame's header without magic and version.
type FrameHeader struct {
	Type   FrameType
	Length uint32 // of the body, in bytes
	VM     ident.VMID
	Epoch  ident.Epoch
	From   ident.Part
}

// PutFrameHeader encodes h into the first FrameHeaderBytes of dst.
func PutFrameHeader(dst []byte, h FrameHeader) {
	_ = dst[FrameHeaderBytes-1]
	dst[0], dst[1], dst[2], dst[3] = 'C', 'V', FrameVersion, byte(h.Type)
	binary.LittleEndian.PutUint32(dst[4:], h.Length)
	binary.LittleEndian.PutUint64(dst[8:], uint64(h.VM))
	binary.LittleEndian.PutUint64(dst[16:], uint64(h.Epoch))
	binary.LittleEndian.PutUint64(dst[24:], uint64(h.From))
}

// ParseFrameHeader decodes and checks a header. src must have FrameHeaderBytes.
func ParseFrameHeader(src []byte) (FrameHeader, error) {
	_ = src[FrameHeaderBytes-1]
	if src[0] != 'C' || src[1] != 'V' {
		return FrameHeader{}, fmt.Errorf("wire: page-plane frame starts with %#x %#x: %w", src[0], src[1], ErrBadFrame)
	}
	if src[2] != FrameVersion {
		return FrameHeader{}, fmt.Errorf("wire: page-plane version %d, this is version %d: %w", src[2], FrameVersion, ErrBadFrame)
	}
	h := FrameHeader{
		Type:   FrameType(src[3]),
		Length: binary.LittleEndian.Uint32(src[4:]),
		VM:     ident.VMID(binary.LittleEndian.Uint64(src[8:])),
		Epoch:  ident.Epoch(binary.LittleEndian.Uint64(src[16:])),
		From:   ident.Part(src[24]),
	}
	if h.Type == 0 || h.Type >= frameTypeEnd {
		return FrameHeader{}, fmt.Errorf("wire: page-plane frame of unknown %s: %w", h.Type, ErrBadFrame)
	}
	if h.Length > FrameBodyLimit {
		return FrameHeader{}, fmt.Errorf("wire: %s frame with a body of %d bytes, limit %d: %w", h.Type, h.Length, FrameBodyLimit, ErrBadFrame)
	}
	// The part's byte and the seven zero bytes after it, in one comparison.
	if binary.LittleEndian.Uint64(src[24:]) >= ident.MaxParts {
		return FrameHeader{}, fmt.Errorf("wire: %s frame from part %d, or padding that is not zero: %w", h.Type, src[24], ErrBadFrame)
	}
	return h, nil
}

// NextFrame takes the frame at the start of buf. It returns the frame's header, its body (which aliases buf) and its whole size.
// Size 0 without an error means that buf does not hold all of the frame yet: read on. It does not look into the body.
func NextFrame(buf []byte) (h FrameHeader, body []byte, size int, err error) {
	if len(buf) < FrameHeaderBytes {
		return h, nil, 0, nil
	}
	if h, err = ParseFrameHeader(buf); err != nil {
		return h, nil, 0, err
	}
	size = FrameHeaderBytes + int(h.Length)
	if len(buf) < size {
		return h, nil, 0, nil
	}
	return h, buf[FrameHeaderBytes:size:size], size, nil
}

// AppendFrame appends a whole frame with the given body to dst. The header's Length is set from body, which must not exceed
// FrameBodyLimit.
func AppendFrame(dst []byte, h FrameHeader, body []byte) []byte {
	h.Length = uint32(len(body))
	at := len(dst)
	dst = append(dst, make([]byte, FrameHeaderBytes)...)
	PutFrameHeader(dst[at:], h)
	return append(dst, body...)
}
