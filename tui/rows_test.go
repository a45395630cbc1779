package tui

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/fake"
	"github.com/cellvisor/cellvisor/tui/table"
)

// text joins the cells of a row.
func text(r table.Row) string {
	var parts []string
	for _, c := range r.Cells {
		if c.Text != "" {
			parts = append(parts, c.Text)
		}
	}
	return strings.Join(parts, " | ")
}

func TestTreeRows(t *testing.T) {
	src := &script{state: fake.Small()}
	src.state.Servers = append(src.state.Servers, &api.Server{Name: "witness-1", Role: api.ServerRole_SERVER_ROLE_WITNESS, Voter: true,
		State: api.ServerState_SERVER_STATE_LIVE})
	got := treeRows(plainTheme(), src.snapshot(fake.Epoch))
	for i, want := range []string{
		"a | ● live | 2/4", "├ a-1 | ● live | 2/2", "└ a-2 | ● live | 0/2", "b | ● live", "├ b-1", "└ b-2", "c | ◐ degraded", "├ c-1",
		"└ c-2 | ✗ dead", "witness-1 | ● live",
	} {
		if !strings.HasPrefix(text(got[i]), want) {
			t.Errorf("row %d is %q, want %q", i, text(got[i]), want)
		}
	}
	if len(got) != 10 || !strings.HasSuffix(text(got[9]), "witness, voter") {
		t.Errorf("%d rows, the last %q", len(got), text(got[len(got)-1]))
	}
	if got := targetOf(got[1].Key); got != (target{aServer, "a-1"}) {
		t.Errorf("target %+v", got)
	}
}

func TestVMRows(t *testing.T) {
	src := &script{state: fake.Small()}
	s := src.snapshot(fake.Epoch)
	s.VMs = append(s.VMs, &api.VM{Name: "odd", State: 77}, &api.VM{Name: "bad", State: api.VMState_VM_STATE_EXITED, ExitStatus: 3})
	got := vmRows(plainTheme(), s, nil)
	for i, want := range []string{
		"boom | ‼ failed | 1 | 64 MiB | a | a-1 | none | 3m05s | stop | count | triple fault",
		"gone | ✗ lost |", "lock | ▶ running | 4 | 512 MiB | a,b | a-1 | replica ✓ safe | 21ms | 0% | 3m05s | stop | a-1,b-1,c-1 | lock", "next | ◌ starting", "sums | ✓ exited", "tick | ▶ running",
		"odd | ? 77 |", "bad | ‼ exited",
	} {
		if !strings.HasPrefix(text(got[i]), want) {
			t.Errorf("row %d is %q, want %q", i, text(got[i]), want)
		}
	}
	if !strings.HasSuffix(text(got[7]), "status 3") {
		t.Errorf("%q", text(got[7]))
	}
}

func TestWorkerRates(t *testing.T) {
	src := &script{state: fake.Small()}
	before := src.snapshot(fake.Epoch).VM("lock")
	now := proto.CloneOf(before)
	c := now.Workers[0].Counters
	c.RemoteReads += 3000
	c.RunMicros += 3_000_000
	// The other part is another process by now: its counters began anew.
	now.Workers[1].Pid++
	rows := workerRows(plainTheme(), now, before, 2*time.Second)
	if got := text(rows[0]); !strings.Contains(got, "12 MiB | 1500 | 0 | 0 | 0 | 0 | 150%") {
		t.Errorf("%q", got)
	}
	if got := text(rows[1]); !strings.Contains(got, "11 MiB | - | - | - | - | - | -") {
		t.Errorf("%q", got)
	}
}

func TestRecoveries(t *testing.T) {
	state := fake.Small()
	list := recoveriesOf(state.Events)
	if len(list) != 1 {
		t.Fatalf("%d recoveries", len(list))
	}
	r := list[0]
	if r.epoch != 7 || strings.Join(r.lost, ",") != "c-2" || strings.Join(r.vms, ",") != "gone" || r.total() != 90864*time.Microsecond {
		t.Errorf("%+v, total %v", r, r.total())
	}
	rows := stageRows(plainTheme(), r)
	for i, want := range []string{
		"detect | a-1 | 0.0 ms | 55.8 ms | ████████████████████████",
		"fence | a-1 | 55.8 ms | 19.8 ms | " + strings.Repeat(" ", 24) + "█████████",
		"agree | a-1 | 75.6 ms | 10.7 ms | " + strings.Repeat(" ", 33) + "█████",
		"unwedge | c-1 | 86.3 ms | 4.5 ms | " + strings.Repeat(" ", 38) + "██",
	} {
		if text(rows[i]) != want {
			t.Errorf("%q, want %q", text(rows[i]), want)
		}
	}
	// Fields that make no sense are left out, not trusted.
	state.Events[6].Fields = map[string]string{"detect_us": "-5", "agree_us": "99999999999999999999", "fence_us": "x"}
	if got := recoveriesOf(state.Events)[0]; len(got.stages) != 1 {
		t.Errorf("%+v", got.stages)
	}
}

func TestIfDead(t *testing.T) {
	src := &script{state: fake.Small()}
	s := src.snapshot(fake.Epoch)
	lock := s.VM("lock") // on a-1 and b-1, with a replica on c-1
	check := func(name, want string) {
		t.Helper()
		if got := ifDead(s, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	check("a", "no VM is lost; 1 VM goes on from its replica: lock; the quorum is kept (2 of 3 voters left)")
	check("b-2", "no VM is lost; the quorum is kept (3 of 3 voters left)")
	check("c", "1 VM is lost: tick; 1 VM loses its replica: lock; the quorum is kept (2 of 3 voters left)")
	check("z", "not known any more")
	lock.Protection = "syncing"
	check("a", "1 VM is lost: lock; the quorum is kept (2 of 3 voters left)")
	lock.OnLoss = api.OnLoss_ON_LOSS_TOUCH
	check("b", "no VM is lost; 1 VM runs on until a lost page is touched: lock; the quorum is kept (2 of 3 voters left)")
	check("a", "1 VM is lost: lock; the quorum is kept (2 of 3 voters left)") // its home is there
	s.Servers[0].State = api.ServerState_SERVER_STATE_DEAD
	check("b", "no VM is lost; 3 VMs stand still: lock, next, tick; THE QUORUM IS LOST (1 of 3 voters left)")
}

func TestFormats(t *testing.T) {
	for got, want := range map[string]string{
		size(0): "0 B", size(1023): "1023 B", size(1536): "1.5 KiB", size(64 << 20): "64 MiB", sizePair(512<<20, 2<<30): "0.5/2 GiB",
		sizePair(0, 0): "0/0 B", size(1<<64 - 1): "16 EiB",
		count(9999): "9999", count(12_345): "12.3k", count(4_500_000): "4.5M", count(999_999): "1.0M", count(1<<64 - 1): "18.4E",
		span(-1): "0s", span(850 * time.Millisecond): "850ms", span(59 * time.Second): "59s", span(185 * time.Second): "3m05s",
		span(130 * time.Minute): "2h10m", span(99 * time.Hour): "4d03h",
		vcpuSet([]uint32{0, 1, 2, 3, 6, 8, 9}): "0-3,6,8-9", vcpuSet(nil): "", vcpuSet([]uint32{4}): "4",
		plural(1, "VM", "VMs"): "1 VM", plural(0, "VM", "VMs"): "0 VMs", millis(2100 * time.Millisecond): "2.10 s",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{"512": 512, "64MiB": 64 << 20, "64M": 64 << 20, "2G": 2 << 30, "1KB": 1 << 10, "1TiB": 1 << 40} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "M", "-1M", "1.5G", "1X", "99999999999G", "18446744073709551616"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}
