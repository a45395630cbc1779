package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

func testDisk(t *testing.T, size int64) (g *guestDisk, dir string) {
	t.Helper()
	dir = t.TempDir()
	d, err := openDisks(func(_ wire.WorkerDisk, c disk.ImageConfig) (*disk.Image, error) { return disk.OpenImage(dir, c) },
		[]wire.WorkerDisk{{Name: "d", Bytes: ident.Bytes(size), Use: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.close() })
	return d.all[0], dir
}

// A driver gives back or zeroes a whole disk at once, more than a batch of the journal holds. The sectors at both ends are not in the range.
func TestADiskIsGivenBackAsAWhole(t *testing.T) {
	const sector = 512
	for _, c := range []struct {
		size    int64
		discard bool
		hold    bool
	}{{3 << 30, true, false}, {3 << 30, true, true}, {272 << 20, false, false}} {
		g, dir := testDisk(t, c.size)
		if err := g.hold(c.hold); err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte{7}, 3*disk.BlockBytes)
		last := c.size - int64(len(data))
		for _, off := range []int64{0, c.size/2 - disk.BlockBytes, last} {
			if _, err := g.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
		}
		do := g.Zero
		if c.discard {
			do = g.Discard
		}
		if err := do(sector, c.size-2*sector); err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		first, middle, end := make([]byte, len(data)), make([]byte, len(data)), make([]byte, len(data))
		copy(first, data[:sector])
		copy(end[len(end)-sector:], data)
		for off, want := range map[int64][]byte{0: first, c.size/2 - disk.BlockBytes: middle, last: end} {
			got := make([]byte, len(want))
			if _, err := g.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%+v: at %d it is not what it should be, %v", c, off, err)
			}
		}
		if !c.discard {
			continue
		}
		if n := g.layers.Waiting(); n > 64 {
			t.Errorf("%+v: %d blocks wait for a checkpoint", c, n)
		}
		if err := g.hold(false); err != nil {
			t.Fatal(err)
		}
		if err := g.Sync(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, "image"))
		if err != nil {
			t.Fatal(err)
		}
		if used := info.Sys().(*syscall.Stat_t).Blocks * sector; used > 1<<20 {
			t.Errorf("%+v: an image of zeros takes %d KiB", c, used>>10)
		}
	}
}

// What is written to a disk and waits for a checkpoint is bounded too: home says so, with the bound, and says so again when it has left.
func TestWaitingBlocksAreBounded(t *testing.T) {
	h, _, _ := testHome(t, 1, nil)
	g, _ := testDisk(t, 1<<30)
	g.full = h.diskFull
	h.disks = g.disks
	var told []int
	h.onFull = func(on bool, limit int) {
		if !on {
			limit = 0
		}
		told = append(told, limit)
	}
	if err := h.hold(true); err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 8<<20)
	for off := int64(0); off < 256<<20 && len(told) == 0; off += int64(len(piece)) {
		if _, err := g.WriteAt(piece, off); err != nil {
			t.Fatal(err)
		}
	}
	if want := waitLimit * disk.BlockBytes; len(told) != 1 || told[0] != want {
		t.Fatalf("told %v with %d blocks waiting, want %d", told, g.layers.Waiting(), want)
	}
	if err := g.cut(1, false, func(uint64, []byte) {}); err != nil {
		t.Fatal(err)
	}
	if err := h.committed(outputCut{number: 1}); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || told[1] != 0 || g.layers.Waiting() != 0 {
		t.Fatalf("told %v with %d blocks waiting", told, g.layers.Waiting())
	}
}
