package virtio

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
)

type notedPairs struct{ told chan string }

func (n notedPairs) Equal(since, block, addr uint64, data []byte) {
	if since != 7 || len(data) != PairBytes {
		n.told <- fmt.Sprintf("since %d, %d bytes", since, len(data))
	}
	n.told <- fmt.Sprintf("%d=0x%x", block, addr)
}

func (n notedPairs) Reading() uint64 { return 7 }

func (n notedPairs) Changing(first, last uint64) uint64 {
	n.told <- fmt.Sprintf("%d-%d changed", first, last)
	return 6
}

func (n notedPairs) Changed(begun, _, _ uint64) (uint64, bool) { return begun + 1, true }

func (n notedPairs) all() (out []string) {
	for {
		select {
		case s := <-n.told:
			out = append(out, s)
		default:
			return out
		}
	}
}

func TestPairsAreWholeBlocksInWholePages(t *testing.T) {
	disk, _ := testDisk(t, 1<<20)
	block := NewBlock(disk, "", false, 1)
	pairs := notedPairs{make(chan string, 64)}
	block.SetPairs(pairs)
	d := newDriver(t, block)
	d.start(0)
	page := bytes.Repeat([]byte{7}, PairBytes)
	expect := func(what string, want ...string) {
		t.Helper()
		d.wait(0)
		if got := pairs.all(); !slices.Equal(got, want) {
			t.Errorf("%s: told %q, want %q", what, got, want)
		}
	}
	offerAt := func(kind uint32, sector uint64, skip, n int) {
		d.request(blockHeader(kind, sector), skip, bytes.Repeat(page, n), kind == blockOut)
	}
	offerAt(blockOut, 8, 0, 2)
	expect("write of blocks 1 and 2", "1-2 changed", "1=0x50000", "2=0x51000")
	offerAt(blockIn, 8, 0, 2)
	expect("read of blocks 1 and 2", "1=0x50000", "2=0x51000")
	offerAt(blockIn, 9, 0, 2) // not at a block's begin
	expect("read across blocks")
	offerAt(blockIn, 7, 512, 2) // the second sector on is block 1, at an address that is no page's
	expect("read to no page")
	offerAt(blockIn, 7, 4096-512, 3) // a sector of block 0 ends at a page boundary
	expect("read that begins in a block", "1=0x51000", "2=0x52000")
}

// request offers a request whose data lies at 0x50000 plus skip.
func (d *driver) request(head []byte, skip int, data []byte, write bool) {
	d.t.Helper()
	const headAt, statusAt, dataAt = 0x4f000, 0x4f100, 0x50000
	at, flags := uint64(dataAt+skip), uint16(flagWrite|flagNext)
	d.memory.WriteAt(head, headAt)
	if write {
		flags = flagNext
		d.memory.WriteAt(data, int64(at))
	}
	for i, s := range []struct {
		addr   uint64
		length int
		flags  uint16
	}{{headAt, len(head), flagNext}, {at, len(data), flags}, {statusAt, 1, flagWrite}} {
		var b [descriptorBytes]byte
		binary.LittleEndian.PutUint64(b[:], s.addr)
		binary.LittleEndian.PutUint32(b[8:], uint32(s.length))
		binary.LittleEndian.PutUint16(b[12:], s.flags)
		binary.LittleEndian.PutUint16(b[14:], uint16(i+1))
		d.memory.WriteAt(b[:], int64(testDesc+descriptorBytes*i))
	}
	d.memory.Store16(testAvail+4+2*uint64(d.next[0]%16), 0)
	d.next[0]++
	d.memory.Store16(testAvail+2, d.next[0])
	d.device.WriteBAR(notifyArea, 2, 0)
}

func TestHeldDeviceTakesNoChain(t *testing.T) {
	disk, _ := testDisk(t, 1<<20)
	d := newDriver(t, NewBlock(disk, "", false, 1))
	d.start(0)
	d.offer(0, [][]byte{blockHeader(blockFlush, 0)}, 1)
	d.wait(0)
	d.device.Hold(func() bool { return false })
	before := d.device.State().Queues[0]
	d.offer(0, [][]byte{blockHeader(blockFlush, 0)}, 1)
	select {
	case <-d.raised:
		t.Fatal("a held device worked")
	case <-time.After(20 * time.Millisecond):
	}
	if after := d.device.State().Queues[0]; after != before {
		t.Fatalf("a held queue went from %+v to %+v", before, after)
	}
	d.device.Release()
	d.wait(0)
}

// A chain may wait for guest memory that is on its way from a host which is gone, and who wants the device to rest may be the one to say so.
func TestNobodyWaitsForADeviceInVain(t *testing.T) {
	disk, _ := testDisk(t, 1<<20)
	d := newDriver(t, NewBlock(disk, "", false, 1))
	d.start(0)
	q := d.device.queues[0]
	q.mu.Lock() // as a chain that is being worked on has it
	asked := 0
	if d.device.Hold(func() bool { asked++; return asked == 3 }) {
		t.Fatal("it works on a chain and is said to rest")
	}
	q.mu.Unlock()
	if !d.device.Hold(func() bool { return true }) {
		t.Fatal("nothing is worked on")
	}
	d.device.Release()
	d.offer(0, [][]byte{blockHeader(blockFlush, 0)}, 1)
	d.wait(0)
}
