package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func openTestImage(t testing.TB, dir string, c ImageConfig) *Image {
	t.Helper()
	m, err := OpenImage(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func blockOf(seed byte) []byte {
	b := bytes.Repeat([]byte{seed}, BlockBytes)
	if seed != 0 {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		for i := range b {
			b[i] = byte(r.Uint32()) | 1
		}
	}
	return b
}

func (m *Image) mustHold(t testing.TB, block uint64, want []byte) {
	t.Helper()
	got := make([]byte, BlockBytes)
	if err := m.ReadBlock(block, got); err != nil {
		t.Fatalf("block %d: %v", block, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("block %d begins with % x, want % x", block, got[:8], want[:8])
	}
}

// crash leaves the files as they are now: the process is gone. They are copied, so that the old image may be closed.
func crash(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range []string{"image", "sums", "journal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// TestImageAgainstATwin: whatever is written, flushed, closed and crashed, what was flushed is there, batches are whole, and every block is one that
// was written.
func TestImageAgainstATwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const blocks = 16
		dir := t.TempDir()
		m := openTestImage(t, dir, ImageConfig{Bytes: blocks * BlockBytes})
		now, durable := make([]byte, blocks), make([]byte, blocks)
		states := [][]byte{bytes.Clone(now)} // since the last flush: one of these must come back
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				if err := m.Close(); err != nil {
					rt.Fatal(err)
				}
				m = openTestImage(t, dir, ImageConfig{})
				durable, states = bytes.Clone(now), [][]byte{bytes.Clone(now)}
			case 1: // a crash that keeps all, or tears the journal's end
				dir = crash(t, dir)
				m.Close()
				if cut := rapid.IntRange(0, 3).Draw(rt, "sectors lost"); cut > 0 && len(states) > 1 {
					tear(t, filepath.Join(dir, "journal"), int64(cut)*sectorBytes)
				}
				m = openTestImage(t, dir, ImageConfig{})
				found := -1
				for i, s := range states {
					same := true
					buf := make([]byte, BlockBytes)
					for b := range s {
						same = same && m.ReadBlock(uint64(b), buf) == nil && bytes.Equal(buf, blockOf(s[b]))
					}
					if same {
						found = i
					}
				}
				if found < 0 {
					rt.Fatalf("after a crash the disk is none of the %d states since the flush", len(states))
				}
				now = bytes.Clone(states[found])
				durable, states = bytes.Clone(now), [][]byte{bytes.Clone(now)}
			case 2:
				if err := m.Commit(nil, true); err != nil {
					rt.Fatal(err)
				}
				durable, states = bytes.Clone(now), [][]byte{bytes.Clone(now)}
			default:
				var writes []Write
				for range rapid.IntRange(1, 5).Draw(rt, "blocks") {
					block, seed := rapid.IntRange(0, blocks-1).Draw(rt, "block"), rapid.ByteRange(0, 9).Draw(rt, "seed")
					now[block] = seed
					w := Write{Block: uint64(block), Data: blockOf(seed)}
					if seed == 0 && rapid.Bool().Draw(rt, "nil") {
						w.Data = nil
					}
					writes = append(writes, w)
				}
				if err := m.Commit(writes, false); err != nil {
					rt.Fatal(err)
				}
				states = append(states, bytes.Clone(now))
			}
			for b := range now {
				m.mustHold(t, uint64(b), blockOf(now[b]))
				if m.Sum(uint64(b)) != sumOf(blockOf(now[b])) {
					rt.Fatalf("checksum of block %d", b)
				}
			}
		}
		_ = durable
		m.Close()
	})
}

// tear makes the last n bytes of a file zeros, as sectors are that never arrived.
func tear(t testing.TB, path string, n int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[max(0, int64(len(b))-n):])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFlippedBitsAreFound(t *testing.T) {
	dir := t.TempDir()
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes})
	if err := m.Commit([]Write{{Block: 3, Data: blockOf(7)}, {Block: 4, Data: blockOf(8)}}, true); err != nil {
		t.Fatal(err)
	}
	open := crash(t, dir)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("image", func(t *testing.T) {
		flip(t, filepath.Join(dir, "image"), 3*BlockBytes+100)
		m := openTestImage(t, dir, ImageConfig{})
		defer m.Close()
		if err := m.ReadBlock(3, make([]byte, BlockBytes)); !errors.Is(err, ErrBadBlock) {
			t.Errorf("block 3: %v", err)
		}
		m.mustHold(t, 4, blockOf(8))
		if err := m.Commit([]Write{{Block: 3, Data: blockOf(7)}}, true); err != nil { // repaired from elsewhere
			t.Fatal(err)
		}
		m.mustHold(t, 3, blockOf(7))
	})
	for _, at := range []int64{10, 70, BlockBytes + 9} {
		t.Run("journal", func(t *testing.T) {
			dir := crash(t, open)
			flip(t, filepath.Join(dir, "journal"), at)
			taken, err := OpenImage(dir, ImageConfig{})
			if !errors.Is(err, ErrDamaged) && at != 70 {
				t.Errorf("flip at %d: %v", at, err)
			}
			if err == nil {
				taken.Close()
			}
			m := openTestImage(t, dir, ImageConfig{Discard: true}) // a copy that is filled up from elsewhere
			if !m.Rebuilt() {
				t.Error("its contents were not read")
			}
			m.mustHold(t, 3, blockOf(0))
			m.Close()
		})
	}
	t.Run("header", func(t *testing.T) {
		dir := crash(t, open)
		flip(t, filepath.Join(dir, "sums"), 20)
		m := openTestImage(t, dir, ImageConfig{}) // there are two headers
		m.Close()
		flip(t, filepath.Join(dir, "sums"), 20)
		flip(t, filepath.Join(dir, "sums"), sectorBytes+20)
		if _, err := OpenImage(dir, ImageConfig{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("both headers: %v", err)
		}
	})
}

// TestAMissingDurableBatchIsNoTear: a hole in the journal that durable batches follow is damage.
func TestAMissingDurableBatchIsNoTear(t *testing.T) {
	dir := t.TempDir()
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes})
	for i := range byte(3) {
		if err := m.Commit([]Write{{Block: uint64(i), Data: blockOf(i + 1)}}, true); err != nil {
			t.Fatal(err)
		}
	}
	open := crash(t, dir)
	m.Close()
	path := filepath.Join(open, "journal")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[2*BlockBytes : 4*BlockBytes]) // the second batch
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenImage(open, ImageConfig{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a durable batch is missing: %v", err)
	}
}

// faultyFile fails as told.
type faultyFile struct {
	File
	faults *faults
}

type faults struct {
	write, sync, read error
	unreadable        int64 // offset that cannot be read while read is set
}

func (f faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if f.faults.read != nil && off <= f.faults.unreadable && f.faults.unreadable < off+int64(len(b)) {
		return 0, f.faults.read
	}
	return f.File.ReadAt(b, off)
}

func (f faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.faults.write != nil {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, f.faults.write
	}
	return f.File.WriteAt(b, off)
}

func (f faultyFile) Sync() error {
	if f.faults.sync != nil {
		return f.faults.sync
	}
	return f.File.Sync()
}

func TestFailingFiles(t *testing.T) {
	dir := t.TempDir()
	bad := &faults{}
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes, Open: func(path string, flags int) (File, error) {
		f, err := openOSFile(path, flags)
		return faultyFile{f, bad}, err
	}})
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(1)}}, true); err != nil {
		t.Fatal(err)
	}
	bad.write = unix.ENOSPC
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(2)}}, true); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("full: %v", err)
	}
	m.mustHold(t, 1, blockOf(1))
	bad.write = nil // there is room again
	if err := m.Commit([]Write{{Block: 2, Data: blockOf(3)}}, true); err != nil {
		t.Fatal(err)
	}
	bad.sync = unix.EIO
	if err := m.Commit([]Write{{Block: 2, Data: blockOf(4)}}, true); !errors.Is(err, unix.EIO) {
		t.Fatalf("failed flush: %v", err)
	}
	bad.sync = nil
	if err := m.Commit([]Write{{Block: 2, Data: blockOf(5)}}, true); !errors.Is(err, unix.EIO) {
		t.Fatalf("after a failed flush nothing is written: %v", err)
	}
	if m.Err() == nil {
		t.Error("the image does not say that it failed")
	}
	m.Close()
	again := openTestImage(t, dir, ImageConfig{})
	again.mustHold(t, 1, blockOf(1))
	again.Close()
}

// A block that the disk cannot read any more is found, is said to be damaged, and is well again once it was written anew.
func TestUnreadableBlocks(t *testing.T) {
	dir := t.TempDir()
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes})
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(1)}, {Block: 3, Data: blockOf(3)}, {Block: 4, Data: blockOf(4)}}, true); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil { // all of it is in the image now
		t.Fatal(err)
	}
	bad := &faults{read: unix.EIO, unreadable: 3*BlockBytes + 512}
	m = openTestImage(t, dir, ImageConfig{Open: func(path string, flags int) (File, error) {
		f, err := openOSFile(path, flags)
		if filepath.Base(path) != "image" {
			return f, err
		}
		return faultyFile{f, bad}, err
	}})
	buf := make([]byte, BlockBytes)
	if err := m.ReadBlock(3, buf); !errors.Is(err, unix.EIO) || !errors.Is(err, ErrBadBlock) {
		t.Fatalf("an unreadable block: %v", err)
	}
	var found []uint64
	for next := uint64(0); next < m.Blocks(); {
		some, to, err := m.Verify(next, 2)
		if err != nil || to <= next {
			t.Fatalf("verify from %d: to %d, %v", next, to, err)
		}
		found, next = append(found, some...), to
	}
	if !slices.Equal(found, []uint64{3}) {
		t.Fatalf("blocks %v are found, 3 is damaged", found)
	}
	if err := m.Commit([]Write{{Block: 3, Data: blockOf(3)}}, true); err != nil {
		t.Fatal(err)
	}
	if some, _, err := m.Verify(0, 8); len(some) > 0 || err != nil {
		t.Fatalf("after the repair: %v, %v", some, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Verify(0, 8); !errors.Is(err, os.ErrClosed) {
		t.Errorf("verify of a closed image: %v", err)
	}
}

// Nobody opens a copy that another one has open: it waits until that is closed.
func TestOneHasACopyOpen(t *testing.T) {
	dir := t.TempDir()
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes})
	f, err := os.Open(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := claim(f, 0); !errors.Is(err, ErrOpen) {
		t.Fatalf("while it is open: %v", err)
	}
	opened := make(chan error, 1)
	go func() {
		files, err := OpenFiles(dir, ImageConfig{})
		opened <- errors.Join(err, files.Close())
	}()
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(1)}}, true); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if err := claim(f, claimPatience); err != nil {
		t.Errorf("once all have closed it: %v", err)
	}
}

// TestFullTmpfs fills a real file system.
func TestFullTmpfs(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no tmpfs can be mounted: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	m := openTestImage(t, filepath.Join(dir, "d"), ImageConfig{Bytes: 64 * BlockBytes})
	var err error
	written := uint64(0)
	for ; written < 64 && err == nil; written++ {
		err = m.Commit([]Write{{Block: written, Data: blockOf(byte(written) | 1)}}, true)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d blocks: %v", written, err)
	}
	for block := range written - 1 {
		m.mustHold(t, block, blockOf(byte(block)|1))
	}
	m.Close()
}

func TestLinkedImage(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "mine.img")
	if err := os.WriteFile(path, append(blockOf(1), blockOf(2)...), 0o600); err != nil {
		t.Fatal(err)
	}
	m := openTestImage(t, dir, ImageConfig{Source: path})
	m.mustHold(t, 1, blockOf(2))
	if err := m.Commit([]Write{{Block: 0, Data: blockOf(9)}}, true); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b[:BlockBytes], blockOf(9)) {
		t.Fatalf("the file does not have what was written (%v)", err)
	}
	if err := os.WriteFile(path, append(blockOf(5), blockOf(2)...), 0o600); err != nil { // its owner used it meanwhile
		t.Fatal(err)
	}
	m = openTestImage(t, dir, ImageConfig{})
	m.mustHold(t, 0, blockOf(5))
	if !m.Rebuilt() {
		t.Error("a change from outside was not noticed")
	}
	m.Close()
	if _, err := OpenImage(t.TempDir(), ImageConfig{Source: "/nowhere/x"}); !errors.Is(err, ErrNoImage) {
		t.Errorf("no image: %v", err)
	}
}

type sliceFile struct{ *bytes.Reader }

func (sliceFile) WriteAt([]byte, int64) (int, error) { return 0, errors.New("read only") }
func (sliceFile) Sync() error                        { return nil }
func (sliceFile) Truncate(int64) error               { return nil }
func (sliceFile) Close() error                       { return nil }
func (f sliceFile) Size() (int64, error)             { return f.Reader.Size(), nil }

func FuzzJournal(f *testing.F) {
	one, _ := encodeBatch([]Write{{Block: 1, Data: blockOf(3)}, {Block: 2, Data: nil}}, 5, 1, 0, 0)
	two, _ := encodeBatch([]Write{{Block: 0, Data: blockOf(4)}}, 5, 2, 1, int64(len(one)))
	f.Add(append(one, two...))
	f.Fuzz(func(t *testing.T, b []byte) {
		batches, err := scanJournal(sliceFile{bytes.NewReader(b)}, 5, 8)
		for _, x := range batches {
			for _, p := range x.where {
				if p.block >= 8 || p.offset+BlockBytes > x.end {
					t.Fatalf("%+v (%v)", p, err)
				}
			}
		}
	})
}

func FuzzImageHeader(f *testing.F) {
	f.Add(imageHeader{1, 4096, 3, 4, 5}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := decodeImageHeader(b); ok {
			if again, ok := decodeImageHeader(h.encode()); !ok || again != h {
				t.Fatalf("%+v came back as %+v", h, again)
			}
		}
	})
}
