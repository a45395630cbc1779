package worker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/wire"
)

// diskStandby is a standby with a copy of a disk of 16 blocks, complete at checkpoint 1.
func diskStandby(t *testing.T) *standby {
	t.Helper()
	s := freshDiskStandby(t)
	if _, err := s.disks.open(0, 16*disk.BlockBytes); err != nil {
		t.Fatal(err)
	}
	s.setSeveral(true)
	s.mustTake(t, base(0, 0b1, 8, 'b'))
	s.mustCommit(t, diskShare(1))
	return s
}

// freshDiskStandby is one whose copy home has not asked for yet.
func freshDiskStandby(t *testing.T) *standby {
	t.Helper()
	memory, err := ram.New(4 * ident.MiB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	dir := t.TempDir()
	open := func(_ wire.WorkerDisk, c disk.ImageConfig) (*disk.Image, error) { return disk.OpenImage(dir, c) }
	d := newStandbyDisks(open, []wire.WorkerDisk{{Name: "d", Dir: "d"}}, func(wire.WorkerDisks) {})
	s, err := newStandby(&files{dir: t.TempDir()}, memory, d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Checkpoints go on while a further standby is made, and may write a disk before it has opened its copy: such a one waits.
func TestACheckpointWaitsForTheDisk(t *testing.T) {
	s := freshDiskStandby(t)
	s.mustCommit(t, diskShare(1))
	sh := diskShare(2)
	sh.add(recordDisk, diskKey(0, 3), filled('3'))
	s.mustTake(t, sh)
	if done, err := s.commit(2); done || err != nil {
		t.Fatalf("without the disk: %v, %v", done, err)
	}
	ask := make([]byte, 1+8+8)
	binary.LittleEndian.PutUint64(ask[1:], 16*disk.BlockBytes)
	binary.LittleEndian.PutUint64(ask[9:], 16)
	if sums, err := s.sums(ask); len(sums) != 0 || err != nil {
		t.Fatalf("opening the copy: %v, %v", sums, err)
	}
	if done, err := s.commit(2); !done || err != nil {
		t.Fatalf("with the disk: %v, %v", done, err)
	}
	got := make([]byte, disk.BlockBytes)
	if err := s.disks.images[0].ReadBlock(3, got); err != nil || !bytes.Equal(got, filled('3')) {
		t.Errorf("block 3 is %q…: %v", got[:4], err)
	}
}

// diskShare is checkpoint n over the part that holds the guest.
func diskShare(n uint64) *share {
	s := testShare(n, 0, 0b1)
	s.header.since = n - 1
	s.add(recordVCPU, 0, []byte{byte(n)})
	return s
}

func (s *standby) mustCommit(t *testing.T, sh *share) {
	t.Helper()
	s.mustTake(t, sh)
	if done, err := s.commit(sh.header.number); !done || err != nil {
		t.Fatalf("checkpoint %d: %v, %v", sh.header.number, done, err)
	}
}

func (s *standby) mustHold(t *testing.T, page ident.PageNo, want []byte) {
	t.Helper()
	got := make([]byte, ident.PageSize)
	if err := s.ram.ReadPage(page, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("page %d holds %q…, want %q…: %v", page, got[:4], want[:4], err)
	}
}

func TestPagesAreLeftToTheDisk(t *testing.T) {
	s := diskStandby(t)
	name := func(sh *share, page ident.PageNo, block uint64, b []byte) {
		sh.addOnDisk(page, srt.Block{No: block}, b)
	}

	sh := diskShare(2) // page 5 is written to block 3, pages 6 and 7 equal block 4
	sh.add(recordDisk, diskKey(0, 3), filled('3'))
	name(sh, 5, 3, filled('3'))
	sh.add(recordDisk, diskKey(0, 4), filled('4'))
	name(sh, 6, 4, filled('4'))
	name(sh, 7, 4, filled('4'))
	s.mustCommit(t, sh)
	if s.refs.Len() != 3 {
		t.Fatalf("%d pages are left to the disk, want 3", s.refs.Len())
	}

	sh = diskShare(3) // block 4 is rewritten, and page 6 with it; page 7 is not
	sh.add(recordPage, 6, filled('6'))
	sh.add(recordDisk, diskKey(0, 4), filled('!'))
	s.mustCommit(t, sh)
	if s.refs.Len() != 1 {
		t.Fatalf("%d pages are left to the disk, want page 5", s.refs.Len())
	}
	s.mustHold(t, 6, filled('6'))
	s.mustHold(t, 7, filled('4'))

	sh = diskShare(4) // a difference on top of what is on the disk
	changed := filled('3')
	changed[8] = '!'
	diff, _ := appendDiff(nil, filled('3'), changed)
	sh.add(recordDiff, 5, diff)
	name(sh, 7, 4, filled('!'))
	s.mustCommit(t, sh)
	s.mustHold(t, 5, changed)

	if done, err := s.align(9, 3, false, 0); !done || err != nil { // checkpoint 4 is undone
		t.Fatal(done, err)
	}
	s.mustHold(t, 5, filled('3'))
	s.mustHold(t, 7, filled('4'))
	r, err := s.takeOver()
	if err != nil {
		t.Fatal(err)
	}
	defer r.disks.close()
	s.mustHold(t, 5, filled('3'))
	s.mustHold(t, 7, filled('4'))
}

func TestTakingOverReadsWhatIsLeftToTheDisk(t *testing.T) {
	s := diskStandby(t)
	sh := diskShare(2)
	for page := range ident.PageNo(8) {
		sh.add(recordDisk, diskKey(0, uint64(page)), filled('a'+byte(page)))
		sh.addOnDisk(100+page, srt.Block{No: uint64(page)}, filled('a'+byte(page)))
	}
	s.mustCommit(t, sh)
	s.mustHold(t, 100, make([]byte, ident.PageSize)) // not before it has to
	r, err := s.takeOver()
	if err != nil || r.left != 8 {
		t.Fatalf("taken over: %v, %v", r, err)
	}
	defer r.disks.close()
	for page := range ident.PageNo(8) {
		s.mustHold(t, 100+page, filled('a'+byte(page)))
	}
}

// A page is never taken from a block that does not hold it.
func TestAPageIsNotLeftToAnotherBlock(t *testing.T) {
	s := diskStandby(t)
	sh := diskShare(2)
	sh.add(recordDisk, diskKey(0, 3), filled('3'))
	sh.addOnDisk(5, srt.Block{No: 3}, filled('x'))
	s.mustTake(t, sh)
	if done, err := s.commit(2); done || !errors.Is(err, errBadShare) {
		t.Errorf("a page that differs from its block is left to it: %v, %v", done, err)
	}
	if got := crc32.Checksum(filled('3'), castagnoli); got != s.disks.images[0].Sum(3) {
		t.Errorf("the checksum of a page is %08x, that of an equal block %08x", got, s.disks.images[0].Sum(3))
	}
}

func TestPackNamesBlocks(t *testing.T) {
	a := testArena(5, map[ident.PageNo][]byte{3: filled('a'), 4: filled('b'), 9: filled('z')})
	a.disk = []onDisk{{at: 0, block: srt.Block{No: 7}}, {at: 2, block: srt.Block{No: 8}}}
	sh := testShare(5, 0, 0b1)
	if n := sh.pack(a, nil); n != (packed{full: 1, onDisk: 2}) {
		t.Errorf("packed %+v, want one page and two names of blocks", n)
	}
	b := testArena(6, map[ident.PageNo][]byte{3: filled('a'), 4: filled('b'), 9: filled('y')})
	b.disk = a.disk
	if n := testShare(6, 0, 0b1).pack(b, a); n != (packed{same: 2, onDisk: 1}) {
		t.Errorf("packed %+v, want one name and two pages that are as they were", n)
	}
}
