package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/wire"
)

// chunksOf encodes a share as it travels.
func chunksOf(s *share) [][]byte {
	all := *s
	all.encodeAll()
	for i := range all.encoded {
		all.encoded[i] = all.encoded[i][1:]
	}
	return all.encoded
}

func testShare(number uint64, part ident.Part, members ident.PartSet) *share {
	return &share{header: chunkHeader{number: number, part: part, members: members}}
}

func filled(b byte) []byte { return bytes.Repeat([]byte{b}, ident.PageSize) }

func TestShareRoundTrip(t *testing.T) {
	s := testShare(7, 1, 0b11)
	for i := range 40 {
		s.add(recordPage, uint64(i), filled(byte(i)))
	}
	s.add(recordZero, 99, nil)
	s.addStream(recordOutput, outputPiece{offset: 10, bytes: bytes.Repeat([]byte("x"), 100_000)})
	var pages, zeros, output int
	for i, c := range chunksOf(s) {
		if len(c) > wire.DeviceBodyLimit {
			t.Fatalf("chunk %d of %d bytes does not fit a message", i, len(c))
		}
		h, records, err := decodeChunk(c)
		if err != nil || h.number != 7 || h.part != 1 || h.index != uint32(i) {
			t.Fatalf("chunk %d: %+v, %v", i, h, err)
		}
		err = eachRecord(records, func(kind recordType, key uint64, b []byte) error {
			switch kind {
			case recordPage:
				if !bytes.Equal(b, filled(byte(key))) {
					t.Errorf("page %d has other contents", key)
				}
				pages++
			case recordZero:
				zeros++
			case recordOutput:
				if key != uint64(10+output) {
					t.Errorf("output at %d, want %d", key, 10+output)
				}
				output += len(b)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if pages != 40 || zeros != 1 || output != 100_000 {
		t.Errorf("%d pages, %d zero pages, %d bytes of output", pages, zeros, output)
	}
}

// A part that runs no vCPU and has written nothing adds nothing to a checkpoint, but says so.
func TestEmptyShareIsAShare(t *testing.T) {
	s, _ := testStandby(t)
	s.mustTake(t, base(0, 0b11, 3, 'a'))
	s.mustTake(t, base(1, 0b11, 4, 'b'))
	s.mustTake(t, testShare(5, 0, 0b11))
	if done, err := s.commit(5); done || err != nil {
		t.Fatalf("committed half a checkpoint: %v, %v", done, err)
	}
	s.mustTake(t, testShare(5, 1, 0b11))
	if done, err := s.commit(5); !done || err != nil {
		t.Errorf("a whole checkpoint was not committed: %v", err)
	}
}

func testStandby(t *testing.T) (*standby, string) {
	t.Helper()
	memory, err := ram.New(4 * ident.MiB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	dir := t.TempDir()
	s, err := newStandby(&files{dir: dir}, memory, standbyDisks{})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func (s *standby) mustTake(t *testing.T, sh *share) {
	t.Helper()
	for _, c := range chunksOf(sh) {
		if err := s.take(c); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *standby) page(t *testing.T, page ident.PageNo) byte {
	t.Helper()
	b := make([]byte, ident.PageSize)
	if err := s.ram.ReadPage(page, b); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

func base(part ident.Part, members ident.PartSet, page uint64, fill byte) *share {
	s := testShare(1, part, members)
	s.header.flags = chunkBase
	s.add(recordPage, page, filled(fill))
	return s
}

// A checkpoint counts only when the base and the shares of all members are there; then it is applied at once.
func TestStandbyAppliesWholeCheckpointsOnly(t *testing.T) {
	s, dir := testStandby(t)
	first, second := testShare(5, 0, 0b11), testShare(5, 1, 0b11)
	first.add(recordPage, 3, filled('A'))
	first.add(recordOutput, 0, []byte("0\n1\n"))
	second.add(recordPage, 4, filled('B'))
	s.mustTake(t, first)
	s.mustTake(t, base(0, 0b11, 3, 'a'))
	for _, step := range []*share{base(1, 0b11, 4, 'b'), second} {
		if done, err := s.commit(5); done || err != nil {
			t.Fatalf("committed half a checkpoint: %v, %v", done, err)
		}
		s.mustTake(t, step)
	}
	if got := s.page(t, 3); got != 'a' {
		t.Fatalf("page 3 holds %c before the commit", got)
	}
	if done, err := s.commit(5); !done || err != nil {
		t.Fatalf("a whole checkpoint was not committed: %v", err)
	}
	if a, b := s.page(t, 3), s.page(t, 4); a != 'A' || b != 'B' {
		t.Errorf("pages hold %c and %c", a, b)
	}
	out, _ := os.ReadFile(filepath.Join(dir, wire.WorkerOutputFile))
	if string(out) != "0\n1\n" {
		t.Errorf("output %q", out)
	}
}

// A page of the base that arrives after a checkpoint has brought the page is older, and must not undo it.
func TestStandbyKeepsNewerPages(t *testing.T) {
	s, _ := testStandby(t)
	s.mustTake(t, base(0, 0b1, 8, 'a'))
	cut := testShare(5, 0, 0b1)
	cut.add(recordPage, 9, filled('N'))
	s.mustTake(t, cut)
	if done, _ := s.commit(5); !done {
		t.Fatal("not committed")
	}
	s.mustTake(t, base(0, 0b1, 9, 'o'))
	if got := s.page(t, 9); got != 'N' {
		t.Errorf("page 9 holds %c, the older contents", got)
	}
}

// Taking over goes to the last checkpoint that was committed: of a later one, whole or not, no output has left.
func TestTakeOverGoesToTheLastCommittedCheckpoint(t *testing.T) {
	s, _ := testStandby(t)
	s.mustTake(t, base(0, 0b11, 3, 'a'))
	s.mustTake(t, base(1, 0b11, 4, 'b'))
	for n, parts := range map[uint64][]ident.Part{5: {0, 1}, 6: {0, 1}, 7: {1}, 8: {0, 1}} {
		for _, p := range parts {
			sh := testShare(n, p, 0b11)
			sh.add(recordPage, 10+uint64(p), filled('0'+byte(n)))
			s.mustTake(t, sh)
		}
	}
	for _, n := range []uint64{5, 6} {
		if done, err := s.commit(n); !done || err != nil {
			t.Fatalf("checkpoint %d was not committed: %v", n, err)
		}
	}
	r, err := s.takeOver()
	if err != nil || r.number != 6 {
		t.Fatalf("took over checkpoint %+v, %v; want 6", r, err)
	}
	if a, b := s.page(t, 10), s.page(t, 11); a != '6' || b != '6' {
		t.Errorf("pages hold %c and %c", a, b)
	}
	if err := s.take(chunksOf(testShareWithPage(9))[0]); err == nil {
		t.Error("a chunk was taken after the take-over")
	}
}

func testShareWithPage(n uint64) *share {
	s := testShare(n, 0, 0b11)
	s.add(recordPage, 10, filled('x'))
	return s
}

func TestTakeOverWithoutACheckpointFails(t *testing.T) {
	s, _ := testStandby(t)
	s.mustTake(t, base(0, 0b1, 3, 'a'))
	if r, err := s.takeOver(); err == nil {
		t.Fatalf("took over %+v from a base alone", r)
	}
}

// FuzzChunk feeds a standby with what a broken or hostile member may send.
func FuzzChunk(f *testing.F) {
	s := testShare(5, 0, 0b1)
	s.add(recordPage, 3, filled('a'))
	s.add(recordVCPU, 0, []byte("state"))
	s.addStream(recordConsole, outputPiece{bytes: []byte("hello")})
	for _, c := range chunksOf(s) {
		f.Add(c)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, records, err := decodeChunk(b)
		if err != nil {
			return
		}
		if h.part >= ident.MaxParts || len(records) > wire.DeviceBodyLimit {
			t.Fatalf("accepted %+v with %d bytes of records", h, len(records))
		}
		_ = eachRecord(records, func(kind recordType, _ uint64, b []byte) error {
			if kind == recordPage && len(b) != ident.PageSize {
				t.Fatalf("a page of %d bytes", len(b))
			}
			return nil
		})
	})
}
