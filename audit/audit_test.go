package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var then = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, path, server string) *Log {
	t.Helper()
	l, err := Open(path, server, then, DefaultMostBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func write(t *testing.T, l *Log, n int) {
	t.Helper()
	for i := range n {
		seq, err := l.Append(Entry{At: then, Kind: Asked, Who: "operator alice", What: "StopVM", Args: json.RawMessage(fmt.Sprintf(`{"name":"vm%d"}`, i))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(Entry{At: then, Kind: Done, Of: seq, Result: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogGoesOnAfterARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, path, "a-1")
	write(t, l, 2)
	l.Close()
	l = open(t, path, "a-1")
	write(t, l, 1)
	r, err := VerifyFile(path)
	if err != nil || len(r.Entries) != 1+4+1+2 || r.Head != l.Head() {
		t.Fatalf("%v, %v", r, err)
	}
	if e := r.Entries[1]; e.Who != "operator alice" || e.What != "StopVM" || string(e.Args) != `{"name":"vm0"}` || e.Server != "a-1" {
		t.Errorf("%+v", e)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// Whatever is done to a log is found: any changed byte, any line removed, repeated, moved or put in, and an end cut off.
func TestTamperingIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, path, "a-1")
	write(t, l, 3)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, forged []byte) {
		t.Helper()
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyFile(path); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range raw {
		forged := bytes.Clone(raw)
		forged[i] ^= 1
		check(fmt.Sprintf("byte %d changed", i), forged)
	}
	lines := bytes.SplitAfter(raw, []byte("\n"))
	lines = lines[:len(lines)-1]
	for i := range lines {
		without := append(append([][]byte{}, lines[:i]...), lines[i+1:]...)
		check(fmt.Sprintf("line %d removed", i+1), bytes.Join(without, nil))
		twice := append(append(append([][]byte{}, lines[:i+1]...), lines[i]), lines[i+1:]...)
		check(fmt.Sprintf("line %d repeated", i+1), bytes.Join(twice, nil))
		check(fmt.Sprintf("cut off before line %d", i+1), bytes.Join(lines[:i], nil))
	}
}

// Who rewrites a log, hashes and head included, is found by what other servers witnessed.
func TestWitnesses(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, filepath.Join(dir, "a"), "a-1"), open(t, filepath.Join(dir, "b"), "b-1")
	write(t, a, 2)
	if err := b.Note(a.Head(), then); err != nil {
		t.Fatal(err)
	}
	before := b.Head()
	if err := b.Note(a.Head(), then); err != nil || b.Head() != before {
		t.Errorf("the same head again: %v, %v", b.Head(), err)
	}
	reports := func() map[string]*Report {
		out := map[string]*Report{}
		for name, server := range map[string]string{"a": "a-1", "b": "b-1"} {
			r, err := VerifyFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			out[server] = r
		}
		return out
	}
	if wrong := CrossCheck(reports()); len(wrong) != 0 {
		t.Errorf("honest logs: %v", wrong)
	}
	a.Close()
	for _, name := range []string{"a", "a.head"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	forged := open(t, filepath.Join(dir, "a"), "a-1")
	if wrong := CrossCheck(reports()); len(wrong) != 1 || !strings.Contains(wrong[0], "cut off") || !strings.Contains(wrong[0], "b-1 witnessed") {
		t.Errorf("a shorter log: %v", wrong)
	}
	if _, err := forged.Append(Entry{At: then, Kind: Asked, Who: "nobody", What: "Nothing"}); err != nil {
		t.Fatal(err)
	}
	write(t, forged, 3)
	if wrong := CrossCheck(reports()); len(wrong) != 1 || !strings.Contains(wrong[0], "rewritten") {
		t.Errorf("a log written anew: %v", wrong)
	}
	for _, h := range []Head{{}, {Server: "b-1", Seq: 1, Hash: strings.Repeat("0", 64)}, {Server: "a-1", Seq: 1, Hash: "x"}} {
		if b.Note(h, then) == nil {
			t.Errorf("witnessed %+v", h)
		}
	}
}

// A server whose log was tampered with goes on, says so, and keeps the evidence.
func TestBrokenLogIsPutAside(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"changed": func(path string) error {
			raw, err := os.ReadFile(path)
			raw[100] ^= 1
			return errors.Join(err, os.WriteFile(path, raw, 0o600))
		},
		"cut off": func(path string) error { return os.Truncate(path, 0) },
		"removed": os.Remove,
	} {
		path := filepath.Join(t.TempDir(), "audit.log")
		l := open(t, path, "a-1")
		write(t, l, 1)
		l.Close()
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		again, err := Open(path, "a-1", then, DefaultMostBytes)
		if !errors.Is(err, ErrBroken) || again == nil {
			t.Fatalf("%s: %v", what, err)
		}
		again.Close()
		r, err := VerifyFile(path)
		if err != nil || len(r.Entries) != 1 || !strings.Contains(r.Entries[0].Result, "did not verify") {
			t.Errorf("%s: the new log: %+v, %v", what, r, err)
		}
	}
}

// A crash in the middle of a write costs the entry that was being written, no more.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, path, "a-1")
	write(t, l, 1)
	l.Close()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("0123456789abcdef {\"seq\":")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, path, "a-1")
	if r, err := VerifyFile(path); err != nil || len(r.Entries) != 4 {
		t.Errorf("%v, %v", r, err)
	}
}
