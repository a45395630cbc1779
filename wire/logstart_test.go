package wire

import (
	"bytes"
	"testing"
)

func FuzzLogStart(f *testing.F) {
	f.Add([]byte{})
	f.Add(LogStart{Offset: 4096, Records: 7}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeLogStart(b)
		if err != nil {
			return
		}
		if len(b) > 0 && !bytes.Equal(s.Encode(), b) {
			t.Errorf("%x is %+v, which is %x", b, s, s.Encode())
		}
	})
}

func TestLogStartThatIsTornIsNone(t *testing.T) {
	before, after := LogStart{Offset: 1 << 20, Records: 99}.Encode(), LogStart{Offset: 3 << 21, Records: 1234}.Encode()
	for n := 1; n < LogStartBytes; n++ {
		torn := append(bytes.Clone(after[:n]), before[n:]...)
		if s, err := DecodeLogStart(torn); err == nil && !bytes.Equal(torn, before) && !bytes.Equal(torn, after) {
			t.Errorf("torn at %d: taken for %+v", n, s)
		}
	}
}
