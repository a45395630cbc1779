package linux

import (
	"encoding/binary"
	"errors"
)

// lz4Magic begins a file in LZ4's legacy frame format, which is what kernels are packed in: blocks of at most 8 MiB, each after its length.
const (
	lz4Magic      = 0x184c2102
	lz4BlockBytes = 8 << 20
)

var errLZ4 = errors.New("LZ4 data is damaged")

func lz4Decompress(in []byte) ([]byte, error) {
	var out []byte
	in = in[4:]
	for len(in) >= 4 {
		n := binary.LittleEndian.Uint32(in)
		if in = in[4:]; n == lz4Magic {
			continue
		}
		if uint64(n) > uint64(len(in)) || n == 0 || len(out)+lz4BlockBytes > maxKernelBytes {
			return nil, errLZ4
		}
		var err error
		if out, err = lz4Block(out, in[:n]); err != nil {
			return nil, err
		}
		in = in[n:]
	}
	return out, nil
}

// lz4Block appends a block's contents to out: sequences of literals and of copies from what the block has produced.
func lz4Block(out, in []byte) ([]byte, error) {
	start := len(out)
	for len(in) > 0 {
		token := in[0]
		literals, rest, ok := lz4Length(int(token>>4), in[1:])
		if !ok || literals > len(rest) || len(out)-start+literals > lz4BlockBytes {
			return nil, errLZ4
		}
		out, in = append(out, rest[:literals]...), rest[literals:]
		if len(in) == 0 {
			return out, nil // the last sequence has literals only
		}
		if len(in) < 2 {
			return nil, errLZ4
		}
		distance := int(binary.LittleEndian.Uint16(in))
		length, rest, ok := lz4Length(int(token&15), in[2:])
		in = rest
		length += 4
		if !ok || distance == 0 || distance > len(out)-start || len(out)-start+length > lz4BlockBytes {
			return nil, errLZ4
		}
		for from := len(out) - distance; length > 0; {
			n := min(length, len(out)-from) // a copy may overlap what it produces
			out = append(out, out[from:from+n]...)
			from, length = from+n, length-n
		}
	}
	return out, nil
}

// lz4Length reads the bytes that continue a length of 15.
func lz4Length(n int, in []byte) (int, []byte, bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		if n += int(b); b != 255 {
			return n, in[i+1:], n < maxKernelBytes
		}
	}
	return 0, nil, false
}
