package ram

import (
	"bytes"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func TestRenew(t *testing.T) {
	r := newRAM(t, ident.MiB)
	if err := r.Store16(9<<ident.PageShift, 0x1234); err != nil { // makes the mapping for devices
		t.Fatal(err)
	}
	var boots []*Kept
	page := func(n byte) []byte { return bytes.Repeat([]byte{n}, ident.PageSize) }
	for n := byte(1); n <= 3; n++ {
		for _, p := range []ident.PageNo{0, 7, 255} {
			if err := r.WritePage(p, page(n)); err != nil {
				t.Fatal(err)
			}
		}
		k, err := r.Renew()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close() })
		boots = append(boots, k)
		if resident, err := r.Resident(); err != nil || resident != 0 {
			t.Fatalf("renewed memory takes %d bytes: %v", resident, err)
		}
		if v, err := r.Load16(9 << ident.PageShift); err != nil || v != 0 {
			t.Fatalf("renewed memory holds %#x: %v", v, err)
		}
	}
	got := make([]byte, ident.PageSize)
	for i, k := range boots {
		for _, p := range []ident.PageNo{0, 7, 255} {
			if err := k.ReadPage(p, got); err != nil || !bytes.Equal(got, page(byte(i+1))) {
				t.Fatalf("page %d of boot %d is %x…: %v", p, i, got[:4], err)
			}
		}
		if err := k.Only([]ident.PageNo{7}); err != nil {
			t.Fatal(err)
		}
		if n, err := k.Resident(); err != nil || n != ident.PageSize {
			t.Errorf("one kept page takes %d bytes: %v", n, err)
		}
		if err := k.ReadPage(7, got); err != nil || got[0] != byte(i+1) {
			t.Errorf("the kept page is %x…: %v", got[:4], err)
		}
		if k.ReadPage(256, got) == nil || k.ReadPage(1, got[:7]) == nil {
			t.Error("a page that is not there was read")
		}
		if err := k.Only(nil); err != nil {
			t.Error(err)
		}
	}
	// The guest mapping is the new memory's: what is written through it arrives there.
	if err := r.Zero(0, r.Pages()); err != nil {
		t.Error(err)
	}
}
