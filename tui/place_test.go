package tui

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/fake"
)

// TestPlacesAsk goes through the acts on cells, servers and operations: each shows its dry run first, and does nothing before the yes.
func TestPlacesAsk(t *testing.T) {
	r := newRig(t, plainTheme(), 110, 36)
	server := r.serve()
	r.press("2 j")
	r.settle(r.press("D"))
	r.wants("Drain cell b?", "$ cellvisor cell drain b", "at most 448 MiB to copy", "VM lock: move from b-1 to c-1, 256 MiB")
	r.press("n")
	r.wants("nothing was changed")
	r.settle(r.press("D"))
	r.settle(r.press("y"))
	r.wants("cell drain b: operation 40 is running, 7 shows it")
	r.press("C")
	r.wants("Cordon cell b?", "What runs there stays")
	r.settle(r.press("y"))
	r.wants("$ cellvisor cell cordon b: done")
	r.settle(r.press("z"))
	r.wants("no: vm lock: 2 vCPUs and memory on server b-1")
	r.settle(r.press(": text:server_restore_b-1_--return_original enter"))
	r.wants("$ cellvisor server restore b-1 --return original")
	r.press("n 4 j j M")
	r.wants(":vm migrate lock --to _")
	r.settle(r.press("text:b enter"))
	r.wants("$ cellvisor vm migrate lock --to b")
	r.press("n")
	r.settle(r.press(": text:vm_protect_lock_replica:2 enter"))
	r.wants("vm protect lock replica:2: syncing")
	r.press("7 G X")
	r.wants("Cancel operation 40?")
	r.settle(r.press("y"))
	r.wants("op cancel 40: cancelled")
	want := []string{"plan drain b,", "plan drain b,", "start drain b,", "cordon b, on", "plan restore b-1,", "plan migrate lock", "protect lock replica:2", "cancel"}
	if calls := server.Calls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q, want %q", calls, want)
	}
	server.Change(func(s *fake.State) { s.Operations = nil })
	r.settle(r.press(": text:cell_drain_a enter"))
	r.wants("4 slots are needed, 1 is free")
	for line, want := range map[string]string{
		"cell_drain_a_--deadline_soon": "must be none or at least 1s", "cell_drain_a_--max-parallel_x": "is not a number",
		"vm_migrate_lock": "--to is missing", "op_cancel_x": "is not the number", "op_show_99": "there is no operation",
	} {
		r.press(": text:" + line + " enter")
		r.wants(want)
	}
}

func TestReadOnlyPlaces(t *testing.T) {
	r := newRig(t, plainTheme(), 110, 36)
	r.app.readOnly = true
	for _, keys := range []string{"2 D", "2 C", "2 U", "4 j j M", "4 j j P", "7 X", ": text:drill_run_x enter", ": text:vm_frob enter"} {
		r.press(keys)
		if r.app.dialog != nil || r.app.prompt != nil {
			t.Errorf("%s asks although nothing may be changed", keys)
		}
		r.wants("read-only")
	}
}

// runUntil lets the program of a process go on until its screen says what is wanted.
func (r *rig) runUntil(want string) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for m := (processMsg{r.app.screen(), r.app.processes[len(r.app.processes)-1], 0}); !strings.Contains(r.view(), want); {
		_, next, _ := m.process.since(m.offset)
		r.send(m)
		m.offset = next
		if time.Now().After(deadline) {
			r.t.Fatalf("%q does not come:\n%s", want, r.view())
		}
		<-time.After(time.Millisecond)
	}
}

func TestDrillRuns(t *testing.T) {
	r := newRig(t, plainTheme(), 110, 30)
	r.settle(r.press("9"))
	r.wants("Drills (2)", "lose-the-leader")
	r.press("enter")
	r.wants(":drill run lose-a-cell --up_")
	r.press("enter")
	r.wants("Run drill lose-a-cell?", "on a cluster of its own", "A cell dies")
	r.press("y")
	r.runUntil("ended well after")
	r.wants("ran drill run lose-a-cell --up", "overview › drills › drill run lose-a-cell")
	r.press("esc")
	r.poll()
	r.wants("Runs of this console (1)", "ended well")
	r.press("tab enter")
	r.runUntil("ran drill run lose-a-cell --up")

	// One that goes on until it is interrupted.
	r.app.program = func(ctx context.Context, _ []string, out io.Writer) error {
		_, _ = io.WriteString(out, "breaking things\n")
		<-ctx.Done()
		_, _ = io.WriteString(out, "healed\n")
		return errors.New("exit status 1")
	}
	r.press("esc : text:drill_run_lose-the-leader enter")
	r.wants("It runs on THIS cluster")
	r.press("y")
	r.runUntil("breaking things")
	r.press("esc tab G")
	r.poll()
	r.press(": text:interrupt_1 enter")
	r.wants("A drill heals what it broke first")
	r.press("y : text:run_1 enter")
	r.runUntil("healed")
	r.runUntil("exit status 1")
	r.app.children.Wait()
	r.press(": text:run_99 enter : text:interrupt_99 enter")
	r.wants(`no run "99"`)
}

func TestLeftToTheCommandLine(t *testing.T) {
	r := newRig(t, plainTheme(), 110, 30)
	r.press(": text:doctor enter")
	r.runUntil("ran doctor")
	r.press("esc : text:vm_frob_x enter")
	r.wants("The console does not know this command")
	r.press("y")
	r.runUntil("ran vm frob x")
	for range 2 * processesMax {
		r.press("esc : text:version enter")
		r.runUntil("ended well")
	}
	if n := len(r.app.processes); n > processesMax {
		t.Errorf("%d runs are remembered", n)
	}
}

func TestExecProgram(t *testing.T) {
	var out strings.Builder
	run := execProgram([]string{"/bin/sh", "-c"})
	if err := run(t.Context(), []string{"echo $NO_COLOR; exit 3"}, &out); err == nil || err.Error() != "exit status 3" || out.String() != "1\n" {
		t.Errorf("%q %v", out.String(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out.Reset()
	p := &process{}
	go func() {
		for text, _, _ := p.state(); !strings.Contains(text, "ready"); text, _, _ = p.state() {
			<-time.After(time.Millisecond)
		}
		cancel()
	}()
	if err := run(ctx, []string{"trap 'echo healed; exit 0' INT; echo ready; while :; do sleep 0.01; done"}, p); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if got, _, _ := p.since(0); !strings.Contains(string(got), "healed") {
		t.Errorf("output %q", got)
	}
	if err := execProgram(nil)(t.Context(), nil, &out); err == nil {
		t.Error("ran without a program")
	}
}

func TestMouse(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	click := func(x, y int) {
		r.send(tea.MouseMsg{X: x, Y: y, Action: tea.MouseActionPress, Button: tea.MouseButtonLeft})
	}
	lines := strings.Split(r.view(), "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "tick ") })
	click(5, at)
	r.wants("› tick")
	r.send(tea.MouseMsg{Action: tea.MouseActionPress, Button: tea.MouseButtonWheelUp})
	r.wants("› lock")
	click(5, at)
	click(5, at)
	r.wants("VM tick")
	r.press("esc s")
	click(5, at)
	r.wants("Stop VM tick?")
	r.press("n")
	click(-1, 400)
	click(0, 0)
}

func TestZoom(t *testing.T) {
	r := newRig(t, plainTheme(), 100, 30)
	r.press("3 t")
	r.poll()
	r.wants("the last 1 s", "slot 0", "with b-1")
	r.press("+ + + + + + +")
	r.wants("the last 50 ms")
	r.press("- - - - - - - - -")
	r.wants("the last 10 s")
}
