package ram

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

func newRAM(t *testing.T, size ident.Bytes) *RAM {
	t.Helper()
	r, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestContents(t *testing.T) {
	r := newRAM(t, ident.MiB)
	page, got := bytes.Repeat([]byte{0xa5}, ident.PageSize), make([]byte, ident.PageSize)
	if err := r.ReadPage(7, got); err != nil || !bytes.Equal(got, make([]byte, ident.PageSize)) {
		t.Fatalf("a fresh page is not zero: %v", err)
	}
	if n, err := r.Resident(); err != nil || n != 0 {
		t.Fatalf("reading a hole took %d bytes of memory: %v", n, err)
	}
	if err := r.WritePage(7, page); err != nil {
		t.Fatal(err)
	}
	if err := r.Revoke(7, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.ReadPage(7, got); err != nil || !bytes.Equal(got, page) {
		t.Fatalf("contents did not survive a revocation: %v", err)
	}
	if n, err := r.Resident(); err != nil || n != ident.PageSize {
		t.Fatalf("one page takes %d bytes: %v", n, err)
	}
	if err := r.ZeroPage(7); err != nil {
		t.Fatal(err)
	}
	if err := r.ReadPage(7, got); err != nil || !bytes.Equal(got, make([]byte, ident.PageSize)) {
		t.Fatalf("a zeroed page is not zero: %v", err)
	}
	if n, err := r.Resident(); err != nil || n != 0 {
		t.Fatalf("a zeroed page takes %d bytes: %v", n, err)
	}
}

func TestOutOfRange(t *testing.T) {
	r := newRAM(t, ident.MiB)
	buf := make([]byte, ident.PageSize)
	const huge = ^ident.PageNo(0)
	for name, err := range map[string]error{
		"read the page after the last":  r.ReadPage(256, buf),
		"write the page after the last": r.WritePage(256, buf),
		"read a huge page number":       r.ReadPage(huge, buf),
		"zero a huge page number":       r.ZeroPage(huge),
		"revoke past the end":           r.Revoke(255, 2),
		"revoke a huge number":          r.Revoke(1, ^uint64(0)),
		"a short buffer":                r.ReadPage(0, buf[:10]),
		"a long buffer":                 r.WritePage(0, make([]byte, 5000)),
		"read at a negative offset":     second(r.ReadAt(buf, -1)),
		"write across the end":          second(r.WriteAt(buf, int64(ident.MiB)-1)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := r.Revoke(256, 0); err != nil {
		t.Errorf("revoke of no page at the end: %v", err)
	}
}

func second(_ int, err error) error { return err }

func TestSizes(t *testing.T) {
	for _, size := range []ident.Bytes{0, 1, 4097, 1 << 50} {
		if r, err := New(size); err == nil {
			r.Close()
			t.Errorf("memory of %d bytes was made", size)
		}
	}
	// A part of a spanning VM may have more guest memory than its host: only the pages it holds count.
	newRAM(t, 512*ident.GiB)
}

func TestNoMemoryIsNamed(t *testing.T) {
	for _, errno := range []error{unix.ENOSPC, unix.ENOMEM} {
		if err := describe("write", ident.GiB, errno); !errors.Is(err, ErrNoMemory) || !errors.Is(err, errno) {
			t.Errorf("%v became %v", errno, err)
		}
	}
	if err := describe("write", ident.GiB, unix.EIO); errors.Is(err, ErrNoMemory) {
		t.Errorf("EIO became %v", err)
	}
}

func TestCloseTwice(t *testing.T) {
	r, err := New(ident.MiB)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
