package payload_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

func run(t *testing.T, name, args string, vcpus int, memory ident.Bytes) vmmtest.Result {
	t.Helper()
	image, err := payload.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	r := vmmtest.Run(t, image, boot.Config{Memory: memory, VCPUs: vcpus, Args: args}, 60*time.Second)
	t.Logf("%s %q on %d vCPUs took %v", name, args, vcpus, r.Took)
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
