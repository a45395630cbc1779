package server

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/wire"
)

// droppingLog is an output log of 0, 1, 2, … of which the beginning is dropped, as a worker does it.
type droppingLog struct {
	t          *testing.T
	file, mark *os.File
	text       []byte
	ends       []int // of lines
	dropped    int   // lines
}

func newDroppingLog(t *testing.T, dir string) *droppingLog {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	return &droppingLog{t: t, file: open(wire.WorkerOutputFile), mark: open(wire.WorkerOutputStartFile)}
}

func (d *droppingLog) must(_ int, err error) {
	d.t.Helper()
	if err != nil {
		d.t.Error(err) // from other goroutines, too
	}
}

func (d *droppingLog) grow(n int) {
	before := len(d.text)
	for range n {
		d.text = fmt.Appendf(d.text, "%d\n", len(d.ends))
		d.ends = append(d.ends, len(d.text))
	}
	d.must(d.file.WriteAt(d.text[before:], int64(before)))
}

// drop leaves the last n lines, if there are so many.
func (d *droppingLog) drop(n int) {
	lines := len(d.ends) - n
	if lines <= d.dropped {
		return
	}
	d.dropped = lines
	s := wire.LogStart{Offset: uint64(d.ends[lines-1]), Records: uint64(lines)}
	d.must(d.mark.WriteAt(s.Encode(), 0))
	d.must(0, unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(s.Offset)))
}

// A reader of a log from which is dropped sees each record as it was, in order, none twice, and from some place on all that are kept.
func TestRecordsOfALogThatIsDropped(t *testing.T) {
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		d := newDroppingLog(t, dir)
		r := &records{log: logReader{path: filepath.Join(dir, wire.WorkerOutputFile), start: filepath.Join(dir, wire.WorkerOutputStartFile)}}
		next, skips := uint64(0), 0
		read := func() bool {
			first, batch, err := r.read(1 + rng.IntN(5000))
			if err != nil || len(batch) > 0 && first < next {
				t.Fatalf("seed %d: %d records from %d on, after %d: %v", seed, len(batch), first, next, err)
			}
			if first > next {
				skips++
			}
			for i, b := range batch {
				if uint64(b) != first+uint64(i) {
					t.Fatalf("seed %d: record %d is %d", seed, first+uint64(i), b)
				}
				next = first + uint64(i) + 1
			}
			return len(batch) > 0
		}
		for range 200 {
			switch rng.IntN(3) {
			case 0:
				d.grow(1 + rng.IntN(20_000))
			case 1:
				d.drop(1 + rng.IntN(10_000))
			default:
				read()
			}
		}
		for read() {
		}
		r.log.close()
		if next != uint64(len(d.ends)) || skips == 0 {
			t.Errorf("seed %d: read up to record %d of %d, with %d gaps", seed, next, len(d.ends), skips)
		}
	}
}

// While a log is dropped under a reader, what it reads is never of the hole.
func TestReadingALogWhileItIsDropped(t *testing.T) {
	dir := t.TempDir()
	d := newDroppingLog(t, dir)
	d.grow(200_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for left := len(d.ends) - 1; left > 1000; left -= 500 {
			d.drop(left)
		}
	}()
	for round, ended := 0, false; !ended; round++ {
		select {
		case <-done:
			ended = true
		default:
		}
		r := &records{log: logReader{path: d.file.Name(), start: d.mark.Name()}}
		next := uint64(0)
		for {
			first, batch, err := r.read(700)
			if err != nil || len(batch) > 0 && (first < next || uint64(batch[0]) != first || uint64(batch[len(batch)-1]) != first+uint64(len(batch))-1) {
				t.Fatalf("round %d: %d records from %d on: %.60v, %v", round, len(batch), first, batch, err)
			}
			if len(batch) == 0 {
				break
			}
			next = first + uint64(len(batch))
		}
		r.log.close()
		if next != uint64(len(d.ends)) {
			t.Fatalf("round %d: read up to %d", round, next)
		}
	}
}

// The records of a log are counted once, whatever of it is dropped meanwhile.
func TestLogSizes(t *testing.T) {
	v := &service{s: &Server{workers: &supervisor{dir: t.TempDir()}}}
	vm := &cells.VM{ID: 7, Created: 3}
	dir := filepath.Dir(v.logPath(vm, "x"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := newDroppingLog(t, dir)
	check := func(dropped int) {
		t.Helper()
		if s := v.logSizes(vm); s.records != uint64(len(d.ends)) || s.recordsDropped != uint64(dropped) {
			t.Errorf("%+v, want %d records, %d of them dropped", s, len(d.ends), dropped)
		}
	}
	check(0)
	d.grow(1000)
	check(0)
	d.grow(5)
	check(0)
	d.grow(2000)
	d.drop(10) // with some that were not counted yet
	check(2995)
	d.grow(1)
	check(2995)
	if c := v.counts.of(d.file.Name()); c.at != uint64(len(d.text)) {
		t.Errorf("counted up to %d of %d", c.at, len(d.text))
	}
}
