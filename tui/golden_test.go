package tui

import (
	"fmt"
	"testing"

	"github.com/charmbracelet/x/exp/golden"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// TestGolden compares the main screens with those in testdata, at three sizes. `go test ./tui -run Golden -update` writes them anew.
func TestGolden(t *testing.T) {
	screens := []struct{ name, keys string }{
		{"overview", ""},
		{"vms", "4"},
		{"servers", "3"},
		{"cells", "2"},
		{"events", "5"},
		{"recoveries", "6"},
		{"operations", "7"},
		{"operation", ": text:op_show_40 enter"},
		{"load", "8"},
		{"drills", "9"},
		{"slices", ": text:server_slices_a-1 enter"},
		{"pages", ": text:vm_pages_lock enter"},
		{"drain", ": text:cell_drain_b enter"},
		{"cordon", ": text:cell_cordon_b enter"},
		{"drill-run", ": text:drill_run_lose-a-cell enter"},
		{"vm", "j j enter"},
		{"vm-failed", "enter"},
		{"server", ": text:server_show_a-1 enter"},
		{"cell", ": text:cell_show_c enter"},
		{"help", "?"},
		{"stop", "j j s"},
		{"filter", "/ text:run"},
	}
	for _, size := range [][2]int{{80, 24}, {120, 40}, {200, 60}} {
		for _, s := range screens {
			t.Run(fmt.Sprintf("%s-%dx%d", s.name, size[0], size[1]), func(t *testing.T) {
				r := newRig(t, plainTheme(), size[0], size[1])
				r.serve()
				r.settle(r.press(s.keys))
				r.poll()
				golden.RequireEqual(t, []byte(r.view()))
			})
		}
	}
}

func TestGoldenLooks(t *testing.T) {
	for _, c := range []struct {
		name  string
		theme *theme.Theme
	}{
		{"ascii", theme.New(true, false)},
		{"colour", theme.New(false, true)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.theme, 100, 30)
			golden.RequireEqual(t, []byte(r.view()))
		})
	}
	t.Run("least", func(t *testing.T) {
		r := newRig(t, plainTheme(), leastWidth, leastHeight)
		r.serve()
		r.settle(r.press(": text:cell_drain_b enter"))
		golden.RequireEqual(t, []byte(r.view()))
	})
	t.Run("lost", func(t *testing.T) {
		r := newRig(t, plainTheme(), 80, 24)
		r.send(feedMsg(feed.Update{Snapshot: r.app.last, Conn: feed.Conn{Err: fmt.Errorf("nobody answers"), Attempt: 3, RetryAt: r.at}}))
		golden.RequireEqual(t, []byte(r.view()))
	})
	t.Run("connecting", func(t *testing.T) {
		r := newRig(t, plainTheme(), 80, 24)
		r.app.last = nil
		r.app.conn.Addr = "unix:///run/cellvisor/api.sock"
		r.app.dirty = true
		golden.RequireEqual(t, []byte(r.view()))
	})
}
