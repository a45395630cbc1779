package tui

import (
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/fake"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// busyCluster is a console before 200 VMs, and two snapshots of them that differ in every VM.
func busyCluster(tb testing.TB) (*App, [2]feed.Update) {
	src := &script{state: fake.Large(200)}
	app := newApp(tb.Context(), theme.New(false, true), src, false)
	app.Update(tea.WindowSizeMsg{Width: 200, Height: 60})
	var updates [2]feed.Update
	for i := range updates {
		at := fake.Epoch.Add(time.Duration(i) * time.Second)
		updates[i].Snapshot = src.snapshot(at)
		vms := make([]*api.VM, len(src.state.VMs))
		for j, vm := range src.state.VMs {
			vms[j] = proto.CloneOf(vm)
			vms[j].State = api.VMState(1 + (i+j)%6)
		}
		updates[i].Snapshot.VMs = vms
	}
	return app, updates
}

// BenchmarkUpdate is one update of 200 VMs that all changed, drawn at 200x60. Ten a second may cost 5% of a core: 5 ms each.
func BenchmarkUpdate(b *testing.B) {
	app, updates := busyCluster(b)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		app.Update(feedMsg(updates[n%2]))
		_ = app.View()
		n++
	}
}

// BenchmarkKey is one key and its screen: it may take 50 ms, with a frame of at most 33 ms after it.
func BenchmarkKey(b *testing.B) {
	app, updates := busyCluster(b)
	app.Update(feedMsg(updates[0]))
	b.ReportAllocs()
	for b.Loop() {
		app.Update(keyMsg("j"))
		_ = app.View()
	}
}

// TestUpdateCost keeps the costs an order of magnitude within their bounds, so that it holds on a busy machine too.
func TestUpdateCost(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures time")
	}
	app, updates := busyCluster(t)
	const rounds = 100
	best := time.Hour
	for range 5 {
		began := time.Now()
		for i := range rounds {
			app.Update(feedMsg(updates[i%2]))
			_ = app.View()
		}
		best = min(best, time.Since(began)/rounds)
	}
	t.Logf("an update of 200 VMs and its screen: %v", best)
	if best > 5*time.Millisecond {
		t.Errorf("an update of 200 VMs costs %v, more than 5%% of a core at ten a second", best)
	}
}
