package tests

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/drills"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/tests/terminal"
)

// The console is driven as an operator drives it: `cellvisor top` in a terminal, before real servers and VMs.

const (
	consolePatience = 90 * time.Second
	drillPatience   = 3 * time.Minute

	consoleColumns, consoleRows = 140, 44
)

// operator sits before a console.
type operator struct {
	*terminal.Terminal
	t    *testing.T
	dir  string
	env  []string
	used map[string]bool // commands that were given, by line or by key
}

// newOperator starts a cluster of three cells, a directory for it and for what drills make, and VMs.
func newOperator(t *testing.T) *operator {
	needKVM(t)
	if testing.Short() {
		t.Skip("takes tens of seconds")
	}
	dir, env := drillEnv(t)
	o := &operator{t: t, dir: dir, env: append(env, "TMPDIR="+filepath.Join(dir, "t")), used: make(map[string]bool)}
	// A server that is stopped for a moment must still have its lease, however busy the machine is.
	s, err := local.Start(local.Options{Dir: dir, Exe: program, Shape: local.Shape{Cells: 3, PerCell: 1, Slots: 8, Memory: 512 * ident.MiB, Lease: 20 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitLive(t.Context(), func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "t"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"web", "--payload", "dirty", "--vcpus", "2", "--span", "a,b", "--protect", "replica", "--args=40 4000 0"},
		{"tick", "--payload", "count", "--span", "c", "--args=0 100"},
		{"plain", "--payload", "count", "--span", "b", "--args=0 100"},
		{"brief", "--payload", "hello", "--span", "c", "--wait"},
	} {
		o.cli(append([]string{"vm", "run"}, args...)...)
	}
	return o
}

func (o *operator) cli(args ...string) string {
	o.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = o.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// open starts a console. The shell stays behind it, so that what it leaves of the terminal can be looked at.
func (o *operator) open(env, flags string) {
	o.t.Helper()
	var err error
	line := fmt.Sprintf("echo before; %s TERM=xterm-256color '%s' top %s; echo status $?; exec cat", env, program, flags)
	o.Terminal, err = terminal.Start(o.dir, consoleColumns, consoleRows, o.env, line)
	if errors.Is(err, terminal.ErrMissing) {
		o.t.Skip(err)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(o.Close)
}

// wants waits until all texts are on the screen, perhaps wrapped in a box.
func (o *operator) wants(texts ...string) string {
	o.t.Helper()
	screen, err := o.Await(consolePatience, func(screen string) string {
		flat := strings.Join(strings.Fields(strings.ReplaceAll(screen, "│", " ")), " ")
		for _, text := range texts {
			if !strings.Contains(screen, text) && !strings.Contains(flat, text) {
				return fmt.Sprintf("%q is missing", text)
			}
		}
		return ""
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return screen
}

// press presses keys, by which a command is given ("" if none is), and waits for what must come of it.
func (o *operator) press(verb string, keys []string, wants ...string) {
	o.t.Helper()
	o.used[verb] = true
	if err := o.Keys(keys...); err != nil {
		o.t.Fatal(err)
	}
	o.wants(wants...)
}

// command types a command.
func (o *operator) command(verb, args string, wants ...string) {
	o.t.Helper()
	if err := o.Type(":" + strings.TrimSpace(verb+" "+args)); err != nil {
		o.t.Fatal(err)
	}
	o.press(verb, []string{"Enter"}, wants...)
}

// agree reads a question with its dry run, and says yes.
func (o *operator) agree(question []string, wants ...string) {
	o.t.Helper()
	o.wants(append(question, "y  yes, do it")...)
	o.press("", []string{"y"}, wants...)
}

// operation waits until an operation of this kind and subject is done, and gives its number.
func (o *operator) operation(line string, id *string) {
	o.t.Helper()
	screen, err := o.Await(consolePatience, func(screen string) string {
		for _, l := range strings.Split(screen, "\n") {
			if strings.Contains(l, line) && strings.Contains(l, "✓ done") {
				*id = strings.Fields(strings.Trim(l, "› "))[0]
				return ""
			}
		}
		return "operation " + line + " is not done"
	})
	if err != nil {
		o.t.Fatal(err, screen)
	}
}

// looks visits every screen that changes nothing.
func (o *operator) looks() {
	o.wants("Cells and servers (6)", "VMs (4)", "$ cellvisor status", "replica ✓ safe", "via a-1")
	o.press("cell ls", []string{"2"}, "Cells (3)", "$ cellvisor cell ls")
	o.press("cell show", []string{"Enter"}, "Cell a", "VMs that depend on it", "1 VM goes on from its replica: web")
	o.press("server ls", []string{"3"}, "Servers (3)")
	o.press("server show", []string{"j", "Enter"}, "Server b-1", "VMs with a part here", "api.calls")
	o.press("server slices", []string{"t"}, "Slots of b-1")
	o.press("vm ls", []string{"4"}, "VMs (4)")
	o.press("vm show", []string{"G", "Enter"}, "VM web", "Parts (3)", "✓ replica")
	o.press("vm pages", []string{"m"}, "Pages of web", "MiB to write", "MiB replica")
	o.press("vm console", []string{"c"}, "Console of web", "pages written")
	o.press("vm output", []string{"4", "G", "k", "o"}, "Output of tick", "following")
	o.press("events", []string{"5"}, "Events (", "vm.protected", "overview › events")
	o.press("recoveries", []string{"6"}, "Recoveries (0)")
	o.press("op ls", []string{"7"}, "no operations; start one with")
	o.press("cell load", []string{"8"}, "Load tree (7)", "└ c-1")
	o.press("drill ls", []string{"9"}, fmt.Sprintf("Drills (%d)", len(drills.Names())), "Runs of this console (0)")
	o.press("status", []string{"1"}, "Cells and servers (6)")
	o.press("", []string{"/"}, "/")
	if err := o.Type("state:exit"); err != nil {
		o.t.Fatal(err)
	}
	o.press("", []string{"Enter"}, "VMs (1 of 4) /state:exit")
	o.press("", []string{"Escape"}, "VMs (4)")
	o.command("vm show", "nothing", `there is no VM "nothing"`)
	o.command("vm fly", "web", "Leave this to the command line?")
	o.press("", []string{"n"}, "nothing was changed")
	delete(o.used, "vm fly")
}

// acts does what changes the cluster; what destroys shows first what it will do.
func (o *operator) acts() {
	var drained, restored, moved string
	o.command("vm run", "extra --payload count --args '0 100' --span b", "vm run extra: ")
	o.press("vm ls", []string{"4"}, "VMs (5)")
	o.press("vm protect", []string{"G", "k", "k", "P"}, "vm protect plain replica")
	o.press("", []string{"Enter"}, "vm protect plain replica: ")
	o.press("status", []string{"1"})
	if _, err := o.Await(consolePatience, func(screen string) string {
		if strings.Count(screen, "replica ✓ safe") < 2 {
			return "plain is not safe"
		}
		return ""
	}); err != nil {
		o.t.Fatal(err)
	}

	o.press("vm migrate", []string{"4", "G", "k", "M"}, "vm migrate tick --to")
	if err := o.Type("b"); err != nil {
		o.t.Fatal(err)
	}
	o.press("", []string{"Enter"})
	o.agree([]string{"Migrate vm tick?", "$ cellvisor vm migrate tick --to b", "VM tick: move from c-1 to b-1, 64 MiB"}, "vm migrate tick --to b: operation")
	o.press("op ls", []string{"7"})
	o.operation("migrate  vm tick", &moved)

	o.press("cell cordon", []string{"2", "C"}, "Cordon cell a?", "No new parts of VMs are placed there")
	o.agree(nil, "cell cordon a: done", "cordoned")
	o.press("cell uncordon", []string{"C"}, "cell uncordon a: done")
	o.press("cell drain", []string{"j", "D"}, "Drain cell b?", "VM web: move from b-1 to c-1, 64 MiB", "VM tick: move from b-1", "VM plain: move from b-1")
	o.press("", []string{"n"}, "nothing was changed")
	o.press("cell safe-to-stop", []string{"z"}, "cell safe-to-stop b: no: ", "vm extra: 1 vCPUs and memory, devices on server b-1")
	o.press("cell drain", []string{"D"})
	o.agree([]string{"Drain cell b?"}, "cell drain b: operation")
	o.press("op ls", []string{"7"})
	o.operation("drain    cell b", &drained)
	o.command("op show", drained, "cell b", "move", "web")
	o.command("op watch", moved, "vm tick")
	o.command("cell safe-to-stop", "b", "cell safe-to-stop b: yes")
	if out := o.cli("cell", "ls", "-o", "json"); mismatch(out, "name=b.cordoned", "true") != "" || mismatch(out, "name=b.vms", "0") != "" {
		o.t.Errorf("cell b is not drained: %s", out)
	}
	o.press("cell restore", []string{"2", "U"}, "Restore cell a?")
	o.press("", []string{"n"})
	o.command("cell restore", "b --return original", "Restore cell b?", "VM web: move from c-1 to b-1")
	o.agree(nil, "cell restore b --return original: operation")
	o.press("op ls", []string{"7"})
	o.operation("restore  cell b", &restored)

	o.command("server cordon", "c-1", "Cordon server c-1?")
	o.agree(nil, "server cordon c-1: done")
	o.command("server uncordon", "c-1", "server uncordon c-1: done")
	o.command("server safe-to-stop", "c-1", "server safe-to-stop c-1: ")
	o.command("server drain", "a-1 --max-parallel 1", "Drain server a-1?", "VM web: move from a-1")
	o.agree(nil, "server drain a-1 --max-parallel 1: operation")
	o.press("op ls", []string{"7"})
	o.operation("drain    server a-1", &drained)
	o.command("server restore", "a-1", "Restore server a-1?")
	o.agree(nil, "server restore a-1: operation")

	o.press("vm ls", []string{"4", "g", "j"}, "› extra")
	o.press("vm stop", []string{"s"}, "Stop VM extra?", "$ cellvisor vm stop extra", "It is running. Its 1 vCPU stops now on b-1")
	o.agree(nil, "vm stop extra: stopped", "■ stopped")
	o.press("vm rm", []string{"x"}, "Remove VM extra?", "This cannot be undone.")
	o.agree(nil, "vm rm extra: removed", "VMs (4)")
}

// cancels ends an operation that waits for a server that hangs.
func (o *operator) cancels() {
	o.t.Helper()
	leader := regexp.MustCompile(`leader (\S+)`).FindStringSubmatch(o.wants("leader "))[1]
	target := "c-1"
	if leader == target {
		target = "b-1"
	}
	home := func() string {
		return regexp.MustCompile(`"home": "([^"]+)"`).FindStringSubmatch(o.cli("vm", "show", "tick", "-o", "json"))[1]
	}
	if home() == target { // it is not to be where it is to go
		o.cli("vm", "migrate", "tick", "--to", "a-1")
	}
	o.signal(target, syscall.SIGSTOP)
	o.command("vm migrate", "tick --to "+target, "Migrate vm tick?")
	o.agree(nil, "--to "+target+": operation")
	notice := o.wants("is running, 7 shows it")
	id := regexp.MustCompile(`operation (\d+) is running`).FindStringSubmatch(notice)[1]
	o.command("op cancel", id, "Cancel operation "+id+"?", "What it has moved stays where it is.")
	o.agree(nil, "op cancel "+id+": cancelled")
	o.signal(target, syscall.SIGCONT)
	o.press("op ls", []string{"7"}, "cancelled")
	if home() == target {
		o.t.Error("tick moved although that was cancelled")
	}
}

func (o *operator) signal(server string, sig syscall.Signal) {
	o.t.Helper()
	members, err := local.Find(o.dir)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, m := range members {
		if m.Server == server {
			if err := local.Signal(sig, m.Process); err != nil {
				o.t.Fatal(err)
			}
		}
	}
}

// rehearses runs a drill from the console, and interrupts another.
func (o *operator) rehearses() {
	o.command("drill run", "blink --up --patience 4", "Run drill blink?", "this cluster is not touched")
	o.agree(nil, "Output of cellvisor drill run blink")
	if _, err := o.AwaitText(drillPatience, "drill blink: passed", "healing: ok", "ended well after"); err != nil {
		o.t.Fatal(err)
	}
	o.command("drill run", "slow-links --up", "Run drill slow-links?")
	o.agree(nil, "VM tick: count") // it has begun: the drill's VM runs
	o.command("interrupt", "1", "Interrupt it?")
	o.agree(nil, "asked to end")
	o.press("drill ls", []string{"9"}, "Runs of this console (2)")
	if _, err := o.AwaitText(drillPatience, "exit status 1", "ended well after"); err != nil {
		o.t.Fatal(err)
	}
	o.command("run", "0", "drill blink: passed")
}

// resizes shows the screens in terminals of all sizes.
func (o *operator) resizes() {
	o.press("status", []string{"1"}, "Cells and servers (6)")
	for _, size := range [][2]int{{40, 10}, {80, 24}, {200, 60}, {41, 11}} {
		if err := o.Resize(size[0], size[1]); err != nil {
			o.t.Fatal(err)
		}
		screen := o.wants("servers 3/3 live", "Cells and servers (6)", "$ cellvisor status")
		for _, line := range strings.Split(screen, "\n") {
			if n := len([]rune(line)); n > size[0] {
				o.t.Errorf("%d columns have a line of %d: %q", size[0], n, line)
			}
		}
	}
	o.command("cell drain", "b", "Drain cell b?", "0 above") // its dry run can be read even here
	o.press("", []string{"G"}, "0 below")
	o.press("", []string{"Escape"}, "nothing was changed")
	if err := o.Resize(20, 5); err != nil {
		o.t.Fatal(err)
	}
	o.wants("too small")
	if err := o.Resize(consoleColumns, consoleRows); err != nil {
		o.t.Fatal(err)
	}
	o.wants("Cells and servers (6)", "via ")
}

// losesItsServer kills the server that the console talks to: it goes on at another one.
func (o *operator) losesItsServer() {
	via := regexp.MustCompile(`via (\w)-1`).FindStringSubmatch(o.wants("via "))[1]
	if _, _, err := local.KillCell(o.dir, via); err != nil {
		o.t.Fatal(err)
	}
	if _, err := o.Await(consolePatience, func(screen string) string {
		if strings.Contains(screen, "via "+via+"-1") || !strings.Contains(screen, "servers 2/3 live") || !strings.Contains(screen, "via ") {
			return "the console does not go on at another server"
		}
		return ""
	}); err != nil {
		o.t.Fatal(err)
	}
	o.press("recoveries", []string{"6"}, "Recoveries (1)", "detect")
	if _, err := local.StartServer(o.dir, via+"-1", program); err != nil {
		o.t.Fatal(err)
	}
	o.wants("servers 3/3 live")
}

// helpCommands reads the commands that the console has from its help.
func (o *operator) helpCommands() []string {
	o.t.Helper()
	if err := o.Resize(200, 160); err != nil {
		o.t.Fatal(err)
	}
	o.press("help", []string{"?"}, "Commands, after ':'", "Filters, after '/'")
	screen := o.wants("state:lost")
	if err := o.Resize(consoleColumns, consoleRows); err != nil {
		o.t.Fatal(err)
	}
	_, list, _ := strings.Cut(screen, "Commands, after ':'")
	list, _, _ = strings.Cut(list, "Filters, after '/'")
	word := regexp.MustCompile(`^[a-z][a-z-]*$`)
	var out []string
	for _, line := range strings.Split(list, "\n")[1:] {
		usage, _, _ := strings.Cut(strings.TrimSpace(line), "  ")
		var path []string
		for _, w := range strings.Fields(usage) {
			if !word.MatchString(w) {
				break
			}
			path = append(path, w)
		}
		if len(path) > 0 {
			out = append(out, strings.Join(path, " "))
		}
	}
	return out
}

// quits leaves by a command, and looks at the terminal that is left.
func (o *operator) quits(verb string) {
	o.t.Helper()
	o.command(verb, "")
	o.left()
}

func (o *operator) left() {
	o.t.Helper()
	screen := o.wants("before", "status 0")
	if strings.Contains(screen, "cellvisor status") {
		o.t.Errorf("remains on the terminal:\n%s", screen)
	}
	got, err := o.Tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}")
	if err != nil || strings.TrimSpace(got) != "0 1 0" {
		o.t.Errorf("alternate screen, cursor, mouse are %q: %v", got, err)
	}
	o.Close()
}

func TestConsole(t *testing.T) {
	o := newOperator(t)
	o.open("env -u NO_COLOR CI=true CLICOLOR=0 COLORTERM= LANG=C LC_ALL=C", "") // colours are up to NO_COLOR and TERM alone
	for _, part := range []struct {
		name string
		do   func()
	}{
		{"looks", o.looks}, {"acts", o.acts}, {"cancels", o.cancels}, {"rehearses", o.rehearses}, {"resizes", o.resizes}, {"loses its server", o.losesItsServer},
	} {
		began := time.Now()
		part.do()
		t.Logf("%s: %v", part.name, time.Since(began).Round(time.Millisecond))
	}
	if painted, err := o.Painted(); err != nil || !strings.Contains(painted, "\x1b[3") {
		t.Errorf("there are no colours: %v\n%q", err, painted)
	}
	commands := o.helpCommands()
	if len(commands) < 30 {
		t.Errorf("the help lists only %q", commands)
	}
	o.quits("quit")

	// Another one, that changes nothing and has no colours.
	o.open("env NO_COLOR=1", "--readonly")
	o.wants("READ-ONLY", "Cells and servers (6)")
	if painted, err := o.Painted(); err != nil || strings.Contains(painted, "\x1b[3") {
		t.Errorf("colours although NO_COLOR is set: %v\n%q", err, painted)
	}
	for _, line := range []string{"cell drain b", "vm stop tick", "vm rm tick --force", "drill run blink --up"} {
		o.command(line, "", "read-only: ")
		delete(o.used, line)
		o.press("", []string{"C-l"})
	}
	o.quits("q")

	// A key of its own, and without Unicode.
	o.open("env NO_COLOR=1", "--ascii")
	screen := o.wants("Cells and servers (6)")
	if strings.ContainsFunc(screen, func(r rune) bool { return r > 126 }) {
		t.Errorf("not only ASCII:\n%s", screen)
	}
	o.press("", []string{"q"})
	o.left()

	delete(o.used, "")
	for _, verb := range commands {
		if !o.used[verb] {
			t.Errorf("the console's command %q was not given: give it here", verb)
		}
		delete(o.used, verb)
	}
	if len(o.used) > 0 {
		t.Errorf("the help does not list %q", slices.Sorted(maps.Keys(o.used)))
	}
	o.nothingLeft()
}

// nothingLeft takes the cluster down and demands that no process and no directory of a drill outlives it.
func (o *operator) nothingLeft() {
	o.t.Helper()
	if _, err := local.Down(o.dir); err != nil {
		o.t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(o.dir, "t")); err != nil || len(left) > 0 {
		o.t.Errorf("left of drills: %v %v", left, err)
	}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		o.t.Fatal(err)
	}
	for _, path := range environs {
		if env, err := os.ReadFile(path); err == nil && strings.Contains(string(env), "CELLVISOR_DIR="+o.dir+"\x00") {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			o.t.Errorf("process %s is left: %q", filepath.Base(filepath.Dir(path)), line)
		}
	}
}
