package tui

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/ansi"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tests/setting"
	"github.com/cellvisor/cellvisor/tui/fake"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

func TestMain(m *testing.M) {
	if plug := os.Getenv(consoleEnv); plug != "" {
		os.Exit(showConsole(plug))
	}
	setting.Plain()
	// Screens show local time; the golden ones were drawn here.
	time.Local = time.UTC
	os.Exit(m.Run())
}

// script is a source whose content a test sets. Its methods run on the test's goroutine.
type script struct {
	state     fake.State
	want      feed.Want
	refreshed int
	client    api.CellvisorClient
	readers   []*scriptReader
}

func (s *script) Updates() <-chan feed.Update { return nil }
func (s *script) Refresh()                    { s.refreshed++ }
func (s *script) Want(w feed.Want)            { s.want = w }

func (s *script) Client() (api.CellvisorClient, error) {
	if s.client == nil {
		return nil, feed.ErrNotConnected
	}
	return s.client, nil
}

type scriptReader struct {
	vm     string
	log    feed.Log
	closed bool
}

func (r *scriptReader) Next(context.Context) (feed.Chunk, bool) { return feed.Chunk{}, false }
func (r *scriptReader) Close()                                  { r.closed = true }

func (s *script) Follow(_ context.Context, vm string, log feed.Log) logReader {
	r := &scriptReader{vm: vm, log: log}
	s.readers = append(s.readers, r)
	return r
}

// snapshot is what a poll would find.
func (s *script) snapshot(at time.Time) *feed.Snapshot {
	snap := &feed.Snapshot{At: at, Status: s.state.Status, Servers: s.state.Servers, Cells: s.state.Cells, VMs: s.state.VMs, Events: s.state.Events,
		Operations: s.state.Operations}
	snap.Load = feed.LoadOf(nil, s.state.Workers)
	snap.Watched = snap.VM(s.want.VM)
	if s.want.Counters == s.state.Status.GetServer() {
		snap.Counters = &api.DebugCountersResponse{Server: s.want.Counters, Counters: s.state.Counters}
	}
	if s.want.Slices != "" {
		snap.Slices = s.state.Slices[s.want.Slices]
	}
	if s.want.Map != "" {
		snap.Map = s.state.Maps[s.want.Map]
	}
	return snap
}

// rig is an App driven by a test without a terminal.
type rig struct {
	t   *testing.T
	app *App
	src *script
	at  time.Time
}

func newRig(t *testing.T, th *theme.Theme, width, height int) *rig {
	t.Helper()
	src := &script{state: fake.Small()}
	r := &rig{t: t, src: src, at: fake.Epoch, app: newApp(t.Context(), th, src, false)}
	r.app.now = func() time.Time { return r.at }
	r.app.program = readyDrills
	r.send(tea.WindowSizeMsg{Width: width, Height: height})
	r.poll()
	return r
}

// readyDrills is a command line that knows two drills.
func readyDrills(_ context.Context, args []string, out io.Writer) error {
	if strings.Join(args, " ") == "drill ls -o json" {
		_, err := io.WriteString(out, `[{"name":"lose-a-cell","cells":3,"servers_per_cell":1,"max_cells":1,"about":"A cell dies; only its dependants notice"},
			{"name":"lose-the-leader","cells":3,"servers_per_cell":2,"max_cells":1,"about":"The server that leads is killed"}]`)
		return err
	}
	_, err := io.WriteString(out, "ran "+strings.Join(args, " ")+"\n")
	return err
}

// serve puts a fake cluster behind the App, for the calls that it makes itself.
func (r *rig) serve() *fake.Server {
	r.t.Helper()
	server := fake.Start(r.src.state)
	client, conn, err := server.Dial("")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		conn.Close()
		server.Stop()
	})
	r.src.client = client
	return server
}

// settle runs a command, in the absence of a program, if its answer is one that ends by itself.
func (r *rig) settle(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	switch m := cmd().(type) {
	case drillsMsg, planMsg, noticeMsg:
		r.send(m)
	}
}

func plainTheme() *theme.Theme { return theme.New(false, false) }

// send gives a message to the App and drops the command it returns.
func (r *rig) send(m tea.Msg) tea.Cmd {
	_, cmd := r.app.Update(m)
	return cmd
}

func (r *rig) poll() {
	r.send(feedMsg(feed.Update{Snapshot: r.src.snapshot(r.at)}))
}

// keyMsg makes the message of a key by its Bubble Tea name.
func keyMsg(name string) tea.KeyMsg {
	for t := tea.KeyType(-100); t < 150; t++ {
		if k := (tea.KeyMsg{Type: t}); t != tea.KeyRunes && k.String() == name && name != "" {
			return k
		}
	}
	return tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune(name)}
}

// press sends keys by name, separated by spaces; "text:" types what follows, with underscores for spaces.
func (r *rig) press(keys string) tea.Cmd {
	var last tea.Cmd
	for _, k := range strings.Fields(keys) {
		if text, found := strings.CutPrefix(k, "text:"); found {
			for _, c := range strings.ReplaceAll(text, "_", " ") {
				r.send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune{c}})
			}
			continue
		}
		last = r.send(keyMsg(k))
	}
	return last
}

// view draws the screen and checks that it is exactly as large as the terminal.
func (r *rig) view() string {
	r.t.Helper()
	if err := checkSize(r.app.View(), r.app.width, r.app.height); err != nil {
		r.t.Fatal(err)
	}
	lines := strings.Split(r.app.View(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

func checkSize(view string, width, height int) error {
	lines := strings.Split(view, "\n")
	if len(lines) != height {
		return fmt.Errorf("%d lines on a terminal of %d:\n%s", len(lines), height, view)
	}
	for i, l := range lines {
		if w := ansi.StringWidth(l); w != width {
			return fmt.Errorf("line %d is %d cells wide on a terminal of %d: %q", i, w, width, l)
		}
	}
	return nil
}

func (r *rig) wants(texts ...string) {
	r.t.Helper()
	view := ansi.Strip(r.view())
	for _, text := range texts {
		if !strings.Contains(view, text) {
			r.t.Errorf("%q is not on the screen:\n%s", text, view)
		}
	}
}

func (r *rig) lacks(texts ...string) {
	r.t.Helper()
	view := ansi.Strip(r.view())
	for _, text := range texts {
		if strings.Contains(view, text) {
			r.t.Errorf("%q is on the screen:\n%s", text, view)
		}
	}
}

func TestDrillDownAndBack(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	r.press("j j enter")
	r.wants("VM lock", "$ cellvisor vm show lock", "overview › VM lock", "rounds=10000")
	if r.src.want.VM != "lock" {
		t.Errorf("wants %+v", r.src.want)
	}
	r.press("enter")
	r.poll()
	r.wants("overview › VM lock › server a-1", "raft.proposals")
	r.press("esc esc")
	r.wants("Cells and servers")
	if r.src.want != (feed.Want{}) {
		t.Errorf("still wants %+v", r.src.want)
	}
	// Esc on the first screen stays there.
	r.press("esc esc")
	r.wants("Cells and servers")
}

func TestPanesByTab(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 40)
	r.press("tab tab k k enter")
	r.wants("Cell a", "VMs that depend on it (2)")
}

func TestFilter(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	r.press("/ text:state:running")
	r.wants("VMs (2 of 6) /state:running", "/state:running_")
	r.press("enter")
	r.lacks("boom")
	r.press("esc")
	r.wants("VMs (6)", "boom")
	// Esc in the prompt brings back what was before.
	r.press("/ text:lost enter / text:x esc")
	r.wants("VMs (1 of 6) /lost")
	r.press("/ ctrl+u text:nothing-like-it enter")
	r.wants("nothing matches nothing-like-it")
}

func TestCursorFollowsItsRow(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	r.press("j j")
	r.src.state.VMs = slices.Insert(slices.Clone(r.src.state.VMs), 0, &api.VM{Name: "aaa", State: api.VMState_VM_STATE_RUNNING})
	r.poll()
	r.press("enter")
	r.wants("VM lock")
}

func TestCommands(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"vm_show_tick", "overview › VM tick"},
		{"cellvisor_vm_show_tick", "overview › VM tick"},
		{"cell_ls", "Cells (3)"},
		{"server_ls", "Servers (6)"},
		{"vm_ls", "VMs (6)"},
		{"events", "Events (8)"},
		{"events_/c-2", "Events (3 of 8) /c-2"},
		{"server_show_c-2", "Server c-2"},
		{"cell_show_c", "Cell c"},
		{"help", "Keys of this pane"},
		{"vm_show_nobody", `there is no VM "nobody"`},
		{"vm_show", "vm show: 0 arguments given; usage: vm show NAME"},
		{"top", `unknown command "top"`},
		{"frob", `unknown command "frob"`},
		{"vm_frob", "Leave this to the command line?"},
		{"vm_ls_--wat", "unknown flag --wat"},
		{"vm_stop_'a", "a quote is not closed"},
		{"vm_run_x", "--payload is missing"},
		{"vm_run_x_--payload_./x.elf", "is a file"},
		{"vm_run_x_--payload_count_--memory_lots", "is not a size"},
	} {
		r := newRig(t, plainTheme(), 110, 30)
		r.press(": text:" + c.line + " enter")
		r.wants(c.want)
	}
}

func TestCompletion(t *testing.T) {
	r := newRig(t, plainTheme(), 110, 30)
	r.press(": text:vm_sh tab text:ti tab")
	r.wants(":vm show tick_")
	r.press("esc : text:s tab")
	r.wants("server", "status")
	r.press("esc : text:vm_rm_ tab")
	r.wants("--force", "boom", "gone")
	r.press("esc : text:vm_show_tick enter esc : up")
	r.wants(":vm show tick_")
	r.press("down")
	r.wants(":_")
}

// TestActsAsk goes through the acts with a real service behind them.
func TestActsAsk(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	client, conn, err := server.Dial("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := newRig(t, plainTheme(), 100, 30)
	r.src.client = client

	r.press("j j s")
	r.wants("Stop VM lock?", "$ cellvisor vm stop lock", "Its 4 vCPUs stop now on a-1 (vCPU 0-1), b-1 (vCPU 2-3)", "512 MiB")
	r.press("enter j x")
	r.wants("Stop VM lock?")
	r.press("n")
	r.wants("nothing was changed")
	if calls := server.Calls(); len(calls) > 0 {
		t.Fatalf("calls %v before the yes", calls)
	}
	r.press("s")
	r.send(r.press("y")())
	r.wants("$ cellvisor vm stop lock: stopped")
	r.press("x")
	r.wants("Remove VM lock?", "vm rm lock --force", "its output are deleted")
	r.send(r.press("y")())
	r.press(": text:vm_rm_tick enter")
	r.wants("refused without --force")
	r.send(r.press("y")())
	r.wants(`VM "tick" is running; stop it first or use --force`)
	cmd := r.press(": text:vm_run_fresh_--payload_count_--vcpus_2_--memory_1GiB_--span_a,b enter")
	r.send(cmd())
	r.wants("vm run fresh: starting in a")
	want := []string{"stop lock", "rm lock force=true", "rm tick force=false", "run fresh count vcpus=2 memory=1073741824 span=[a b]"}
	if calls := server.Calls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q, want %q", calls, want)
	}
	if r.app.acting != 0 {
		t.Errorf("%d acts under way", r.app.acting)
	}
}

// In a low terminal the whole dry run can still be read before it is agreed to.
func TestLongDryRunScrolls(t *testing.T) {
	r := newRig(t, plainTheme(), 40, 10)
	r.serve()
	r.settle(r.press(": text:cell_drain_b enter"))
	seen := ""
	for range 30 {
		seen += r.view()
		r.press("j")
	}
	for _, want := range []string{"$ cellvisor cell drain b", "VM web: move from b-1 to", "VM tick: standby from b-2", "0 above", "0 below", "y yes  n no"} {
		if !strings.Contains(seen, want) {
			t.Errorf("%q was never shown:\n%s", want, r.view())
		}
	}
	r.press("g")
	if first := r.view(); !strings.Contains(first, "0 above") {
		t.Errorf("g does not go back:\n%s", first)
	}
	r.press("n")
	if got := r.view(); !strings.Contains(got, "nothing was changed") {
		t.Errorf("n:\n%s", got)
	}
}

func TestLongOutcomeTakesTwoLines(t *testing.T) {
	r := newRig(t, plainTheme(), 80, 24)
	r.send(noticeMsg{notice: notice{text: strings.Repeat("so many words ", 9) + "end", role: theme.Bad}})
	r.wants(" so many words so", "many words end")
	r.send(noticeMsg{notice: notice{text: strings.Repeat("so many words ", 20) + "end"}})
	r.wants("words so…")
	r.press("j")
	r.wants("$ cellvisor status", "? help")
}

func TestReadOnly(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	r.app.readOnly = true
	for _, keys := range []string{"g j j s", "x", ": text:vm_stop_lock enter", ": text:vm_rm_lock enter", ": text:vm_run_x_--payload_count enter"} {
		r.press(keys)
		r.wants("READ-ONLY", "read-only: vm ")
		if r.app.dialog != nil {
			t.Fatalf("%q asked", keys)
		}
	}
	r.press("esc")
	r.lacks("s stop")
}

func TestClusterLostAndBack(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	lost := feed.Conn{Err: fmt.Errorf("no server of the cluster answers"), Attempt: 1, RetryAt: r.at.Add(3 * time.Second)}
	r.send(feedMsg(feed.Update{Snapshot: r.app.last, Conn: lost}))
	// The first failure only means that another server is tried.
	r.lacks("CLUSTER LOST")
	lost.Attempt = 2
	r.send(feedMsg(feed.Update{Snapshot: r.app.last, Conn: lost}))
	r.wants("▲ CLUSTER LOST · try 2, next in 3s (r: now) · shown as of 09:26:53", "   no server of", "lock")
	r.at = r.at.Add(2 * time.Second)
	r.send(tickMsg{})
	r.wants("next in 1s")
	r.press("r")
	if r.src.refreshed == 0 {
		t.Error("r did not retry")
	}
	r.press("j j s y")
	r.wants("not connected to the cluster")
	r.poll()
	r.lacks("CLUSTER LOST")
}

func TestNoQuorumBanner(t *testing.T) {
	r := newRig(t, plainTheme(), 120, 30)
	r.src.state.Status = proto.CloneOf(r.src.state.Status)
	r.src.state.Status.Quorum = false
	r.poll()
	r.wants("✗ NO QUORUM", "▲ NO QUORUM · a-1 answers but cannot agree")
}

func TestTailStaysAtTheNewestEvent(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 14)
	r.press("5 G")
	add := func(text string) {
		r.src.state.Events = slices.Clone(r.src.state.Events)
		r.src.state.Event("view.changed", "", "", "", text)
		r.poll()
	}
	for i := range 20 {
		add(fmt.Sprintf("change %d!", i))
	}
	r.wants("change 19!")
	r.press("k k")
	add("newer!")
	r.press("k")
	r.wants("change 16!")
	r.press("g")
	r.wants("epoch 6: six")
}

func TestKeysInOneRead(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	r.send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("jjc")})
	r.wants("Console of lock")
	r.send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("q5")})
	r.wants("overview › events")
	// A paste is not keys, but text where text is wanted.
	r.send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("qq"), Paste: true})
	r.wants("overview › events")
	r.press("/")
	r.send(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("vm.\x1blost\n"), Paste: true})
	r.wants("/vm.lost _")
}
