package ram

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/paging"
)

// memStore is a store that fails when told to.
type memStore struct {
	b      []byte
	fail   error // of writes
	unread error // of reads
}

func (m *memStore) ReadAt(b []byte, off int64) (int, error) {
	if m.unread != nil {
		return 0, m.unread
	}
	return copy(b, m.b[off:]), nil
}

func (m *memStore) Free(uint32)   {}
func (m *memStore) Expect(uint32) {}

func (m *memStore) WriteAt(b []byte, off int64) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	if need := int(off) + len(b); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], b), nil
}

func newPaged(t *testing.T, pages, limit int) (*RAM, *Pager, *memStore) {
	t.Helper()
	r, err := New(ident.Bytes(pages) << ident.PageShift)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	store := &memStore{}
	p := r.Page(store, ident.Bytes(limit)<<ident.PageShift, r.Size())
	return r, p, store
}

// Reads and writes of any size see the same contents with a pager as without, and the memfd never holds more than the limit.
func TestPagedMemoryIsMemory(t *testing.T) {
	const pages, limit = 1024, 256
	r, p, _ := newPaged(t, pages, limit)
	want := make([]byte, pages<<ident.PageShift)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		off := rng.IntN(len(want) - 1)
		n := min(len(want)-off, 1+rng.IntN(3*ident.PageSize))
		switch rng.IntN(6) {
		case 0:
			page := ident.PageNo(off >> ident.PageShift)
			if err := r.ZeroPage(page); err != nil {
				t.Fatal(err)
			}
			clear(want[page<<ident.PageShift : (page+1)<<ident.PageShift])
		case 1:
			at := off &^ 1
			if err := r.Store16(int64(at), 0x1234); err != nil {
				t.Fatal(err)
			}
			want[at], want[at+1] = 0x34, 0x12
		case 2:
			got := make([]byte, n)
			if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("%d bytes at 0x%x differ, %v", n, off, err)
			}
		default:
			for i := off; i < off+n; i++ {
				want[i] = byte(rng.Uint32())
			}
			if _, err := r.WriteAt(want[off:off+n], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if got, _ := r.Resident(); got > limit<<ident.PageShift {
			t.Fatalf("%v in memory", got)
		}
	}
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("contents differ, %v", err)
	}
	if err := p.table.Check(); err != nil {
		t.Fatal(err)
	}
	if s := p.Stats(); s.Out == 0 || s.In == 0 || s.Zero > s.Out {
		t.Errorf("%+v", s)
	}
}

func fill(t *testing.T, r *RAM, from, to int) {
	t.Helper()
	buf := make([]byte, ident.PageSize)
	for i := from; i < to; i++ {
		buf[0], buf[1], buf[2] = 1, byte(i), byte(i>>8)
		if err := r.WritePage(ident.PageNo(i), buf); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, r *RAM, from, to int) {
	t.Helper()
	buf := make([]byte, ident.PageSize)
	for i := from; i < to; i++ {
		if err := r.ReadPage(ident.PageNo(i), buf); err != nil || buf[0] != 1 || buf[1] != byte(i) || buf[2] != byte(i>>8) {
			t.Fatalf("page %d begins with %x, %v", i, buf[:3], err)
		}
	}
}

// A disk that is full, or fails, costs no page: they stay in memory, Stats says why, and they leave when it is better.
func TestPagesThatCannotLeaveStay(t *testing.T) {
	r, p, store := newPaged(t, 1024, 256)
	store.fail = errors.New("no space left on device")
	fill(t, r, 0, 400)
	if s := p.Stats(); s.Resident != 400<<ident.PageShift || !strings.Contains(s.Error, "no space left") {
		t.Fatalf("%+v", s)
	}
	check(t, r, 0, 400)
	store.fail = nil
	p.mu.Lock()
	p.retry = p.retry.Add(-pagerRetry)
	p.mu.Unlock()
	p.Settle()
	if s := p.Stats(); s.Resident != 256<<ident.PageShift || s.Error != "" {
		t.Fatalf("%+v", s)
	}
	check(t, r, 0, 400)
	store.unread = errors.New("input/output error")
	lost := 0
	for i := range 400 {
		if err := r.ReadPage(ident.PageNo(i), make([]byte, ident.PageSize)); err != nil {
			lost++
		}
	}
	if lost != 400-256 {
		t.Errorf("%d pages cannot be read, %d are out", lost, 400-256)
	}
}

// A page that equals a disk block leaves without being written, also if it was in the store already, and is itself again before they differ.
func TestPagesThatADiskHasAreDropped(t *testing.T) {
	r, p, store := newPaged(t, 1024, 256)
	disk := &memStore{b: make([]byte, 1024<<ident.PageShift)}
	fill(t, r, 0, 100)
	for i := range 100 {
		if err := r.ReadPage(ident.PageNo(i), disk.b[i<<ident.PageShift:(i+1)<<ident.PageShift]); err != nil {
			t.Fatal(err)
		}
		if i < 50 {
			p.KnowBlock(ident.PageNo(i), Block{No: uint64(i), From: disk})
		}
	}
	fill(t, r, 100, 500)
	for i := 50; i < 100; i++ { // these were written out meanwhile: the guest swaps them out now
		p.KnowBlock(ident.PageNo(i), Block{No: uint64(i), From: disk})
	}
	written := len(store.b)
	if s := p.Stats(); s.Dropped != 100 || p.table.Count(paging.Backed) != 100 {
		t.Fatalf("%+v, %d backed", s, p.table.Count(paging.Backed))
	}
	if err := p.ForgetBlock(7); err != nil {
		t.Fatal(err)
	}
	clear(disk.b[7<<ident.PageShift : 8<<ident.PageShift])
	check(t, r, 0, 500)
	fill(t, r, 500, 540) // into the slots that the 50 left
	if len(store.b) > written {
		t.Errorf("the store has grown from %d to %d bytes", written, len(store.b))
	}
	check(t, r, 0, 540)
}
