package tests

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// TestStandbysComeAndGo kills a VM's standby again and again, at any moment of a checkpoint: cuts are made while the protection that they are for ends. The
// VM goes on as if nothing had been, and is safe at the end.
func TestStandbysComeAndGo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	f := newFailover(t, rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5)), "")
	f.payload, f.args, f.disks = "journal", "0 0 64", []*api.Disk{{Name: "journal", SizeBytes: 1 << 20, Mirrors: 1}}
	f.start()
	f.run()
	for round := range envNumber(t, "STANDBY_ROUNDS", 8) {
		vm := f.awaitSafe(fmt.Sprintf("round %d", round))
		<-time.After(f.upTo(20 * time.Millisecond))
		f.strike("standby", vm)
		f.reader.await(t, "without a standby", f.reader.count()+20)
	}
	f.awaitSafe("at last")
	f.reader.await(t, "at last", f.reader.count()+100)
	f.check("at last")
}
