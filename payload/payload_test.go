package payload_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// start runs a built-in payload to its end.
func start(t *testing.T, name, args string, vcpus int, memory ident.Bytes) vmmtest.Result {
	t.Helper()
	image, err := payload.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	r := vmmtest.Run(t, image, boot.Config{Memory: memory, VCPUs: vcpus, Args: args}, 3*time.Minute)
	t.Logf("%s %q on %d vCPUs took %v", name, args, vcpus, r.Took)
	return r
}

// run is start for what must succeed.
func run(t *testing.T, name, args string, vcpus int, memory ident.Bytes) vmmtest.Result {
	t.Helper()
	r := start(t, name, args, vcpus, memory)
	if r.Failure != "" {
		t.Fatalf("guest failed: %s\nconsole:\n%s", r.Failure, r.Console)
	}
	if r.Status != 0 {
		t.Fatalf("guest ended with status %d, console:\n%s", r.Status, r.Console)
	}
	return r
}

func TestHello(t *testing.T) {
	r := run(t, "hello", "any words", 4, 16*ident.MiB)
	if n := strings.Count(r.Console, "\"any words\""); n != 4 {
		t.Errorf("%d greetings, want 4:\n%s", n, r.Console)
	}
	wantCounting(t, r.Records, 10)
}

func TestCount(t *testing.T) {
	r := run(t, "count", "200 400", 2, 16*ident.MiB)
	wantCounting(t, r.Records, 200)
	if r.Took < 450*time.Millisecond {
		t.Errorf("200 numbers at 400 Hz took %v, want about 500 ms", r.Took)
	}
}

func TestLock(t *testing.T) {
	r := run(t, "lock", "20000", 4, 16*ident.MiB)
	if n := strings.Count(r.Console, ", exact"); n != 4 {
		t.Errorf("%d exact sums, want 4:\n%s", n, r.Console)
	}
}

func wantCounting(t *testing.T, got []uint32, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d records, want %d", len(got), n)
	}
	for i, v := range got {
		if v != uint32(i) {
			t.Fatalf("record %d is %d", i, v)
		}
	}
}

func TestLitmus(t *testing.T) {
	for _, c := range []struct {
		vcpus int
		tests string
	}{{2, "11 tests"}, {4, "13 tests"}} {
		r := run(t, "litmus", "100000", c.vcpus, 16*ident.MiB)
		if !strings.Contains(r.Console, c.tests) || !strings.Contains(r.Console, " 0 forbidden outcomes") {
			t.Errorf("no closing line:\n%s", r.Console)
		}
	}
}

// TestLitmusCanary: a test that must fail does, or nothing that the others say means anything. Whether two vCPUs meet in a run is chance on a
// busy machine, so it may take several.
func TestLitmusCanary(t *testing.T) {
	for range 50 {
		r := start(t, "litmus", "500000 canary", 2, 16*ident.MiB)
		if r.Exited && r.Status == 1 && strings.Contains(r.Console, "canary flag=1 data=0") && strings.Contains(r.Console, "FORBIDDEN") {
			return
		}
		if r.Status != 0 || r.Failure != "" {
			t.Fatalf("status %d, %s:\n%s", r.Status, r.Failure, r.Console)
		}
	}
	t.Error("25 million rounds of a broken program showed nothing forbidden")
}

func TestWalk(t *testing.T) {
	r := run(t, "walk", "", 3, 48*ident.MiB)
	if n := strings.Count(r.Console, " right, checksum "); n != 2 {
		t.Errorf("%d passes, want 2:\n%s", n, r.Console)
	}
	r = run(t, "walk", "512 1", 2, 600*ident.MiB)
	if !strings.Contains(r.Console, "131072 pages") {
		t.Errorf("not 512 MiB:\n%s", r.Console)
	}
}

func TestDirty(t *testing.T) {
	r := run(t, "dirty", "50 20000 1", 2, 32*ident.MiB)
	if !strings.Contains(r.Console, "dirty: 1 s, ") {
		t.Errorf("no report:\n%s", r.Console)
	}
	run(t, "dirty", "100 0 1", 3, 32*ident.MiB)
}

func TestFault(t *testing.T) {
	r := run(t, "fault", "200 all 2 1", 4, 32*ident.MiB)
	series, complete, err := payload.ParseFault(r.Records)
	if err != nil || !complete || len(series) != 2*6 {
		t.Fatalf("%d series, complete %t, %v", len(series), complete, err)
	}
	for _, s := range series {
		if len(s.Nanos) != 200 || slices.Max(s.Nanos) == 0 {
			t.Errorf("%s of measurer %d: %d samples", s.Name, s.Measurer, len(s.Nanos))
		}
		slices.Sort(s.Nanos)
		t.Logf("%-9s measurer %d sharers %d: median %d ns", s.Name, s.Measurer, s.Sharers, s.Nanos[len(s.Nanos)/2])
	}
}

func TestIdleStaysUntilStopped(t *testing.T) {
	image, err := payload.Open("idle")
	if err != nil {
		t.Fatal(err)
	}
	h := vmmtest.NewHost(t, vmmtest.RequireKVM(t), image, boot.Config{Memory: 8 * ident.MiB, VCPUs: 2})
	h.Go()
	<-h.Changed() // it has said so
	h.Stop()
}

// TestArgumentsThatAreWrong end with status 1 and a reason.
func TestArgumentsThatAreWrong(t *testing.T) {
	for name, args := range map[string]string{
		"count": "ten", "lock": "99999999999", "litmus": "10 nosuch", "dirty": "101", "fault": "10 nosuch",
	} {
		r := start(t, name, args, 2, 16*ident.MiB)
		if r.Status != 1 || strings.Count(r.Console, "FAIL: ") != 1 {
			t.Errorf("%s %q: status %d, console %q", name, args, r.Status, r.Console)
		}
	}
}

func TestListAndOpen(t *testing.T) {
	for _, info := range payload.List() {
		image, err := payload.Open(info.Name)
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := boot.Load(image, boot.Config{Memory: 16 * ident.MiB, VCPUs: 4}); err != nil {
			t.Errorf("%s: %v", info.Name, err)
		}
		if info.Doc == "" || info.Args != "" && info.Help == "" {
			t.Errorf("%s is not described", info.Name)
		}
	}
	if _, err := payload.Open("nosuch"); err == nil || !strings.Contains(err.Error(), "count, dirty, fault") {
		t.Errorf("got %v", err)
	}
}

func TestPhases(t *testing.T) {
	r := run(t, "phases", "3 1", 3, 32*ident.MiB)
	if len(r.Records) != 4 {
		t.Errorf("records %v, want one for each of four phases", r.Records)
	}
}

func TestRows(t *testing.T) {
	r := run(t, "rows", "8 10 0 1", 1, 16*ident.MiB)
	if len(r.Records) != 4 {
		t.Errorf("records %v, want one for each share of cold rows", r.Records)
	}
	r = run(t, "rows", "8 10 0 1 - 20", 1, 16*ident.MiB)
	if len(r.Records) != 1+4*20 || r.Records[0] != 0 || slices.Min(r.Records[1:]) == 0 {
		t.Errorf("records %v, want a 0, and 20 rates for each share of cold rows", r.Records)
	}
}
