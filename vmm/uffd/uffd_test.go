package uffd_test

import (
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

const pages = 64

func newWatched(t testing.TB) (*ram.RAM, *uffd.FD) {
	t.Helper()
	vmmtest.RequireUserfaultfd(t)
	r, err := ram.New(pages * ident.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	f, err := uffd.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		r.Close()
	})
	return r, f
}

// toucher is a thread that takes page faults as a vCPU would. The system call that it makes touches the mapping from inside the kernel, so
// that the faulting thread is in a system call in the Go runtime's eyes, and holds up nobody.
type toucher struct {
	r    *ram.RAM
	ask  chan touch
	done chan uint64
}

type touch struct {
	page  ident.PageNo
	write bool
	value uint64
}

func newToucher(t testing.TB, r *ram.RAM) *toucher {
	x := &toucher{r, make(chan touch), make(chan uint64, 1)}
	go func() {
		runtime.LockOSThread()
		for a := range x.ask {
			x.done <- x.touch(a)
		}
	}()
	t.Cleanup(func() { close(x.ask) })
	return x
}

func (x *toucher) touch(a touch) uint64 {
	var b [8]byte
	addr := x.r.GuestAddr() + uintptr(a.page)<<ident.PageShift
	if a.write {
		binary.LittleEndian.PutUint64(b[:], a.value)
		pokeGuest(addr, b[:])
		return a.value
	}
	peekGuest(addr, b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// start lets the toucher go; it will fault.
func (x *toucher) start(a touch) { x.ask <- a }

func (x *toucher) wait(t testing.TB) uint64 {
	t.Helper()
	select {
	case v := <-x.done:
		return v
	case <-time.After(time.Minute):
		t.Fatal("the touching thread was not woken")
		return 0
	}
}

// blocked tells that the toucher has not come through.
func (x *toucher) blocked(t testing.TB) {
	t.Helper()
	select {
	case <-x.done:
		t.Fatal("a touch came through that should have waited")
	default:
	}
}

func nextFault(t testing.TB, f *uffd.FD) uffd.Fault {
	t.Helper()
	var buf [4]uffd.Fault
	n, err := f.ReadFaults(buf[:])
	if err != nil || n != 1 {
		t.Fatalf("%d faults, %v", n, err)
	}
	return buf[0]
}

func wantFault(t testing.TB, got uffd.Fault, page ident.PageNo, kind uffd.Kind, write bool) {
	t.Helper()
	if got.Page != page || got.Kind != kind || got.Write != write || got.TID == 0 {
		t.Fatalf("fault %+v, want page %d, %s, write %t, and a thread", got, page, kind, write)
	}
}

func pageOf(v uint64) []byte {
	b := make([]byte, ident.PageSize)
	binary.LittleEndian.PutUint64(b, v)
	return b
}

// TestLifeOfAPage follows one page through all its states and back.
func TestLifeOfAPage(t *testing.T) {
	r, f := newWatched(t)
	x := newToucher(t, r)
	const p = ident.PageNo(5)

	x.start(touch{page: p})
	wantFault(t, nextFault(t, f), p, uffd.Missing, false)
	if err := f.Map(p, 1, false); !errors.Is(err, uffd.ErrNoContents) {
		t.Fatalf("mapping a hole: %v", err)
	}
	x.blocked(t)
	if err := r.WritePage(p, pageOf(11)); err != nil {
		t.Fatal(err)
	}
	if err := f.Map(p, 1, false); err != nil {
		t.Fatal(err)
	}
	if v := x.wait(t); v != 11 {
		t.Fatalf("read %d, want 11", v)
	}

	x.start(touch{page: p, write: true, value: 12})
	wantFault(t, nextFault(t, f), p, uffd.WriteProtect, true)
	x.blocked(t)
	if err := f.Map(p, 1, true); err != nil { // mapped already: becomes writable
		t.Fatal(err)
	}
	x.wait(t)

	if err := f.Protect(p, 1, true); err != nil {
		t.Fatal(err)
	}
	x.start(touch{page: p, write: true, value: 13})
	wantFault(t, nextFault(t, f), p, uffd.WriteProtect, true)
	if err := f.Protect(p, 1, false); err != nil {
		t.Fatal(err)
	}
	x.wait(t)

	if err := r.Revoke(p, 1); err != nil {
		t.Fatal(err)
	}
	x.start(touch{page: p, write: true, value: 14})
	wantFault(t, nextFault(t, f), p, uffd.Minor, true)
	got := make([]byte, ident.PageSize)
	if err := r.ReadPage(p, got); err != nil || binary.LittleEndian.Uint64(got) != 13 {
		t.Fatalf("alias reads %d after the revocation, want 13 (%v)", binary.LittleEndian.Uint64(got), err)
	}
	if err := f.Map(p, 1, true); err != nil {
		t.Fatal(err)
	}
	x.wait(t)

	if err := r.ZeroPage(p); err != nil {
		t.Fatal(err)
	}
	x.start(touch{page: p})
	wantFault(t, nextFault(t, f), p, uffd.Missing, false)
	if err := f.MapZero(p, 1, false); err != nil {
		t.Fatal(err)
	}
	if v := x.wait(t); v != 0 {
		t.Fatalf("read %d from a page of zeros", v)
	}
	x.start(touch{page: p, write: true, value: 15})
	wantFault(t, nextFault(t, f), p, uffd.WriteProtect, true)
	if err := f.MapZero(p, 1, true); err != nil { // there already: becomes writable
		t.Fatal(err)
	}
	x.wait(t)
}

// TestMapTakesAwayWriteAccess: a page that is writable and mapped read-only faults at the next write.
func TestMapTakesAwayWriteAccess(t *testing.T) {
	r, f := newWatched(t)
	x := newToucher(t, r)
	if err := f.MapZero(3, 1, true); err != nil {
		t.Fatal(err)
	}
	x.start(touch{page: 3, write: true, value: 1})
	x.wait(t)
	if err := f.Map(3, 1, false); err != nil {
		t.Fatal(err)
	}
	x.start(touch{page: 3, write: true, value: 2})
	wantFault(t, nextFault(t, f), 3, uffd.WriteProtect, true)
	if err := f.Protect(3, 1, false); err != nil {
		t.Fatal(err)
	}
	x.wait(t)
}

// TestRanges: some pages of a range are mapped already, read-only or writable, and some are holes.
func TestRanges(t *testing.T) {
	r, f := newWatched(t)
	for page := ident.PageNo(10); page < 20; page++ {
		if err := r.WritePage(page, pageOf(uint64(page))); err != nil {
			t.Fatal(err)
		}
	}
	for _, page := range []ident.PageNo{10, 14, 15} {
		if err := f.Map(page, 1, page == 15); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Map(10, 10, false); err != nil {
		t.Fatal(err)
	}
	if err := f.Map(18, 4, false); !errors.Is(err, uffd.ErrNoContents) {
		t.Fatalf("a range that runs into holes: %v", err)
	}
	if err := f.MapZero(8, 40, true); err != nil { // pages 10 to 19 keep what they hold
		t.Fatal(err)
	}
	x := newToucher(t, r)
	for page := ident.PageNo(8); page < 48; page++ {
		want := uint64(0)
		if page >= 10 && page < 20 {
			want = uint64(page)
		}
		x.start(touch{page: page})
		if v := x.wait(t); v != want {
			t.Fatalf("page %d reads %d, want %d", page, v, want)
		}
		x.start(touch{page: page, write: true, value: 1})
		x.wait(t)
	}
	for name, err := range map[string]error{
		"map past the end":     f.Map(pages-1, 2, false),
		"zero past the end":    f.MapZero(pages, 1, false),
		"protect past the end": f.Protect(1, ^uint64(0), true),
		"wake past the end":    f.Wake(^ident.PageNo(0), 1),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestTwoThreadsOnePage: both wait for the same page, one Map wakes both; so does a Map that finds the page mapped.
func TestTwoThreadsOnePage(t *testing.T) {
	r, f := newWatched(t)
	a, b := newToucher(t, r), newToucher(t, r)
	a.start(touch{page: 9})
	first := nextFault(t, f)
	b.start(touch{page: 9})
	second := nextFault(t, f)
	if first.TID == second.TID {
		t.Fatalf("both faults name thread %d", first.TID)
	}
	for range 2 {
		if err := f.MapZero(9, 1, false); err != nil {
			t.Fatal(err)
		}
	}
	a.wait(t)
	b.wait(t)
}

// TestInterrupt: the reader comes back at once, and for good.
func TestInterrupt(t *testing.T) {
	_, f := newWatched(t)
	back := make(chan error, 1)
	go func() {
		var buf [1]uffd.Fault
		_, err := f.ReadFaults(buf[:])
		back <- err
	}()
	f.Interrupt()
	select {
	case err := <-back:
		if !errors.Is(err, uffd.ErrInterrupted) {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("reader was not interrupted")
	}
	var buf [1]uffd.Fault
	if _, err := f.ReadFaults(buf[:]); !errors.Is(err, uffd.ErrInterrupted) {
		t.Fatalf("second read: %v", err)
	}
}

// BenchmarkFault is the floor of a page fault: read it, map the page, wake; no contents from anywhere.
func BenchmarkFault(b *testing.B) {
	r, f := newWatched(b)
	if err := r.WritePage(0, pageOf(1)); err != nil {
		b.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		var buf [8]uffd.Fault
		for {
			n, err := f.ReadFaults(buf[:])
			if err != nil {
				return
			}
			for _, fault := range buf[:n] {
				_ = f.Map(fault.Page, 1, true)
			}
		}
	}()
	b.Cleanup(f.Interrupt)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var one [8]byte
	times := make([]time.Duration, 0, 1<<16)
	for b.Loop() {
		if err := r.Revoke(0, 1); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		peekGuest(r.GuestAddr(), one[:])
		if len(times) < cap(times) {
			times = append(times, time.Since(start))
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "median-ns")
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds()), "p99-ns")
}

// Write protection alone: pages come and go unwatched, a write to a protected one waits, also after the memory was renewed.
func TestProtectOnly(t *testing.T) {
	vmmtest.RequireUserfaultfd(t)
	r, err := ram.New(pages * ident.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	f, err := uffd.OpenProtect(r.GuestAddr(), r.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer f.Close()
	x := newToucher(t, r)
	for boot := range uint64(3) {
		x.start(touch{page: 1, write: true, value: 7})
		x.wait(t)
		if err := r.WritePage(2, make([]byte, ident.PageSize)); err != nil { // not mapped by the guest yet
			t.Fatal(err)
		}
		for _, page := range []ident.PageNo{1, 2} {
			if err := f.Protect(page, 1, true); err != nil {
				t.Fatal(err)
			}
			x.start(touch{page: page})
			if got := x.wait(t); got != []uint64{7, 0}[page-1] {
				t.Fatalf("page %d holds %d", page, got)
			}
			x.start(touch{page: page, write: true, value: boot})
			faults := make([]uffd.Fault, 4)
			n, err := f.ReadFaults(faults)
			if err != nil || n != 1 || faults[0].Page != page || faults[0].Kind != uffd.WriteProtect || !faults[0].Write {
				t.Fatalf("faults %+v: %v", faults[:n], err)
			}
			if err := f.Protect(page, 1, false); err != nil {
				t.Fatal(err)
			}
			x.wait(t)
			if err := f.Protect(page, 1, true); err != nil {
				t.Fatal(err)
			}
		}
		kept, err := r.Renew()
		if err != nil {
			t.Fatal(err)
		}
		kept.Close()
		if err := f.Register(); err != nil {
			t.Fatal(err)
		}
	}
}
