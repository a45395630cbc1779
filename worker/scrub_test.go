package worker

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
	"github.com/cellvisor/cellvisor/wire"
)

// withDisk gives a part a copy of a disk, which it checks all the time.
func withDisk(t *testing.T, spec wire.WorkerSpec) wire.WorkerSpec {
	spec.Disks, spec.DiskDir = []wire.WorkerDisk{{Name: "d", Dir: "d-1", Bytes: 1 << 20}}, t.TempDir()
	spec.ScrubMicros = 200 * ident.Millisecond
	return spec
}

// awaitScrub waits until a part says of its checks what is asked for.
func (p *part) awaitScrub(what string, ok func(wire.WorkerScrub) bool) wire.WorkerScrub {
	p.t.Helper()
	deadline := time.After(time.Minute)
	var last wire.WorkerScrub
	for {
		select {
		case s := <-p.stats:
			if s.Scrub == nil {
				continue
			}
			if last = *s.Scrub; ok(last) {
				return last
			}
		case <-deadline:
			p.t.Fatalf("%s: %+v\n%s", what, last, p.log())
		}
	}
}

// rot changes a byte of every block of a copy that is in its journal, and returns how many.
func rot(t *testing.T, spec wire.WorkerSpec) (n int) {
	t.Helper()
	path := filepath.Join(spec.DiskDir, spec.Disks[0].Dir, "journal")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 3000; at < len(b); at += disk.BlockBytes {
		b[at] ^= 0x20
		n++
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return n
}

// Blocks that rot in a copy that nobody reads are found and put right: home's from a standby, a standby's from home. The guest never notices.
func TestChecksOfDisksFindAndMend(t *testing.T) {
	vmmtest.RequireKVM(t)
	const blocks = 64
	home, standby := withDisk(t, testSpec(0, 1, "phoenix", "0 64 read", 16*ident.MiB)), withDisk(t, testSpec(1, 1, "phoenix", "0 64 read", 16*ident.MiB))
	home.LocalVCPUs, standby.Standby = []ident.VCPU{0}, true
	v := &testVM{t: t, parts: []*part{startPart(t, home)}}
	t.Cleanup(v.stop)
	v.lease()
	v.send(wire.ToWorker{Members: &wire.WorkerMembers{Epoch: 1, Fresh: true, Members: []wire.WorkerMember{v.member(0)}}})
	awaitRecords(t, v, 0, 1)
	v.parts = append(v.parts, startPart(t, standby))
	v.lease()
	v.protect(1, ident.PartSet(0).Set(1))
	v.awaitProtected(0, 1)
	for i, spec := range []wire.WorkerSpec{home, standby} {
		if n := rot(t, spec); n < blocks {
			t.Fatalf("part %d has %d blocks in its journal, at least %d were written", i, n, blocks)
		}
		p := v.parts[i]
		s := p.awaitScrub("damage is found and mended", func(s wire.WorkerScrub) bool { return s.Damaged >= blocks && s.Repaired == s.Damaged && !s.Checking })
		p.awaitScrub("all is well", func(now wire.WorkerScrub) bool {
			if now.Damaged != s.Damaged {
				t.Fatalf("part %d: after a pass that mended all: %+v, before %+v", i, now, s)
			}
			return now.Passes > s.Passes+1
		})
	}
	select {
	case e := <-v.parts[0].ended:
		t.Fatalf("the VM ended: %+v", e)
	default:
	}
}

// A copy that is rotten everywhere is said to be, and stays.
func TestDamageThatNoOtherCopyMends(t *testing.T) {
	vmmtest.RequireKVM(t)
	home := withDisk(t, testSpec(0, 1, "phoenix", "0 64 read", 16*ident.MiB))
	home.LocalVCPUs = []ident.VCPU{0}
	v := &testVM{t: t, parts: []*part{startPart(t, home)}}
	t.Cleanup(v.stop)
	v.lease()
	v.send(wire.ToWorker{Members: &wire.WorkerMembers{Epoch: 1, Fresh: true, Members: []wire.WorkerMember{v.member(0)}}})
	awaitRecords(t, v, 0, 1)
	rot(t, home)
	s := v.parts[0].awaitScrub("damage is found", func(s wire.WorkerScrub) bool { return s.Damaged > 0 && !s.Checking })
	if s.Repaired != 0 {
		t.Errorf("mended from nowhere: %+v", s)
	}
	v.parts[0].awaitScrub("what cannot be read is counted", func(s wire.WorkerScrub) bool { return s.Unreadable > 0 })
}

// A block that is damaged at home, and that a new mirror has as of earlier times, ends neither the VM nor the copy: nobody can read it, until it is written.
func TestACopyGoesOnWithoutADamagedBlock(t *testing.T) {
	const block = 200 // the journal does not come that far
	v, home := startJournal(t)
	one, spec := v.addMirror()
	image := func(s wire.WorkerSpec) string { return filepath.Join(s.DiskDir, s.Disks[0].Dir, "image") }
	write := func(path string, text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte(text), block*disk.BlockBytes)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Dir(image(spec))
	old, err := disk.OpenImage(dir, disk.ImageConfig{Bytes: 1 << 20})
	if err == nil {
		err = errors.Join(old.Commit([]disk.Write{{Block: block, Data: bytes.Repeat([]byte{7}, disk.BlockBytes)}}, true), old.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	write(image(home), "rotten")
	v.mirror(1, ident.PartSet(0).Set(one), 0)
	v.awaitProtected(0, 1)
	v.parts[0].awaitScrub("what cannot be read is counted", func(s wire.WorkerScrub) bool { return s.Unreadable == 1 })
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+50)
	select {
	case e := <-v.parts[0].ended:
		t.Fatalf("the VM ended: %+v", e)
	default:
	}
	v.kill(0)
	seen := checkUnbroken(t, outputOf(v.parts[0]))
	v.end()
	checkJournal(t, spec, seen)
	copied, err := disk.OpenImage(dir, disk.ImageConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := copied.ReadBlock(block, make([]byte, disk.BlockBytes)); !errors.Is(err, disk.ErrBadBlock) {
		t.Errorf("the mirror's block: %v, want none", err)
	}
}
