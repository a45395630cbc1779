package tests

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// TestJournal is TestFailover with the payload that keeps a journal on a disk: it reads back what it wrote all the time, and fails the VM if a block
// is not exactly what it wrote last, or is newer. JOURNAL_ROUNDS, JOURNAL_SEED and JOURNAL_FAULTS choose how many faults, which, and of what kind.
func TestJournal(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	const fewRounds = 4 // by default; `make journal` does a hundred
	rounds, seed := envNumber(t, "JOURNAL_ROUNDS", fewRounds), envNumber(t, "JOURNAL_SEED", uint64(time.Now().UnixNano()))
	kinds := cmp.Or(os.Getenv("JOURNAL_FAULTS"), "cell,cell,cell,stop,blink,both,midstop,midserve,mirror,home,member,standby,serve")
	t.Logf("replay: JOURNAL_SEED=%d JOURNAL_ROUNDS=%d JOURNAL_FAULTS=%s go test -run TestJournal ./tests", seed, rounds, kinds)
	f := newFailover(t, rand.New(rand.NewPCG(seed, 3)), kinds)
	f.payload, f.args, f.disks = "journal", "0 400 64", []*api.Disk{{Name: "journal", SizeBytes: 4 << 20, Mirrors: 1}}
	f.play(rounds)
}

// With two mirrors the disk and its VM survive any two cells, the second one lost in any stage of the recovery from the first.
func TestJournalTwoMirrors(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "JOURNAL_ROUNDS", 2), envNumber(t, "JOURNAL_SEED", uint64(time.Now().UnixNano()))
	kinds := cmp.Or(os.Getenv("JOURNAL_FAULTS"), "pair,midkill,midkill,midstop,midserve,mirror")
	t.Logf("replay: JOURNAL_SEED=%d JOURNAL_ROUNDS=%d JOURNAL_FAULTS=%s go test -run TestJournalTwoMirrors ./tests", seed, rounds, kinds)
	f := newFailover(t, rand.New(rand.NewPCG(seed, 7)), kinds)
	f.cells, f.protect = 5, "replica:2"
	f.payload, f.args, f.disks = "journal", "0 400 64", []*api.Disk{{Name: "journal", SizeBytes: 4 << 20, Mirrors: 2}}
	f.play(rounds)
}

// mirror kills the cell of a mirror, has its copy damaged while it is down, starts it again, and when the VM is safe kills the home, so that the guest
// goes on, and reads, from what was damaged.
func (f *failover) mirror(vm *api.VM) (what string) {
	standby := f.workerOf(vm, "standby")
	copies, _ := filepath.Glob(filepath.Join(f.dir, standby, "disks", f.disks[0].GetName()+"-*"))
	if len(copies) != 1 {
		f.t.Fatalf("%s has %d copies of the disk", standby, len(copies))
	}
	dir := copies[0]
	kind := []string{"flipped", "torn", "stale", "lost", "sums"}[f.rng.IntN(5)]
	old := filepath.Join(f.dir, "old-copy")
	if kind == "stale" { // as an operator's backup would have it: not even of one moment
		f.copyDir(dir, old)
		f.reader.await(f.t, "after the backup", f.reader.count()+200)
	}
	f.signalAll(syscall.SIGKILL, ofServer(standby))
	f.awaitKilled()
	count := 0
	switch kind {
	case "flipped":
		count = f.eachBlock(filepath.Join(dir, "image"), func(b []byte) { b[f.rng.IntN(len(b))] ^= 1 << f.rng.IntN(8) })
	case "torn": // sectors that never arrived, in what was written last as well
		tear := func(b []byte) { clear(b[f.rng.IntN(8)*512:][:512]) }
		count = f.eachBlock(filepath.Join(dir, "image"), tear) + f.eachBlock(filepath.Join(dir, "journal"), tear)
	case "sums":
		count = f.eachBlock(filepath.Join(dir, "sums"), func(b []byte) { b[f.rng.IntN(len(b))] ^= 0x40 })
	case "stale":
		f.must(os.RemoveAll(dir), os.Rename(old, dir))
	case "lost":
		f.must(os.RemoveAll(dir))
	}
	f.healAll()
	now := f.awaitSafe(fmt.Sprintf("mirror %s: in step again", kind))
	f.signalAll(syscall.SIGKILL, ofServer(now.GetHome()))
	return fmt.Sprintf("kill -9 of %s, its mirror %s (%d blocks), then kill -9 of the home %s", standby, kind, count, now.GetHome())
}

func (f *failover) must(errs ...error) {
	f.t.Helper()
	if err := errors.Join(errs...); err != nil {
		f.t.Fatal(err)
	}
}

// copyDir copies the files of a directory.
func (f *failover) copyDir(from, to string) {
	f.must(os.RemoveAll(to), os.Mkdir(to, 0o700))
	names, err := os.ReadDir(from)
	f.must(err)
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(from, n.Name()))
		f.must(err, os.WriteFile(filepath.Join(to, n.Name()), b, 0o600))
	}
}

// eachBlock changes every other block, at random, of a file, and returns how many.
func (f *failover) eachBlock(path string, change func([]byte)) (n int) {
	b, err := os.ReadFile(path)
	f.must(err)
	for at := 0; at < len(b); at += 4096 {
		if f.rng.IntN(2) == 0 && at+4096 <= len(b) {
			change(b[at : at+4096])
			n++
		}
	}
	f.must(os.WriteFile(path, b, 0o600))
	return n
}
