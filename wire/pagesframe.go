package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// PageItems reads the messages of a Pages body in place. Get one from ParsePages; the zero value has none.
type PageItems struct {
	rest  []byte
	count int
}

// ParsePages checks all messages of a Pages body for the given receiver: well formed, for the frame's VM, from its sender and to
// that receiver. So Next cannot fail, and no handler sees half of a malformed batch. The messages' epochs are the core's to judge. It
// allocates nothing unless it fails.
func ParsePages(h FrameHeader, to ident.Part, body []byte) (PageItems, error) {
	rest, n := body, 0
	var m PageMsg
	for len(rest) > 0 {
		if err := PageHeader(rest, &m); err != nil {
			return PageItems{}, fmt.Errorf("wire: pages frame: message %d: %w: %w", n, err, ErrBadFrame)
		}
		if m.VM != h.VM || m.From != h.From || m.To != to {
			return PageItems{}, fmt.Errorf("wire: pages frame of VM %d from %s to %s: message %d is of VM %d from %s to %s: %w",
				h.VM, h.From, to, n, m.VM, m.From, m.To, ErrBadFrame)
		}
		size := PageHeaderBytes + int(m.BodyBytes) // PageHeader has checked BodyBytes against PageBodyBytes
		if len(rest) < size {
			return PageItems{}, fmt.Errorf("wire: pages frame: message %d is cut short: %w", n, ErrBadFrame)
		}
		rest = rest[size:]
		n++
	}
	if n == 0 {
		return PageItems{}, fmt.Errorf("wire: pages frame without a message: %w", ErrBadFrame)
	}
	return PageItems{rest: body, count: n}, nil
}

// Len returns how many messages are left.
func (p *PageItems) Len() int { return p.count }

// Next decodes the next message into m and returns its body, of m.BodyBytes. The body aliases the frame's buffer and is valid only until
// the handler of the frame returns. ok is false after the last message.
func (p *PageItems) Next(m *PageMsg) (body []byte, ok bool) {
	if p.count == 0 {
		return nil, false
	}
	if err := PageHeader(p.rest, m); err != nil {
		panic("wire: a checked page message changed under its reader: " + err.Error())
	}
	end := PageHeaderBytes + int(m.BodyBytes)
	body = p.rest[PageHeaderBytes:end:end]
	p.rest = p.rest[end:]
	p.count--
	return body, true
}

// PagesWriter collects page messages into Pages frames, ready to be written to a connection. A batch that outgrows one frame goes on in
// the next, inside the same buffer, so one write still sends all of it. The zero value is ready; the buffer is kept and reused over
// Reset, so a writer in steady use allocates nothing.
type PagesWriter struct {
	buf   []byte
	start int // of the open frame's header
	open  bool
	items int
}

// Add appends one message and its body. m.BodyBytes is set from body, which has at most PageBodyBytes; a longer one is a broken
// invariant of the caller, and panics.
func (w *PagesWriter) Add(m *PageMsg, body []byte) {
	if len(body) > PageBodyBytes {
		panic("wire: page message with an impossible body")
	}
	size := PageHeaderBytes + len(body)
	if w.open && len(w.buf)-w.start+size > FrameLimit {
		w.closeFrame()
	}
	if !w.open {
		w.start = len(w.buf)
		w.extend(FrameHeaderBytes)
		w.open = true
	}
	at := len(w.buf)
	w.extend(size)
	m.BodyBytes = uint32(len(body))
	PutPageHeader(w.buf[at:], m)
	copy(w.buf[at+PageHeaderBytes:], body)
	w.items++
}

// extend lengthens the buffer by n bytes of unspecified contents.
func (w *PagesWriter) extend(n int) {
	if len(w.buf)+n > cap(w.buf) {
		grown := make([]byte, len(w.buf), max(2*cap(w.buf), len(w.buf)+n, 8<<10))
		copy(grown, w.buf)
		w.buf = grown
	}
	w.buf = w.buf[:len(w.buf)+n]
}

// closeFrame notes the body's length in the open frame's header; Finish writes the rest of it.
func (w *PagesWriter) closeFrame() {
	binary.LittleEndian.PutUint32(w.buf[w.start+4:], uint32(len(w.buf)-w.start-FrameHeaderBytes))
	w.open = false
}

// Finish completes the headers of all frames and returns the bytes to send, which are valid until Reset. Type and Length of h are set
// here. Without a message the result is empty.
func (w *PagesWriter) Finish(h FrameHeader) []byte {
	if w.open {
		w.closeFrame()
	}
	h.Type = FramePages
	for at := 0; at < len(w.buf); at += FrameHeaderBytes + int(h.Length) {
		h.Length = binary.LittleEndian.Uint32(w.buf[at+4:])
		PutFrameHeader(w.buf[at:], h)
	}
	return w.buf
}

// Items returns the number of messages since the last Reset.
func (w *PagesWriter) Items() int { return w.items }

// writerKeepBytes is how much buffer a writer keeps over Reset, so that one huge batch does not hold its memory for ever.
const writerKeepBytes = 2 << 20

// Reset empties the writer and keeps its buffer.
func (w *PagesWriter) Reset() {
	buf := w.buf[:0]
	if cap(buf) > writerKeepBytes {
		buf = nil
	}
	*w = PagesWriter{buf: buf}
}
