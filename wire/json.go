package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// JSONLimit is the largest JSON frame on a control socket, in bytes without its length prefix.
const JSONLimit = 4 << 20

// ErrTooLarge is wrapped by every error that says that a message exceeds its limit, on the way in or out.
var ErrTooLarge = errors.New("message exceeds its size limit")

// WriteJSON writes v as one control frame: its length as 4 bytes, little endian, then the JSON text. The frame goes out in a single
// Write, so that concurrent writers that serialize only the calls never interleave inside a frame.
func WriteJSON(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("wire: encode %T: %w", v, err)
	}
	if len(text) > JSONLimit {
		return fmt.Errorf("wire: encode %T: %d bytes, limit %d: %w", v, len(text), JSONLimit, ErrTooLarge)
	}
	frame := make([]byte, 4+len(text))
	binary.LittleEndian.PutUint32(frame, uint32(len(text)))
	copy(frame[4:], text)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("wire: write %T: %w", v, err)
	}
	return nil
}

// ReadJSON reads one control frame into v. It refuses a frame longer than limit bytes (JSONLimit at most) before it allocates for it.
// A stream that ends between frames gives io.EOF itself; one that ends inside a frame gives an error that wraps io.ErrUnexpectedEOF.
func ReadJSON(r io.Reader, v any, limit int) error {
	var prefix [4]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		if err == io.EOF {
			return io.EOF
		}
		return fmt.Errorf("wire: read length of a control frame: %w", err)
	}
	n := int64(binary.LittleEndian.Uint32(prefix[:]))
	if n > int64(min(limit, JSONLimit)) {
		return fmt.Errorf("wire: control frame of %d bytes, limit %d: %w", n, min(limit, JSONLimit), ErrTooLarge)
	}
	text, err := readGrowing(r, int(n))
	if err != nil {
		return fmt.Errorf("wire: control frame of %d bytes: %w", n, err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("wire: control frame: %w", err)
	}
	return nil
}

// growStep is what a reader allocates on the mere word of a length prefix. The rest is allocated as bytes arrive, so a peer that
// announces much and sends little costs little.
const growStep = 64 << 10

// readGrowing reads exactly n bytes.
func readGrowing(r io.Reader, n int) ([]byte, error) {
	buf := make([]byte, min(n, growStep))
	filled := 0
	for {
		m, err := io.ReadFull(r, buf[filled:])
		filled += m
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if filled == n {
			return buf, nil
		}
		grown := make([]byte, min(n, 2*len(buf)))
		copy(grown, buf)
		buf = grown
	}
}
