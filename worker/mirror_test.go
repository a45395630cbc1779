package worker

import (
	"encoding/binary"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
	"github.com/cellvisor/cellvisor/wire"
)

// journalBlocks is in how many blocks the guests of these tests keep their journals.
const journalBlocks = 64

// startJournal starts a VM that keeps a journal on a disk, as fast as it goes.
func startJournal(t *testing.T) (v *testVM, home wire.WorkerSpec) {
	vmmtest.RequireKVM(t)
	home = withDisk(t, testSpec(0, 1, "journal", "0 0 "+strconv.Itoa(journalBlocks), 16*ident.MiB))
	home.LocalVCPUs = []ident.VCPU{0}
	v = &testVM{t: t, parts: []*part{startPart(t, home)}}
	t.Cleanup(v.stop)
	v.lease()
	v.send(wire.ToWorker{Members: &wire.WorkerMembers{Epoch: 1, Fresh: true, Members: []wire.WorkerMember{v.member(0)}}})
	awaitRecords(t, v, 0, 1)
	return v, home
}

// addMirror starts a part for a mirror of the VM's disk.
func (v *testVM) addMirror() (ident.Part, wire.WorkerSpec) {
	id := len(v.parts)
	spec := withDisk(v.t, testSpec(id, 1, "journal", "", 16*ident.MiB))
	spec.Standby = true
	v.parts = append(v.parts, startPart(v.t, spec))
	v.lease()
	return ident.Part(id), spec
}

// mirror says which parts have mirrors, and which, if any, are copied for a move.
func (v *testVM) mirror(seq uint64, mirrors, standbys ident.PartSet) {
	p := wire.WorkerProtect{Seq: seq, Mirrors: mirrors, Standbys: standbys, CheckpointMillis: 10}
	for i, part := range v.parts {
		if !part.killed {
			p.Members = append(p.Members, v.member(i))
		}
	}
	for i, part := range v.parts {
		if !part.killed {
			v.sendTo(i, wire.ToWorker{Protect: &p})
		}
	}
}

// checkJournal checks that a copy of the disk, which nobody uses, has all records that have been seen.
func checkJournal(t *testing.T, spec wire.WorkerSpec, seen int) {
	t.Helper()
	image, err := disk.OpenImage(filepath.Join(spec.DiskDir, spec.Disks[0].Dir), disk.ImageConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	b := make([]byte, disk.BlockBytes)
	for n := max(0, seen-journalBlocks); n < seen; n++ {
		if err := image.ReadBlock(uint64(n%journalBlocks), b); err != nil {
			t.Fatal(err)
		}
		if have := binary.LittleEndian.Uint64(b[8:]); have != uint64(n) && have != uint64(n+journalBlocks) {
			t.Errorf("block %d has record %d; record %d was flushed, and seen", n%journalBlocks, have, n)
		}
	}
}

// end kills what is left of the VM, home first.
func (v *testVM) end() {
	for i, p := range v.parts {
		if !p.killed {
			v.kill(i)
		}
	}
}

// tick lets home say twice how it is, a second apart.
func (v *testVM) tick() {
	v.t.Helper()
	said := bootMicros()
	for range 2 {
		said = v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.At > said }).At
	}
}

// What was flushed before home was killed is on every mirror that was in step, however many came and went.
func TestMirrorsHaveWhatWasFlushed(t *testing.T) {
	v, _ := startJournal(t)
	one, first := v.addMirror()
	v.mirror(1, ident.PartSet(0).Set(one), 0)
	v.awaitProtected(0, 1)
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+200)
	two, second := v.addMirror()
	v.mirror(2, ident.PartSet(0).Set(one).Set(two), 0)
	v.awaitProtected(0, 2)
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+200)
	v.kill(0)
	seen := checkUnbroken(t, outputOf(v.parts[0]))
	v.end()
	checkJournal(t, first, seen)
	checkJournal(t, second, seen)
}

// A flush waits for a mirror that is in step and says nothing, until it is none any more; what it has is then of earlier times.
func TestAFlushWaitsForTheMirror(t *testing.T) {
	v, home := startJournal(t)
	one, spec := v.addMirror()
	v.mirror(1, ident.PartSet(0).Set(one), 0)
	v.awaitProtected(0, 1)
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+100)
	v.kill(int(one))
	v.tick()
	stood := len(outputOf(v.parts[0]))
	v.tick()
	if now := len(outputOf(v.parts[0])); now > stood+1 {
		t.Fatalf("%d records, later %d, without the mirror", stood, now)
	}
	checkJournal(t, spec, stood)
	v.pause(true) // which does not wait for the flush: what ends that comes after it
	v.mirror(2, 0, 0)
	v.pause(false)
	awaitRecords(t, v, 0, stood+500)
	v.kill(0)
	checkJournal(t, home, len(outputOf(v.parts[0])))
}

// While the VM is copied for a move, and while its checkpoints go to the copy, its mirrors get all that is flushed; and again when the move is given up.
func TestMirrorsWhileTheVMMoves(t *testing.T) {
	v, _ := startJournal(t)
	one, mirror := v.addMirror()
	v.mirror(1, ident.PartSet(0).Set(one), 0)
	v.awaitProtected(0, 1)
	two, _ := v.addMirror() // a whole copy, as far as its worker is concerned
	v.mirror(2, ident.PartSet(0).Set(one), ident.PartSet(0).Set(two))
	v.awaitProtected(0, 2)
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+100)
	v.mirror(3, ident.PartSet(0).Set(one), 0)
	v.awaitProtected(0, 3)
	v.kill(int(two))
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+100)
	three, _ := v.addMirror()
	v.mirror(4, ident.PartSet(0).Set(one).Set(three), 0)
	v.mirror(5, ident.PartSet(0).Set(one), ident.PartSet(0).Set(three))
	v.awaitProtected(0, 5)
	v.kill(0)
	seen := checkUnbroken(t, outputOf(v.parts[0]))
	v.end()
	checkJournal(t, mirror, seen)
}
