package ram

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// newImage returns an image of so many pages and a bit, whose words are all different.
func newImage(t *testing.T, pages int) *Image {
	t.Helper()
	var b []byte
	for i := range pages * ident.PageSize / 8 {
		b = binary.LittleEndian.AppendUint64(b, uint64(i)*0x9e3779b97f4a7c15+1)
	}
	b = append(b, "end"...)
	file, err := SealImage("cellvisor-test", bytes.NewReader(b), ident.Bytes(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	im, err := OpenImage(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(im.Close)
	return im
}

// guestWrites is a store of a vCPU: through the guest mapping.
func (r *RAM) guestWrites(off int64, b []byte) { copy(r.guestBytes(off, len(b)), b) }

// TestSharedAgainstATwin does random things to two guests that share an image, and to plain byte slices: contents are always equal, the image stays as it is, and
// pages without contents are the same.
func TestSharedAgainstATwin(t *testing.T) {
	const pages, size = 96, 96 * ident.PageSize
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		im := newImage(t, 64)
		was := bytes.Clone(im.Bytes())
		type guest struct {
			r    *RAM
			twin []byte
			data [pages]bool // has contents
		}
		var guests []*guest
		for range 2 {
			guests = append(guests, &guest{r: newRAM(t, size), twin: make([]byte, size)})
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for step := range 120 {
			g := guests[rnd.IntN(2)]
			page := rnd.IntN(pages)
			n := 1 + rnd.IntN(min(40, pages-page))
			off := rnd.IntN(size - 20000)
			b := make([]byte, 1+rnd.IntN(20000))
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			wrote := func(off, n int) {
				for p := off >> ident.PageShift; p <= (off+n-1)>>ident.PageShift; p++ {
					g.data[p] = true
				}
			}
			switch rnd.IntN(12) {
			case 0, 1:
				from := rnd.IntN(64)
				n = min(n, 64-from)
				ok, err := g.r.Share(ident.PageNo(page), im, int64(from)<<ident.PageShift, uint64(n))
				must(err)
				if ok {
					copy(g.twin[page<<ident.PageShift:], was[from<<ident.PageShift:(from+n)<<ident.PageShift])
					wrote(page<<ident.PageShift, n<<ident.PageShift)
				}
			case 2, 3:
				_, err := g.r.WriteAt(b, int64(off))
				must(err)
				copy(g.twin[off:], b)
				wrote(off, len(b))
			case 4, 5, 6:
				g.r.guestWrites(int64(off), b)
				copy(g.twin[off:], b)
				wrote(off, len(b))
			case 7:
				must(g.r.Zero(ident.PageNo(page), uint64(n)))
				clear(g.twin[page<<ident.PageShift : (page+n)<<ident.PageShift])
				for p := page; p < page+n; p++ {
					g.data[p] = false
				}
			case 8:
				must(g.r.Store16(int64(off&^1), 0x1234))
				binary.LittleEndian.PutUint16(g.twin[off&^1:], 0x1234)
				wrote(off, 1)
			case 9:
				must(g.r.Revoke(ident.PageNo(page), uint64(n)))
			case 10:
				if rnd.IntN(6) == 0 {
					_, _, err := g.r.Watchable()
					must(err)
					if g.r.Shared() != 0 {
						t.Fatalf("seed %d: memory that can be watched has shared pages", seed)
					}
				}
			case 11:
				if rnd.IntN(6) == 0 {
					k, err := g.r.Renew()
					must(err)
					must(k.Close())
					clear(g.twin)
					clear(g.data[:])
				}
			}
			for i, g := range guests {
				got := make([]byte, size)
				_, err := g.r.ReadAt(got, 0)
				must(err)
				if !bytes.Equal(got, g.twin) {
					t.Fatalf("seed %d, step %d: guest %d differs from its twin", seed, step, i)
				}
				for p := ident.PageNo(rnd.IntN(16)); p < pages; p += 16 {
					data, err := g.r.NextData(p)
					must(err)
					hole, err := g.r.NextHole(p)
					must(err)
					if (data == p) != g.data[p] || (hole == p) != !g.data[p] {
						t.Fatalf("seed %d, step %d: guest %d, page %d: next data at %d, next hole at %d, has contents: %t", seed, step, i, p, data, hole, g.data[p])
					}
				}
			}
			p := []ident.PageNo{ident.PageNo(rnd.IntN(pages))}
			if g.data[p[0]] { // reading a hole this way fills it
				got := make([]byte, ident.PageSize)
				must(g.r.CopyPages(got, p))
				if !bytes.Equal(got, g.twin[p[0]<<ident.PageShift:][:ident.PageSize]) {
					t.Fatalf("seed %d, step %d: the copy of page %d differs", seed, step, p[0])
				}
			}
			v, err := g.r.Load16(int64(off &^ 1))
			must(err)
			if want := binary.LittleEndian.Uint16(g.twin[off&^1:]); v != want {
				t.Fatalf("seed %d, step %d: the word at %#x is %#x, want %#x", seed, step, off&^1, v, want)
			}
			g.data[off>>ident.PageShift] = g.data[off>>ident.PageShift] || hasHole(t, g.r, off)
			if !bytes.Equal(im.Bytes(), was) {
				t.Fatalf("seed %d, step %d: a guest has written to the image", seed, step)
			}
		}
		for _, g := range guests {
			must(g.r.Close())
		}
	}
}

// hasHole tells whether the page at off has got contents by being looked at through a mapping, which is as good as none: they are zeros.
func hasHole(t *testing.T, r *RAM, off int) bool {
	t.Helper()
	p := ident.PageNo(off >> ident.PageShift)
	data, err := r.NextData(p)
	if err != nil {
		t.Fatal(err)
	}
	return data == p
}

// TestSharedCost: pages of an image that are not written take no memory of the guest's, and the sum says so; those that are given back never again.
func TestSharedCost(t *testing.T) {
	im := newImage(t, 64)
	r := newRAM(t, ident.MiB)
	if ok, err := r.Share(16, im, 0, 64); err != nil || !ok {
		t.Fatalf("not shared: %t, %v", ok, err)
	}
	blocks := func() uint64 {
		var st unix.Stat_t
		if err := unix.Fstat(r.fd, &st); err != nil {
			t.Fatal(err)
		}
		return uint64(st.Blocks) * 512 / ident.PageSize
	}
	if n, err := r.Resident(); err != nil || n != 64*ident.PageSize || r.Shared() != n || blocks() != 0 {
		t.Errorf("resident %d, shared %d, %d pages in the memfd: %v", n, r.Shared(), blocks(), err)
	}
	if !r.Apart(16) || !r.Apart(79) || r.Apart(15) || r.Apart(80) {
		t.Error("other pages are apart than those that were shared")
	}
	for p := ident.PageNo(16); p < 80; p += 2 { // as many mappings as pages
		if err := r.Zero(p, 1); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.Resident(); err != nil || n != 32*ident.PageSize || blocks() != 0 {
		t.Errorf("with half given back: resident %d, %d pages in the memfd: %v", n, blocks(), err)
	}
	if _, _, err := r.Watchable(); err != nil || blocks() != 32 || r.Shared() != 0 {
		t.Errorf("watchable: %d pages in the memfd, %d bytes shared: %v", blocks(), r.Shared(), err)
	}
	if ok, err := r.Share(16, im, 0, 64); ok || err != nil {
		t.Errorf("memory that can be watched was shared: %v", err)
	}
}

// TestManyRuns: a guest that gives single pages back does not exhaust the mappings that a process may have.
func TestManyRuns(t *testing.T) {
	const pages = 3 * mostRuns
	im := newImage(t, pages)
	r := newRAM(t, pages*ident.PageSize)
	if ok, err := r.Share(0, im, 0, pages); err != nil || !ok {
		t.Fatalf("not shared: %t, %v", ok, err)
	}
	page := make([]byte, ident.PageSize)
	for p := ident.PageNo(1); p < pages; p += 2 {
		if err := r.Zero(p, 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.shared.runs); n > mostRuns {
		t.Errorf("%d runs, at most %d are allowed", n, mostRuns)
	}
	for p := range ident.PageNo(pages) {
		if err := r.ReadPage(p, page); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, ident.PageSize)
		if p%2 == 0 {
			want = im.Bytes()[p<<ident.PageShift:][:ident.PageSize]
		}
		if !bytes.Equal(page, want) {
			t.Fatalf("page %d is not what it should be", p)
		}
	}
	if err := r.Zero(0, pages); err != nil || len(r.shared.runs) != 0 {
		t.Errorf("%d runs after all was given back: %v", len(r.shared.runs), err)
	}
}

// TestImage: only what can never change is an image, and pieces of it are recognised.
func TestImage(t *testing.T) {
	plain, err := os.Create(t.TempDir() + "/plain")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := OpenImage(plain); !errors.Is(err, ErrNoImage) {
		t.Errorf("an ordinary file is an image: %v", err)
	}
	if _, err := SealImage("cellvisor-test", bytes.NewReader([]byte("short")), 6); err == nil {
		t.Error("an image was made of less than there should be")
	}
	file, err := SealImage("cellvisor-test", bytes.NewReader(make([]byte, 10000)), 10000)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("x"), 0); err == nil {
		t.Error("an image was written to")
	}
	if file.Truncate(0) == nil || file.Truncate(20000) == nil {
		t.Error("an image was made shorter or longer")
	}
	im, err := OpenImage(file)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	b := im.Bytes()
	if at, ok := im.Offset(b[4096:8000]); !ok || at != 4096 {
		t.Errorf("a piece at 4096 is at %d, %t", at, ok)
	}
	for name, other := range map[string][]byte{"other": make([]byte, 100), "empty": b[:0], "nil": nil, "bounded": b[0:100:200]} {
		if _, ok := im.Offset(other); ok {
			t.Errorf("%s bytes are a piece of the image", name)
		}
	}
	r := newRAM(t, ident.MiB)
	for name, err := range map[string]error{
		"past the image's end": second2(r.Share(0, im, 4096, 2)), "at an odd offset": second2(r.Share(0, im, 1, 1)), "before it": second2(r.Share(0, im, -4096, 1)),
		"past the memory's end": second2(r.Share(255, im, 0, 2)), "no page": second2(r.Share(0, im, 0, 0)),
	} {
		if err == nil {
			t.Errorf("shared %s", name)
		}
	}
}

func second2(_ bool, err error) error { return err }
