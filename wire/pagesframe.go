package wire

import (
	"encoding/binary"

	"github.com/cellvisor/cellvisor/ident"
)

// PagesWriter collects page messages into Pages frames, ready to be written to a connection. A batch that outgrows one frame goes on in
// the next, inside the same buffer, so one write still sends all of it. The zero value is ready; the buffer is kept and reused over
// Reset, so a writer in steady use allocates nothing.
type PagesWriter struct {
	buf   []byte
	start int // of the open frame's header
	open  bool
	items int
}

// Add appends one item: an encoded page message of 1 to PageMsgLimit bytes and, if contents is not nil, the page's 4 KiB.
// Other sizes are a broken invariant of the caller, and panic.
func (w *PagesWriter) Add(msg, contents []byte) {
	at := w.Grow(len(msg), len(contents))
	copy(w.buf[at:], msg)
	copy(w.buf[at+len(msg):], contents)
}

// Grow appends an item of the given sizes and returns where in Bytes its message starts; its contents follow the message. The caller
// encodes into that place, which saves a copy.
func (w *PagesWriter) Grow(msgBytes, dataBytes int) int {
	if msgBytes < 1 || msgBytes > PageMsgLimit || dataBytes != 0 && dataBytes != ident.PageSize {
		panic("wire: page item of an impossible size")
	}
	size := PageItemBytes + msgBytes + dataBytes
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
	binary.LittleEndian.PutUint16(w.buf[at:], uint16(msgBytes))
	binary.LittleEndian.PutUint16(w.buf[at+2:], uint16(dataBytes))
	w.items++
	return at + PageItemBytes
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
// here. Without an item the result is empty.
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

// Bytes returns the buffer, for encoding into the place that Grow returned.
func (w *PagesWriter) Bytes() []byte { return w.buf }

// Items returns the number of items since the last Reset.
func (w *PagesWriter) Items() int { return w.items }

// Reset empties the writer and keeps its buffer.
func (w *PagesWriter) Reset() { *w = PagesWriter{buf: w.buf[:0]} }
