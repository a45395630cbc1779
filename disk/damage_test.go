//go:build !race

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cellvisor/cellvisor/cells"
)

// Not under the race detector: it turns on checkptr, which ends the process when bbolt follows a damaged count.

// Whatever single byte of the data pages is damaged, and wherever the file is cut: Load finds the same state or says ErrCorrupt.
func TestDamageIsNeverSilent(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	saveT(t, s, &cells.Persist{HardState: hard(1, 1, 0), Entries: entries(1, 40, 1), MustSync: true})
	saveT(t, s, &cells.Persist{HardState: hard(2, 1, 30), Snapshot: snapshot(10), DropThrough: 10, Entries: entries(38, 60, 2), MustSync: true})
	want := describe(loadT(t, s))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, raftFile))
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, damaged []byte) bool {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, raftFile), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(d, testIdentity)
		if err == nil {
			defer s.Close()
			var st cells.Stored
			if st, err = s.Load(); err == nil {
				if got := describe(st); got != want || s.Fresh() {
					t.Errorf("%s: silently loaded %s", what, got)
				}
				return false
			}
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		return true
	}
	caught, page := 0, os.Getpagesize()
	for off := 2 * page; off < len(raw); off += 31 { // the two meta pages have bbolt's own checksums and take each other's place
		damaged := append([]byte{}, raw...)
		damaged[off] ^= 0x41
		if try(fmt.Sprintf("byte %d", off), damaged) {
			caught++
		}
	}
	if caught == 0 {
		t.Error("no damage was noticed at all")
	}
	for _, size := range []int{1, 100, page, 2 * page, 3 * page} {
		if !try(fmt.Sprintf("cut to %d", size), raw[:size]) {
			t.Errorf("file cut to %d bytes was taken", size)
		}
	}
}
