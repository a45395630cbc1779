package tui

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// source is where the App gets the cluster from: a feed, or a test's.
type source interface {
	Updates() <-chan feed.Update
	Refresh()
	Want(feed.Want)
	Client() (api.CellvisorClient, error)
	Follow(ctx context.Context, vm string, log feed.Log) logReader
}

// feedSource narrows what Follow returns to what screens need.
type feedSource struct{ *feed.Feed }

func (f feedSource) Follow(ctx context.Context, vm string, log feed.Log) logReader {
	return f.Feed.Follow(ctx, vm, log)
}

// App is the console's model. All of its methods run on Bubble Tea's goroutine; what waits runs in commands.
type App struct {
	theme    *theme.Theme
	source   source
	ctx      context.Context
	readOnly bool
	// now tells the time for count-downs; everything else takes the time of its snapshot.
	now func() time.Time

	last   *feed.Snapshot
	conn   feed.Conn
	stack  []*screen
	prompt *prompt
	dialog *dialog
	notice notice
	// acting is the number of acts under way; ticking says that a tick for the count-down is.
	acting  int
	ticking bool
	history []string

	// program runs what the console leaves to the command line; processes are its runs, children what must end before the console does.
	program   runProgram
	processes []*process
	children  sync.WaitGroup
	drills    []drillInfo

	width, height int
	// drawn is the last view; dirty says that it must be made anew.
	drawn string
	dirty bool
}

// notice is the outcome of the last command, shown until the next key.
type notice struct {
	text string
	role theme.Role
}

type (
	feedMsg   feed.Update
	tickMsg   struct{}
	noticeMsg struct {
		notice
		// act says that an act has ended.
		act bool
	}
)

func newApp(ctx context.Context, t *theme.Theme, src source, readOnly bool) *App {
	a := &App{theme: t, source: src, ctx: ctx, readOnly: readOnly, now: time.Now, dirty: true, program: execProgram(nil)}
	a.stack = []*screen{newOverview(a)}
	return a
}

// empty is shown before the first snapshot.
var empty = &feed.Snapshot{Status: &api.StatusResponse{}}

// snapshot is never nil.
func (a *App) snapshot() *feed.Snapshot {
	if a.last == nil {
		return empty
	}
	return a.last
}

func (a *App) screen() *screen { return a.stack[len(a.stack)-1] }

// Init implements tea.Model.
func (a *App) Init() tea.Cmd { return a.waitUpdate() }

func (a *App) waitUpdate() tea.Cmd {
	return func() tea.Msg {
		select {
		case u := <-a.source.Updates():
			return feedMsg(u)
		case <-a.ctx.Done():
			return nil
		}
	}
}

// Update implements tea.Model.
func (a *App) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	a.dirty = true
	switch m := msg.(type) {
	case tea.WindowSizeMsg:
		a.width, a.height = max(m.Width, 0), max(m.Height, 0)
		a.resize()
	case feedMsg:
		return a, tea.Batch(a.onUpdate(feed.Update(m)), a.waitUpdate())
	case tickMsg:
		a.ticking = false
		return a, a.tick()
	case chunkMsg:
		return a, a.onChunk(m)
	case processMsg:
		return a, a.onProcess(m)
	case planMsg:
		a.onPlan(m)
	case drillsMsg:
		a.onDrills(m)
	case tea.MouseMsg:
		return a, a.onMouse(m)
	case noticeMsg:
		a.notice = m.notice
		if m.act {
			a.acting--
			a.source.Refresh()
		}
	case tea.KeyMsg:
		return a, a.onKeys(m)
	default:
		a.dirty = false
	}
	return a, nil
}

func (a *App) onUpdate(u feed.Update) tea.Cmd {
	height := a.bodyHeight()
	if u.Snapshot != nil && u.Snapshot != a.last {
		a.last = u.Snapshot
		a.screen().update(a.last)
	}
	a.conn = u.Conn
	if height != a.bodyHeight() {
		a.resize()
	}
	return a.tick()
}

// tick keeps the count-down to the next attempt going while the cluster is lost.
func (a *App) tick() tea.Cmd {
	if a.conn.Err == nil || a.ticking {
		return nil
	}
	a.ticking = true
	return tea.Tick(time.Second, func(time.Time) tea.Msg { return tickMsg{} })
}

func (a *App) resize() {
	for _, s := range a.stack {
		s.setSize(a.width, a.bodyHeight())
	}
}

// push opens a screen above the present one.
func (a *App) push(s *screen) tea.Cmd {
	a.stack = append(a.stack, s)
	s.setSize(a.width, a.bodyHeight())
	a.shown()
	if s.opened != nil {
		return s.opened(a)
	}
	return nil
}

// pop goes back; false on the first screen.
func (a *App) pop() bool {
	if len(a.stack) == 1 {
		return false
	}
	s := a.screen()
	a.stack = a.stack[:len(a.stack)-1]
	if s.closed != nil {
		s.closed(a)
	}
	a.shown()
	return true
}

// popAll goes back to the first screen.
func (a *App) popAll() {
	for a.pop() {
	}
}

// shown brings the screen that came to the top up to date.
func (a *App) shown() {
	s := a.screen()
	a.source.Want(s.want)
	s.update(a.snapshot())
}

// onKeys takes apart what was typed so fast that it came in one read; Bubble Tea makes one message of that. A paste is text for the
// prompt and never keys.
func (a *App) onKeys(k tea.KeyMsg) tea.Cmd {
	if k.Type != tea.KeyRunes || len(k.Runes) == 1 {
		return a.onKey(k)
	}
	if k.Paste {
		if a.prompt == nil || a.dialog != nil {
			return nil
		}
		return a.onKey(k)
	}
	var cmds []tea.Cmd
	for _, r := range k.Runes {
		cmds = append(cmds, a.onKey(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune{r}, Alt: k.Alt}))
	}
	return tea.Sequence(cmds...)
}

// onKey gives a key to whoever has the keys: a dialog, the prompt, the screen's pane, then everyone.
func (a *App) onKey(k tea.KeyMsg) tea.Cmd {
	if key.Matches(k, globalKeys.quit) {
		return tea.Quit
	}
	if a.dialog != nil {
		return a.dialog.handle(a, k)
	}
	if a.prompt != nil {
		return a.prompt.handle(a, k)
	}
	a.notice = notice{}
	if cmd, ok := a.globalKey(k); ok {
		return cmd
	}
	if s := a.screen(); s.focused().handle(k) {
		if s.linked {
			s.update(a.snapshot())
		}
		return nil
	}
	return a.actionKey(k)
}

func (a *App) globalKey(k tea.KeyMsg) (tea.Cmd, bool) {
	s := a.screen()
	switch {
	case key.Matches(k, globalKeys.back):
		if !s.clearFilter() {
			a.pop()
		}
	case key.Matches(k, globalKeys.leave):
		if !a.pop() {
			return tea.Quit, true
		}
	case key.Matches(k, globalKeys.help):
		return a.run("help"), true
	case key.Matches(k, globalKeys.command):
		a.prompt = newCommandPrompt(a)
	case key.Matches(k, globalKeys.filter):
		a.prompt = newFilterPrompt(s.focused())
	case key.Matches(k, globalKeys.nextPane):
		s.cycle(1)
	case key.Matches(k, globalKeys.prevPane):
		s.cycle(-1)
	case key.Matches(k, globalKeys.refresh):
		a.source.Refresh()
	case key.Matches(k, globalKeys.suspend):
		return tea.Suspend, true
	case key.Matches(k, globalKeys.redraw):
		return tea.ClearScreen, true
	default:
		return nil, false
	}
	return nil, true
}

func (a *App) actionKey(k tea.KeyMsg) tea.Cmd {
	for _, act := range actions {
		if !key.Matches(k, act.key) {
			continue
		}
		switch line := a.lineOf(act); {
		case line == "":
		case strings.HasPrefix(line, ":"):
			if act.acts && a.readOnly {
				a.say(theme.Warn, "read-only: nothing is changed because the console was started with --readonly")
				return nil
			}
			a.prompt = newCommandPrompt(a)
			a.prompt.input.set(line[1:])
			return nil
		default:
			return a.run(line)
		}
	}
	return nil
}

// lineOf is the command line that an action means here: for what the cursor is on, or else for what the screen is about.
func (a *App) lineOf(act action) string {
	s := a.screen()
	if line := act.line(a, s.focused().current()); line != "" {
		return line
	}
	if line := act.line(a, s.about); line != s.command {
		return line
	}
	return ""
}

// say shows the outcome of something.
func (a *App) say(role theme.Role, text string) { a.notice = notice{text, role} }
