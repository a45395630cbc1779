package disk

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/cells"
)

var testIdentity = Identity{ClusterID: "c-1", Server: 7}

func openT(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func entry(index, term uint64) cells.LogEntry {
	return cells.LogEntry{Index: index, Bytes: []byte(fmt.Sprintf("entry %d of term %d", index, term))}
}

func entries(lo, hi, term uint64) (out []cells.LogEntry) {
	for i := lo; i <= hi; i++ {
		out = append(out, entry(i, term))
	}
	return out
}

func hard(term, vote, commit uint64) []byte { return fmt.Appendf(nil, "%d/%d/%d", term, vote, commit) }

func snapshot(index uint64) *cells.StoredSnapshot {
	return &cells.StoredSnapshot{Index: index, Bytes: fmt.Appendf(nil, "state at %d", index)}
}

func saveT(t testing.TB, s *Store, p *cells.Persist) {
	t.Helper()
	if err := s.Save(p); err != nil {
		t.Fatal(err)
	}
}

func describe(st cells.Stored) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hs=%s", st.HardState)
	if st.Snapshot != nil {
		fmt.Fprintf(&b, " snap=%d:%s", st.Snapshot.Index, st.Snapshot.Bytes)
	}
	for _, e := range st.Entries {
		fmt.Fprintf(&b, " %d:%s", e.Index, e.Bytes)
	}
	return b.String()
}

func loadT(t testing.TB, s *Store) cells.Stored {
	t.Helper()
	st, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestReopenFindsWhatWasSaved(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	if !s.Fresh() {
		t.Error("a new directory must be fresh")
	}
	if st := loadT(t, s); !st.Empty() {
		t.Errorf("new directory holds %s", describe(st))
	}
	saveT(t, s, &cells.Persist{HardState: hard(1, 7, 0), Entries: entries(1, 9, 1), MustSync: true})
	saveT(t, s, &cells.Persist{HardState: hard(2, 3, 5), Entries: entries(6, 8, 2), MustSync: true}) // a conflict: 6 and later are replaced
	saveT(t, s, &cells.Persist{Snapshot: snapshot(4), DropThrough: 3, MustSync: true})
	want := describe(cells.Stored{HardState: hard(2, 3, 5), Snapshot: snapshot(4), Entries: append(entries(4, 5, 1), entries(6, 8, 2)...)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openT(t, dir)
	if s.Fresh() || s.Identity() != testIdentity {
		t.Errorf("fresh %v, identity %v", s.Fresh(), s.Identity())
	}
	if got := describe(loadT(t, s)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A commit index alone is held back, joins the next write, and is written by Close.
func TestCommitIndexWaits(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	saveT(t, s, &cells.Persist{HardState: hard(1, 1, 0), Entries: entries(1, 3, 1), MustSync: true})
	writes := 0
	s.beforeWrite = func() error { writes++; return nil }
	saveT(t, s, &cells.Persist{HardState: hard(1, 1, 2)})
	if writes != 0 {
		t.Error("a newer commit index alone was written")
	}
	saveT(t, s, &cells.Persist{Entries: entries(4, 4, 1), MustSync: true})
	if got := string(loadT(t, s).HardState); writes != 1 || got != "1/1/2" {
		t.Errorf("%d writes, hard state %s", writes, got)
	}
	saveT(t, s, &cells.Persist{HardState: hard(1, 1, 3)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := string(loadT(t, openT(t, dir)).HardState); got != "1/1/3" {
		t.Errorf("hard state %s after Close", got)
	}
}

func TestFailedWritePoisons(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	saveT(t, s, &cells.Persist{HardState: hard(1, 1, 0), Entries: entries(1, 3, 1), MustSync: true})
	s.beforeWrite = func() error { return unix.EIO }
	if err := s.Save(&cells.Persist{Entries: entries(4, 4, 1), MustSync: true}); !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v", err)
	}
	s.beforeWrite = nil
	if err := s.Save(&cells.Persist{Entries: entries(4, 4, 1), MustSync: true}); !errors.Is(err, ErrPoisoned) || !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if st := loadT(t, openT(t, dir)); len(st.Entries) != 3 {
		t.Errorf("found %s", describe(st))
	}
}

// On a file system of 1 MiB the log grows until ENOSPC; all that Save reported as done is there afterwards.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s := openT(t, filepath.Join(dir, "data"))
	saved, failed := uint64(0), error(nil)
	for i := uint64(1); i < 2000 && failed == nil; i++ {
		e := entry(i, 1)
		e.Bytes = make([]byte, 8<<10)
		if failed = s.Save(&cells.Persist{HardState: hard(1, 1, i), Entries: []cells.LogEntry{e}, MustSync: true}); failed == nil {
			saved = i
		}
	}
	if !errors.Is(failed, unix.ENOSPC) || saved == 0 {
		t.Fatalf("after %d entries: %v", saved, failed)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openT(t, filepath.Join(dir, "data"))
	if st := loadT(t, s); uint64(len(st.Entries)) != saved {
		t.Errorf("%d entries were saved, %d are there", saved, len(st.Entries))
	}
	_ = s.Close()
}

// The kill -9 of a process between two writes: the file as it is, opened by another process, is complete.
func TestCopyOfTheOpenFileIsComplete(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	s := openT(t, dir)
	for i := uint64(1); i <= 50; i++ {
		saveT(t, s, &cells.Persist{HardState: hard(1, 1, i), Entries: entries(i, i, 1), MustSync: true})
	}
	raw, err := os.ReadFile(filepath.Join(dir, raftFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, raftFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := loadT(t, openT(t, other)); len(st.Entries) != 50 || string(st.HardState) != "1/1/50" {
		t.Errorf("found %s", describe(st))
	}
}

// Against the reference, cells.Stored.Apply: any series of appends, conflicts, snapshots and compactions, with reopening anywhere.
func TestLogAgainstReference(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		s := openT(t, dir)
		var twin cells.Stored
		term := uint64(0)
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			var snap uint64
			if twin.Snapshot != nil {
				snap = twin.Snapshot.Index
			}
			last := snap
			if n := len(twin.Entries); n > 0 {
				last = twin.Entries[n-1].Index
			}
			var p *cells.Persist
			term++
			switch rapid.SampledFrom([]string{"append", "compact", "install", "reopen"}).Draw(rt, "op") {
			case "append":
				from := rapid.Uint64Range(snap+1, last+1).Draw(rt, "from")
				count := rapid.SampledFrom([]uint64{0, 1, 5, 200}).Draw(rt, "count") // the last one takes many pages
				p = &cells.Persist{HardState: hard(term, 1, snap), MustSync: true, Entries: entries(from, from+count, term)}
			case "compact":
				if last > snap {
					at := rapid.SampledFrom([]uint64{snap + 1, (snap + last + 1) / 2, last}).Draw(rt, "at")
					p = &cells.Persist{Snapshot: snapshot(at), DropThrough: at}
				}
			case "install":
				p = &cells.Persist{HardState: hard(term, 2, last+10), Snapshot: snapshot(last + 10), DropThrough: math.MaxUint64, MustSync: true}
			case "reopen":
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = openT(t, dir)
			}
			if p != nil {
				saveT(t, s, p)
				twin = twin.Apply(p)
			}
			if got, want := describe(loadT(t, s)), describe(twin); got != want {
				rt.Fatalf("got  %s\nwant %s", got, want)
			}
		}
		_ = s.Close()
	})
}

func BenchmarkSave(b *testing.B) {
	s := openT(b, b.TempDir())
	for i := uint64(1); b.Loop(); i++ {
		saveT(b, s, &cells.Persist{HardState: hard(1, 1, i), Entries: entries(i, i, 1), MustSync: true})
	}
}
