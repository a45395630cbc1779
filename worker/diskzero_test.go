package worker

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// A single request of a protected guest that clears more than a checkpoint can have is done over several of them, and each comes further.
func TestALargeRequestWaitsForCheckpoints(t *testing.T) {
	const blocks, room = 5 * zeroPiece / disk.BlockBytes / 2, 100
	g, _ := testDisk(t, blocks*disk.BlockBytes)
	g.room, g.rests = room, func() bool { return true }
	full := bytes.Repeat([]byte{1}, zeroPiece/2)
	for off := int64(0); off < g.Size(); off += int64(len(full)) {
		if _, err := g.WriteAt(full, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.hold(true); err != nil {
		t.Fatal(err)
	}
	for number := uint64(1); ; number++ {
		err := g.Zero(disk.BlockBytes, g.Size()-2*disk.BlockBytes)
		if n := g.layers.Waiting(); n >= room+zeroPiece/disk.BlockBytes {
			t.Fatalf("%d blocks wait", n)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, virtio.ErrLater) || number > 10 {
			t.Fatalf("round %d: %v", number, err)
		}
		if err := g.cut(number, false, func(uint64, []byte) {}); err != nil {
			t.Fatal(err)
		}
		if err := g.committed(number); err != nil {
			t.Fatal(err)
		}
	}
	all := make([]byte, g.Size())
	if _, err := g.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	if all[disk.BlockBytes-1] != 1 || all[len(all)-disk.BlockBytes] != 1 || !bytes.Equal(all[disk.BlockBytes:len(all)-disk.BlockBytes], make([]byte, len(all)-2*disk.BlockBytes)) {
		t.Error("something else was cleared")
	}
}
