package worker

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// A difference makes the new page out of the old one, however often it is applied; one that is not small says so.
func TestDifferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := make([]byte, ident.PageSize)
		for i := range old {
			old[i] = byte(i * 7)
		}
		now := bytes.Clone(old)
		for range rapid.IntRange(0, 40).Draw(t, "writes") {
			at := rapid.IntRange(0, ident.PageSize-1).Draw(t, "at")
			copy(now[at:], rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "bytes"))
		}
		diff, small := appendDiff(nil, old, now)
		if !small {
			if len(diff) <= diffLimit {
				t.Fatalf("%d bytes are not small", len(diff))
			}
			return
		}
		if bytes.Equal(old, now) != (len(diff) == 0) {
			t.Fatalf("difference of %d bytes", len(diff))
		}
		got := bytes.Clone(old)
		for range 2 {
			if err := patch(got, diff); err != nil || !bytes.Equal(got, now) {
				t.Fatalf("patched to other contents: %v", err)
			}
		}
	})
}

func FuzzPatch(f *testing.F) {
	f.Add([]byte{8, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0xf8, 0x0f, 0x10, 0})
	f.Fuzz(func(t *testing.T, diff []byte) { _ = patch(make([]byte, ident.PageSize), diff) })
}

func testArena(number uint64, pages map[ident.PageNo][]byte) *arena {
	a := &arena{number: number}
	for page := range ident.PageNo(100) {
		if b, ok := pages[page]; ok {
			a.pages = append(a.pages, page)
			a.buf = append(a.buf, b...)
		}
	}
	return a
}

// What was in the last checkpoint too travels as what changed; what did not change does not travel.
func TestPackSendsWhatChanged(t *testing.T) {
	hot := filled('h')
	hotter := bytes.Clone(hot)
	hotter[100] = '!'
	first := testArena(5, map[ident.PageNo][]byte{3: filled('a'), 4: hot, 9: filled('z')})
	second := testArena(6, map[ident.PageNo][]byte{3: filled('a'), 4: hotter, 5: filled('n'), 6: make([]byte, ident.PageSize), 9: filled('y')})
	s, _ := testStandby(t)
	s.mustTake(t, base(0, 0b1, 8, 'b'))
	var before *arena
	for _, a := range []*arena{first, second} {
		sh := testShare(a.number, 0, 0b1)
		sh.add(recordVCPU, 0, []byte("state"))
		if n := sh.pack(a, before); before != nil && n != (packed{full: 2, zero: 1, changed: 1, same: 1}) {
			t.Errorf("packed %+v", n)
		}
		before = a
		s.mustTake(t, sh)
		if done, err := s.commit(a.number); !done || err != nil {
			t.Fatal(done, err)
		}
	}
	got := make([]byte, ident.PageSize)
	for i, page := range second.pages {
		if err := s.ram.ReadPage(page, got); err != nil || !bytes.Equal(got, second.page(i)) {
			t.Errorf("page %d holds other contents: %v", page, err)
		}
	}
}
