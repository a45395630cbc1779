package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func small(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path, "a-1", then, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A log goes on over many files with one chain, through restarts, in bounded space.
func TestLogGoesOnInNewFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := small(t, path)
	for range 2 {
		for len(olderFiles(path)) < 3 {
			write(t, l, 20)
		}
		l.Close()
		l = small(t, path)
	}
	r, err := VerifyFile(path)
	if err != nil || r.Head != l.Head() || r.First() != 1 || uint64(len(r.Entries)) != r.Head.Seq {
		t.Fatalf("%v, entries %d", err, len(r.Entries))
	}
	early := Head{Server: "a-1", Seq: 5, Hash: r.hashes[4]}
	for r.First() == 1 {
		write(t, l, 100)
		if r, err = VerifyFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(olderFiles(path)); n != fileShare-1 {
		t.Errorf("%d older files", n)
	}
	if r.Head != l.Head() || uint64(len(r.Entries)) != r.Head.Seq-r.First()+1 {
		t.Errorf("%d entries from %d, head %+v of %+v", len(r.Entries), r.First(), r.Head, l.Head())
	}
	if err := r.Holds(early); err != nil {
		t.Errorf("what was removed to save space: %v", err)
	}
	if err := r.Holds(Head{Server: "a-1", Seq: r.First() + 3, Hash: early.Hash}); !errors.Is(err, ErrBroken) {
		t.Errorf("another entry: %v", err)
	}
	all, head, err := l.Read()
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	if got, err := Verify(all, &head); err != nil || got.Head != head {
		t.Errorf("read as one: %v", err)
	}
}

// What is done to an older file is found as well.
func TestOlderFilesAreVerified(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := small(t, path)
	for len(olderFiles(path)) < 3 {
		write(t, l, 20)
	}
	l.Close()
	older := olderFiles(path)
	raw, err := os.ReadFile(older[1])
	if err != nil {
		t.Fatal(err)
	}
	for what, forged := range map[string][]byte{
		"changed": bytes.Replace(raw, []byte("alice"), []byte("bobby"), 1), "cut off": raw[:bytes.LastIndexByte(raw[:len(raw)-1], '\n')+1], "emptied": nil,
	} {
		if err := os.WriteFile(older[1], forged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyFile(path); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.Remove(older[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyFile(path); !errors.Is(err, ErrBroken) {
		t.Errorf("removed from the middle: %v", err)
	}
	again, err := Open(path, "a-1", then, 0)
	if !errors.Is(err, ErrBroken) || again == nil {
		t.Fatalf("opened: %v", err)
	}
	again.Close()
	if r, err := VerifyFile(path); err != nil || !strings.Contains(r.Entries[0].Result, "did not verify") {
		t.Errorf("begun anew: %v", err)
	}
}

// A crash between the end of a file and the beginning of the next one leaves a log that goes on.
func TestCrashBetweenFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := small(t, path)
	write(t, l, 3)
	head := l.Head()
	l.Close()
	if err := os.Rename(path, path+"-00000000000000000001"); err != nil {
		t.Fatal(err)
	}
	l = small(t, path)
	write(t, l, 1)
	r, err := VerifyFile(path)
	if err != nil || r.Holds(head) != nil || r.First() != 1 {
		t.Fatalf("%v", err)
	}
}

// On a full disk nothing is recorded, and whoever asks is told; once there is room the log goes on as if nothing had been.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := small(t, path)
	write(t, l, 2)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	good, head := l.file, l.Head()
	l.file = full
	if _, err := l.Append(Entry{At: then, Kind: Asked, What: "StopVM"}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("on a full disk: %v", err)
	}
	if l.Head() != head {
		t.Error("the head has moved")
	}
	l.file = good
	write(t, l, 1)
	if r, err := VerifyFile(path); err != nil || r.Head != l.Head() {
		t.Errorf("afterwards: %v", err)
	}
}
