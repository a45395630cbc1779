package explore

import (
	"flag"
	"os"
	"testing"
	"time"
)

// size is about how long a world takes.
type size int

const (
	short size = iota
	long
	longest
)

// worlds are explored whole: every state that can be reached within the bounds. Those that are long are left out with
// -short; the longest are explored by `make sim`, which sets LONG_WORLDS=1.
var worlds = []struct {
	name string
	size size
	b    Bounds
}{
	{"two parts, one lost message, a late write", short, Bounds{Parts: 2, Pages: 1, Reads: 1, Writes: 1, Loses: 1, Late: 1}},
	{"three parts, all read and write", short, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1}},
	{"three parts, one crash", short, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Crashes: 1}},
	{"two pages", short, Bounds{Parts: 3, Pages: 2, Reads: 1, Writes: 1, OpsTotal: 3}},
	{"the directory goes elsewhere", short, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 2}},
	{"the directory goes elsewhere, one crash", long, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 1, Crashes: 1}},
	{"the directory goes elsewhere, one lost message", longest, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 1, Rehomes: 1, Loses: 1}},
	{"the directory goes elsewhere, one repeated message", longest, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 1, Repeats: 1}},
	{"the directory goes elsewhere twice, two crashes", longest, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 2, Crashes: 2}},
	{"one repeated message", long, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 5, Repeats: 1}},
	{"one lost message, a late write", long, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 5, Loses: 1, Late: 1}},
	{"one crash, one repeated message", longest, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 3, Crashes: 1, Repeats: 1}},
	{"one crash, one lost message", long, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Crashes: 1, Loses: 1}},
	{"two crashes", long, Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 3, Crashes: 2}},
	{"two pages, one crash, one repeated message", longest, Bounds{Parts: 3, Pages: 2, Reads: 1, Writes: 1, OpsTotal: 2, Crashes: 1, Repeats: 1}},
}

func TestWorlds(t *testing.T) {
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			if w.size >= long && testing.Short() || w.size == longest && os.Getenv("LONG_WORLDS") != "1" {
				t.Skip("long")
			}
			explore(t, w.b)
		})
	}
}

// TestWorldsFindCanaries proves that the exploration can fail.
func TestWorldsFindCanaries(t *testing.T) {
	for _, c := range []struct {
		canary string
		b      Bounds
	}{
		{"lost-inval", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1}},
		{"early-grant", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1}},
		{"no-downgrade", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1}},
		{"done-once", Bounds{Parts: 2, Pages: 1, Reads: 1, Writes: 1, Loses: 1}},
		{"zero-again", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Crashes: 1}},
		{"retained-stale", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 3, Crashes: 1}},
		{"granting-zero", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Crashes: 1}},
		{"home-busy", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 1}},
		{"home-twice", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 1}},
		{"home-forgotten", Bounds{Parts: 3, Pages: 1, Reads: 1, Writes: 1, OpsTotal: 2, Rehomes: 1, Crashes: 1}},
	} {
		t.Run(c.canary, func(t *testing.T) {
			c.b.Canary = c.canary
			r, err := Run(c.b, 2_000_000)
			if err == nil {
				t.Fatalf("not found in %d states", r.States)
			}
			t.Logf("found at depth %d after %d states: %v", r.Depth, r.States, err)
		})
	}
}

func explore(t *testing.T, b Bounds) {
	t.Helper()
	start := time.Now()
	r, err := Run(b, 20_000_000)
	t.Logf("%d states, %d transitions, %d ends, depth %d, %v", r.States, r.Transitions, r.Ends, r.Depth, time.Since(start).Round(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
}

var (
	flagParts   = flag.Int("parts", 3, "TestWorld: parts")
	flagPages   = flag.Int("pages", 1, "TestWorld: pages")
	flagReads   = flag.Int("reads", 1, "TestWorld: reads of each part")
	flagWrites  = flag.Int("writes", 1, "TestWorld: writes of each part")
	flagOps     = flag.Int("ops", 0, "TestWorld: operations of all parts, 0 is all; -1 skips")
	flagCrashes = flag.Int("crashes", 0, "TestWorld: crashes")
	flagRepeats = flag.Int("repeats", 0, "TestWorld: repeated messages")
	flagLoses   = flag.Int("loses", 0, "TestWorld: lost messages")
	flagRehomes = flag.Int("rehomes", 0, "TestWorld: directories that go elsewhere")
	flagLate    = flag.Int("late", 0, "TestWorld: writes that are late")
	flagWorld   = flag.Bool("world", false, "run TestWorld")
)

// TestWorld explores a world given by flags.
func TestWorld(t *testing.T) {
	if !*flagWorld {
		t.Skip("run it with -world -parts=3 -crashes=1 ...")
	}
	progress := func(r Result, frontier int) {
		t.Logf("depth %d: %d states, %d at the frontier", r.Depth, r.States, frontier)
	}
	explore(t, Bounds{Progress: progress, Parts: *flagParts, Pages: *flagPages, Reads: *flagReads, Writes: *flagWrites, OpsTotal: *flagOps, Crashes: *flagCrashes,
		Repeats: *flagRepeats, Loses: *flagLoses, Late: *flagLate, Rehomes: *flagRehomes})
}
