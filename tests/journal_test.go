package tests

import (
	"math/rand/v2"
	"os"
	"strings"
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
	kinds := "cell,cell,cell,stop,home,member,standby,serve"
	if s := os.Getenv("JOURNAL_FAULTS"); s != "" {
		kinds = s
	}
	t.Logf("replay: JOURNAL_SEED=%d JOURNAL_ROUNDS=%d JOURNAL_FAULTS=%s go test -run TestJournal ./tests", seed, rounds, kinds)
	f := &failover{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(seed, 3))}, kinds: strings.Split(kinds, ","), took: make(map[string][]time.Duration)}
	f.payload, f.args, f.disks = "journal", "0 400 64", []*api.Disk{{Name: "journal", SizeBytes: 4 << 20, Mirrors: 1}}
	f.start()
	f.run()
	for round := range rounds {
		f.round(int(round))
		if t.Failed() {
			return
		}
	}
	f.report()
}
