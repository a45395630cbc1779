package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// What the console does not do itself, it runs as a process of the command line, whose output a screen shows as it comes: drills, above all.

// process is one such run. It outlives the screen that shows it, not the console.
type process struct {
	line  string
	began time.Time
	stop  context.CancelFunc

	mu   sync.Mutex
	out  []byte        // protected by mu; the newest of its output, from offset base on
	base int           // protected by mu
	last string        // protected by mu; last line
	done bool          // protected by mu
	err  error         // protected by mu; nil after exit status 0
	took time.Duration // protected by mu
}

// Write implements io.Writer for the process's output. Of one that writes faster than can be shown, the newest bytes are kept.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out = append(p.out, b...)
	if over := len(p.out) - feed.MaxChunkBytes; over > 0 {
		p.out = append(p.out[:0], p.out[over:]...)
		p.base += over
	}
	if lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n"); lines[len(lines)-1] != "" {
		p.last = lines[len(lines)-1]
	}
	return len(b), nil
}

func (p *process) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.err, p.took = true, err, time.Since(p.began)
}

// since returns the output from an offset on, the offset of what follows, and how much before was dropped.
func (p *process) since(offset int) (out []byte, next, dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := max(offset, p.base)
	return append(out, p.out[from-p.base:]...), p.base + len(p.out), from - offset
}

// state says how it is: "running", "passed", or why it did not.
func (p *process) state() (text string, done bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.done:
		return "running: " + p.last, false, nil
	case p.err == nil:
		return "ended well after " + span(p.took), true, nil
	}
	return p.err.Error(), true, p.err
}

// healGrace is how long a process that was asked to end may take: a drill heals what it broke.
const healGrace = 30 * time.Second

// runProgram runs the command line with arguments; tests put something else in its place.
type runProgram func(ctx context.Context, args []string, out io.Writer) error

// execProgram runs program with args. It is asked to end by SIGINT, as by Ctrl-C.
func execProgram(program []string) runProgram {
	return func(ctx context.Context, args []string, out io.Writer) error {
		if len(program) == 0 {
			return errors.New("this console was started without a command line to run")
		}
		cmd := exec.CommandContext(ctx, program[0], append(program[1:len(program):len(program)], args...)...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.Env = append(os.Environ(), "NO_COLOR=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C of the terminal is the console's
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = healGrace
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() {
			return fmt.Errorf("exit status %d", exit.ExitCode())
		}
		return err
	}
}

// processesMax bounds the runs that are remembered.
const processesMax = 20

// awaitChildren waits, after the screen is gone, for the processes that were asked to end with the console, and says so.
func (a *App) awaitChildren(out io.Writer) {
	for _, p := range a.processes {
		if _, done, _ := p.state(); !done {
			fmt.Fprintf(out, "waiting for cellvisor %s, which was asked to end\n", p.line)
		}
	}
	a.children.Wait()
}

// begin starts a process and shows its output.
func (a *App) begin(args []string) tea.Cmd {
	ctx, cancel := context.WithCancel(a.ctx)
	p := &process{line: quoteWords(args), began: a.now(), stop: cancel}
	a.processes = append(a.processes, p)
	for i := 0; len(a.processes) > processesMax && i < len(a.processes); i++ {
		if _, done, _ := a.processes[i].state(); done {
			a.processes = append(a.processes[:i:i], a.processes[i+1:]...)
		}
	}
	program := a.program
	a.children.Go(func() {
		defer cancel()
		p.end(program(ctx, args, p))
	})
	return a.push(newProcessScreen(a, p))
}

// processMsg says that it is time to look at a process again.
type processMsg struct {
	screen  *screen
	process *process
	offset  int
}

func newProcessScreen(a *App, p *process) *screen {
	out := newPager(a.theme, "Output of cellvisor "+p.line)
	out.wrap = true
	s := &screen{theme: a.theme, crumb: firstWords(p.line), command: p.line, panes: []pane{out}, arrange: whole}
	s.opened = func(*App) tea.Cmd { return lookAgain(processMsg{s, p, 0}) }
	return s
}

// firstWords is what names a line in the path: its first three words.
func firstWords(line string) string {
	words := strings.Fields(line)
	return strings.Join(words[:min(len(words), 3)], " ")
}

func lookAgain(m processMsg) tea.Cmd {
	return tea.Tick(feed.MinInterval, func(time.Time) tea.Msg { return m })
}

// onProcess shows what has come, as long as its screen is there.
func (a *App) onProcess(m processMsg) tea.Cmd {
	if !slices.Contains(a.stack, m.screen) {
		return nil
	}
	out := m.screen.panes[0].(*pager)
	text, done, err := m.process.state() // before the output: after the end there is no more
	fresh, next, dropped := m.process.since(m.offset)
	if dropped > 0 {
		out.append([]byte("[" + size(uint64(dropped)) + " left out]\n"))
	}
	out.append(fresh)
	m.offset, out.note = next, "running"
	if !done {
		return lookAgain(m)
	}
	out.note = text
	role := theme.Good
	if err != nil {
		role = theme.Bad
	}
	a.say(role, a.theme.Prompt+" cellvisor "+m.process.line+": "+text)
	return nil
}
