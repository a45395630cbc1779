package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// TestDamagedDisks flips bits in the copies of a disk under a running VM: at its home, where the guest's next read finds it and a mirror has the block,
// and in a mirror while that is away, which is brought into step when it is back. The guest, which verifies all that it reads, never notices.
func TestDamagedDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	f := &failover{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(1, 4))}, took: make(map[string][]time.Duration)}
	f.payload, f.args, f.disks = "journal", "0 200 64", []*api.Disk{{Name: "journal", SizeBytes: 1 << 20, Mirrors: 1}}
	f.start()
	f.run()
	f.reader.await(t, "before the damage", 100)
	vm := f.awaitSafe("before the damage")

	if n := f.flipBlocks(vm.GetHome(), "journal"); n == 0 {
		t.Fatal("home has no journal to be damaged")
	}
	f.awaitEvent("disk.repaired")
	f.reader.await(t, "after the damage at home", f.reader.count()+100)

	standby := f.workerOf(vm, "standby")
	f.signalAll(syscall.SIGKILL, ofServer(standby))
	f.until(faultPatience, "the mirror is away", func(ctx context.Context) error {
		vm, err := f.vm(ctx)
		if err == nil && vm.GetProtection() == "safe" {
			err = fmt.Errorf("VM %s is still safe", vm.GetName())
		}
		return err
	})
	if n := f.flipBlocks(standby, "image"); n == 0 {
		t.Fatal("the mirror has no image to be damaged")
	}
	f.healAll()
	f.awaitSafe("after the damage at the mirror")
	f.awaitEvent("disk.damaged")
	before := f.reader.count()
	f.signalAll(syscall.SIGKILL, ofServer(vm.GetHome())) // now the mirror's copy is what the guest reads
	f.reader.await(t, "on the mirror", before+500)
	f.healAll()
	f.awaitSafe("at last")
	f.check("at last")
}

// flipBlocks changes a byte in every block of a file of a server's copy of the disk, and returns how many.
func (f *failover) flipBlocks(server, name string) int {
	f.t.Helper()
	paths, _ := filepath.Glob(filepath.Join(f.dir, server, "disks", "journal-*", name))
	if len(paths) == 0 {
		paths, _ = filepath.Glob(filepath.Join(f.dir, "*", server, "disks", "journal-*", name))
	}
	n := 0
	for _, path := range paths {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			f.t.Fatal(err)
		}
		defer file.Close()
		var b [1]byte
		for at := int64(100); ; at += 4096 {
			if _, err := file.ReadAt(b[:], at); err != nil {
				break
			}
			b[0] ^= 0x10
			if _, err := file.WriteAt(b[:], at); err != nil {
				f.t.Fatal(err)
			}
			n++
		}
	}
	return n
}

// awaitEvent waits until an event of the kind has happened.
func (f *failover) awaitEvent(kind string) {
	f.t.Helper()
	f.until(faultPatience, "event "+kind, func(ctx context.Context) error {
		found := false
		err := f.client.FollowEvents(ctx, 1, false, func(e *api.Event) error {
			found = found || e.GetType() == kind
			return nil
		})
		if err == nil && !found {
			err = fmt.Errorf("no event %s yet", kind)
		}
		return err
	})
}
