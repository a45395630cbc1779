package worker

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// keptLog is what is left of a log in a directory, and where it begins.
func keptLog(t *testing.T, dir, name, start string) (wire.LogStart, string) {
	t.Helper()
	for { // a start may be read while it is written
		b, err := os.ReadFile(filepath.Join(dir, start))
		if err != nil {
			t.Fatal(err)
		}
		s, err := wire.DecodeLogStart(b)
		if err != nil {
			continue
		}
		text := contents(t, filepath.Join(dir, name))
		if again, err := os.ReadFile(filepath.Join(dir, start)); err == nil && bytes.Equal(b, again) {
			return s, text[s.Offset:]
		}
	}
}

func heldOnDisk(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// Whatever a guest puts out, a log takes no more room than its limit and a little, begins with a whole line, and knows which.
func TestLogsAreBounded(t *testing.T) {
	const limit = wire.LogMaxLeast
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 0))
		dir := t.TempDir()
		h, err := newHome(&files{dir: dir, logLimit: limit}, 1, func(uint32) {})
		if err != nil {
			t.Fatal(err)
		}
		var all []byte
		for n := 0; len(all) < 5*limit; n++ {
			piece := fmt.Appendf(nil, "line %d %s", n, strings.Repeat("x", rng.IntN(200)))
			if rng.IntN(50) == 0 {
				piece = bytes.Repeat([]byte("long"), rng.IntN(limit/3))
			}
			if rng.IntN(4) > 0 {
				piece = append(piece, '\n')
			}
			all = append(all, piece...)
			if err := h.console.put(piece, false); err != nil {
				t.Fatal(err)
			}
			if kept := h.console.written - int64(h.console.start.Offset); kept > limit {
				t.Fatalf("seed %d: %d bytes are kept", seed, kept)
			}
		}
		h.close()
		s, kept := keptLog(t, dir, wire.WorkerConsoleFile, wire.WorkerConsoleStartFile)
		switch {
		case kept != string(all[s.Offset:]):
			t.Errorf("seed %d: what is kept from %d on is not what was put out", seed, s.Offset)
		case s.Offset == 0, s.Records != uint64(bytes.Count(all[:s.Offset], []byte{'\n'})):
			t.Errorf("seed %d: begins at %+v", seed, s)
		case heldOnDisk(t, filepath.Join(dir, wire.WorkerConsoleFile)) > limit+8192:
			t.Errorf("seed %d: %d bytes on disk", seed, heldOnDisk(t, filepath.Join(dir, wire.WorkerConsoleFile)))
		}
		again, err := newHome(&files{dir: dir, logLimit: limit}, 1, func(uint32) {})
		if err != nil || again.console.start != s || again.console.written != int64(len(all)) {
			t.Errorf("seed %d: opened again it begins at %+v and ends at %d, %v", seed, again.console.start, again.console.written, err)
		}
		again.close()
	}
}

// checkKept checks that a log holds consecutive records, of which the first is the one that it says, and returns the number of the one after the last.
func checkKept(t *testing.T, dir string) (first, end int) {
	t.Helper()
	s, text := keptLog(t, dir, wire.WorkerOutputFile, wire.WorkerOutputStartFile)
	text = text[:strings.LastIndexByte(text, '\n')+1]
	at := int(s.Records)
	for line := range strings.FieldsSeq(text) {
		if line != strconv.Itoa(at) {
			t.Fatalf("record %d of the log that begins at %+v is %.40q", at, s, line)
		}
		at++
	}
	return int(s.Records), at
}

// A replica has the output that is kept, however much there was before, and whether it joins first, beside another, or was there already; and each drops
// for itself.
func TestANewReplicaGetsTheOutputThatIsKept(t *testing.T) {
	const args, limit = "0 0", wire.LogMaxLeast // as fast as it goes
	options := map[string]string{wire.OptionLogMax: strconv.Itoa(limit)}
	v := startVMWith(t, options, "count", args, 16*ident.MiB, 1)
	grown := func(part, by int) {
		t.Helper()
		_, at := checkKept(t, v.parts[part].dir)
		for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Millisecond) {
			_, now := checkKept(t, v.parts[part].dir)
			if now >= at+by {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d more records, want %d\n%s", now-at, by, v.logs())
			}
		}
	}
	grown(0, limit/3)
	spec := testSpec(1, 1, "count", args, 16*ident.MiB)
	spec.Options = options
	first := v.addStandbyOf(1, spec)
	v.awaitProtected(0, 1)
	grown(0, limit/2)
	spec = testSpec(2, 1, "count", args, 16*ident.MiB)
	spec.Options = options
	second := v.addStandbyOf(2, spec)
	both := ident.PartSet(0).Set(first).Set(second)
	v.protect(3, both)
	v.awaitProtected(0, 3)
	grown(0, 1000)
	v.protect(4, both)
	v.awaitProtected(0, 4)
	grown(0, limit/2)
	v.kill(0)
	_, seen := checkKept(t, v.parts[0].dir)
	m := wire.WorkerMembers{Epoch: 2, Home: second, Restore: true, Image: second, Members: []wire.WorkerMember{v.member(int(second))}}
	m.Members[0].VCPUs = []ident.VCPU{0}
	v.sendTo(int(second), wire.ToWorker{Members: &m})
	<-v.parts[second].restored
	grown(int(second), limit/2)
	for _, part := range []ident.Part{first, second} {
		dir := v.parts[part].dir
		if from, end := checkKept(t, dir); end < seen || from == 0 {
			t.Errorf("the outside has seen %d records, %s has %d to %d", seen, part, from, end)
		}
		if n := heldOnDisk(t, filepath.Join(dir, wire.WorkerOutputFile)); n > limit+16384 {
			t.Errorf("%s: the log takes %d bytes", part, n)
		}
	}
}

// What came with the full copy is not in the checkpoint that begins a replica's history: the guest stands still for that.
func TestHistoryIsWhatCameAfterTheFullCopy(t *testing.T) {
	h, _, _ := testHome(t, 1, nil)
	if err := h.console.put(bytes.Repeat([]byte("x"), 3*streamPiece/2), false); err != nil {
		t.Fatal(err)
	}
	w := &Worker{}
	w.home.Store(h)
	r := &replicas{w: w}
	end, ok := r.copyLogs(&share{}, func(bool) bool { return true })
	if !ok || end.console != 3*streamPiece/2 {
		t.Fatalf("copied up to %+v, %t", end, ok)
	}
	if err := h.console.put([]byte("sevenby"), false); err != nil {
		t.Fatal(err)
	}
	s := &share{}
	if err := h.historyTo(s, end); err != nil {
		t.Fatal(err)
	}
	err := eachRecord(s.chunks[0], func(kind recordType, key uint64, b []byte) error {
		if kind != recordConsole || int64(key) != end.console || string(b) != "sevenby" {
			t.Errorf("record %d at %d: %q", kind, key, b)
		}
		return nil
	})
	if err != nil || len(s.chunks) != 1 {
		t.Errorf("%d chunks, %v", len(s.chunks), err)
	}
	r.logged, r.logsOf, r.protect = end, 5, wire.WorkerProtect{Seq: 6, Standbys: 0b110}
	for _, c := range []struct {
		seq  uint64
		safe ident.PartSet
		from int64
		all  bool
	}{{5, 0b010, end.console, false}, {6, 0b010, 0, false}, {6, 0b110, 0, true}} {
		r.safe = c.safe
		if from, all := r.logsFrom(c.seq); from.console != c.from || all != c.all {
			t.Errorf("%+v: from %+v, all %t", c, from, all)
		}
	}
}

// A guest that puts out more than is kept while a copy is under way makes that skip, never repeat or invent.
func TestACopyOfALogThatIsDropped(t *testing.T) {
	const limit = wire.LogMaxLeast
	dir := t.TempDir()
	h, err := newHome(&files{dir: dir, logLimit: limit}, 1, func(uint32) {})
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	var all []byte
	more := func(n int) {
		t.Helper()
		for end := len(all) + n; len(all) < end; {
			line := fmt.Appendf(nil, "%d\n", len(all))
			all = append(all, line...)
			if err := h.output.put(line, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	more(limit / 2)
	var begins []uint64
	var at int64
	end, err := h.eachPiece(&h.output, 0, 4096, func(s wire.LogStart) error {
		begins, at = append(begins, s.Offset), int64(s.Offset)
		return nil
	}, func(off int64, b []byte) error {
		if off != at || !bytes.Equal(b, all[off:off+int64(len(b))]) {
			t.Fatalf("at %d, not %d: %.40q", off, at, b)
		}
		if at += int64(len(b)); len(begins) == 0 {
			more(limit)
		}
		return nil
	})
	if err != nil || len(begins) == 0 || end < int64(begins[0]) {
		t.Errorf("ended at %d, skipped to %v: %v", end, begins, err)
	}
}
