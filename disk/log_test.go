package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
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

func entry(index, term uint64) *raftpb.Entry {
	return &raftpb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(term), Type: raftpb.EntryNormal.Enum(),
		Data: []byte(fmt.Sprintf("entry %d of term %d", index, term))}
}

func entries(lo, hi, term uint64) (out []*raftpb.Entry) {
	for i := lo; i <= hi; i++ {
		out = append(out, entry(i, term))
	}
	return out
}

func hard(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: proto.Uint64(term), Vote: proto.Uint64(vote), Commit: proto.Uint64(commit)}
}

func snapshot(index, term uint64) *raftpb.Snapshot {
	return &raftpb.Snapshot{Data: []byte("state"), Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(index), Term: proto.Uint64(term),
		ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}}}
}

func saveT(t testing.TB, s *Store, b Batch) {
	t.Helper()
	if err := s.Save(b); err != nil {
		t.Fatal(err)
	}
}

func describe(st State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "hs=%d/%d/%d snap=%d/%d", st.HardState.GetTerm(), st.HardState.GetVote(), st.HardState.GetCommit(),
		st.Snapshot.GetMetadata().GetIndex(), st.Snapshot.GetMetadata().GetTerm())
	for _, e := range st.Entries {
		fmt.Fprintf(&b, " %d/%d:%s", e.GetIndex(), e.GetTerm(), e.GetData())
	}
	return b.String()
}

func loadT(t testing.TB, s *Store) State {
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
	if st := loadT(t, s); st.HardState != nil || st.Snapshot != nil || st.Entries != nil {
		t.Errorf("new directory holds %s", describe(st))
	}
	saveT(t, s, Batch{HardState: hard(1, 7, 0), Entries: entries(1, 9, 1), Sync: true})
	saveT(t, s, Batch{HardState: hard(2, 3, 5), Entries: entries(6, 8, 2), Sync: true}) // a conflict: 6 and later are replaced
	saveT(t, s, Batch{Snapshot: snapshot(4, 1), CompactTo: 3, Sync: true})              // the tail stays
	want := describe(State{HardState: hard(2, 3, 5), Snapshot: snapshot(4, 1), Entries: append(entries(4, 5, 1), entries(6, 8, 2)...)})
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

func TestSnapshotFromTheLeaderReplacesTheLog(t *testing.T) {
	s := openT(t, t.TempDir())
	saveT(t, s, Batch{HardState: hard(1, 0, 3), Entries: entries(1, 5, 1), Sync: true})
	saveT(t, s, Batch{HardState: hard(4, 0, 90), Snapshot: snapshot(90, 4), Sync: true})
	saveT(t, s, Batch{Entries: entries(91, 92, 4), Sync: true})
	want := describe(State{HardState: hard(4, 0, 90), Snapshot: snapshot(90, 4), Entries: entries(91, 92, 4)})
	if got := describe(loadT(t, s)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A commit index alone is held back, joins the next write, and is written by Close.
func TestCommitIndexWaits(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	saveT(t, s, Batch{HardState: hard(1, 1, 0), Entries: entries(1, 3, 1), Sync: true})
	writes := 0
	s.beforeWrite = func() error { writes++; return nil }
	saveT(t, s, Batch{HardState: hard(1, 1, 2)})
	if writes != 0 {
		t.Error("a newer commit index alone was written")
	}
	saveT(t, s, Batch{HardState: hard(1, 2, 2)}) // a vote is a promise: written at once although Sync is not set
	if writes != 1 {
		t.Errorf("%d writes after a vote", writes)
	}
	saveT(t, s, Batch{HardState: hard(1, 2, 3)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if st := loadT(t, openT(t, dir)); st.HardState.GetCommit() != 3 {
		t.Errorf("commit %d after Close", st.HardState.GetCommit())
	}
}

func TestFailedWritePoisons(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	saveT(t, s, Batch{HardState: hard(1, 1, 0), Entries: entries(1, 3, 1), Sync: true})
	s.beforeWrite = func() error { return unix.EIO }
	if err := s.Save(Batch{Entries: entries(4, 4, 1), Sync: true}); !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v", err)
	}
	s.beforeWrite = nil
	if err := s.Save(Batch{Entries: entries(4, 4, 1), Sync: true}); !errors.Is(err, ErrPoisoned) || !errors.Is(err, unix.EIO) {
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
		e.Data = make([]byte, 8<<10)
		if failed = s.Save(Batch{HardState: hard(1, 1, i), Entries: []*raftpb.Entry{e}, Sync: true}); failed == nil {
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
		saveT(t, s, Batch{HardState: hard(1, 1, i), Entries: entries(i, i, 1), Sync: true})
	}
	raw, err := os.ReadFile(filepath.Join(dir, raftFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, raftFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := loadT(t, openT(t, other)); len(st.Entries) != 50 || st.HardState.GetCommit() != 50 {
		t.Errorf("found %s", describe(st))
	}
}

// Against a twin that is a plain slice: any series of appends, conflicts, snapshots and compactions, with reopening anywhere.
func TestLogAgainstTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		s := openT(t, dir)
		var twin State
		term := uint64(1)
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			first, last := twin.Snapshot.GetMetadata().GetIndex(), twin.Snapshot.GetMetadata().GetIndex()
			if n := len(twin.Entries); n > 0 {
				first, last = twin.Entries[0].GetIndex()-1, twin.Entries[n-1].GetIndex()
			}
			snap := twin.Snapshot.GetMetadata().GetIndex()
			switch rapid.SampledFrom([]string{"append", "conflict", "compact", "install", "reopen"}).Draw(rt, "op") {
			case "append", "conflict":
				term++
				from := rapid.Uint64Range(max(first, snap)+1, last+1).Draw(rt, "from")
				add := entries(from, from+rapid.Uint64Range(0, 5).Draw(rt, "count"), term)
				twin.HardState = hard(term, 1, snap)
				twin.Entries = append(twin.Entries[:from-first-1:from-first-1], add...)
				saveT(t, s, Batch{HardState: twin.HardState, Entries: add, Sync: true})
			case "compact":
				if last == snap || len(twin.Entries) == 0 {
					continue
				}
				at := rapid.Uint64Range(max(snap, first)+1, last).Draw(rt, "at")
				twin.Snapshot = snapshot(at, twin.Entries[at-first-1].GetTerm())
				twin.Entries = twin.Entries[at-first:]
				saveT(t, s, Batch{Snapshot: twin.Snapshot, CompactTo: at})
			case "install":
				term++
				twin = State{HardState: hard(term, 2, last+10), Snapshot: snapshot(last+10, term)}
				saveT(t, s, Batch{HardState: twin.HardState, Snapshot: twin.Snapshot, Sync: true})
			case "reopen":
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = openT(t, dir)
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
		saveT(b, s, Batch{HardState: hard(1, 1, i), Entries: entries(i, i, 1), Sync: true})
	}
}
