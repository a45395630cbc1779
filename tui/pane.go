package tui

import (
	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// pane is a part of a screen. It has a size and keys of its own and draws itself; it knows nothing of its neighbours.
type pane interface {
	// title is drawn in the rule above the pane.
	title() string
	// setSize sets the size of the content, without the rule.
	setSize(width, height int)
	// update shows a new snapshot.
	update(s *feed.Snapshot)
	// handle is offered a key when the pane has the focus, and says whether it took it.
	handle(k tea.KeyMsg) bool
	// keys are those that handle takes, for the help.
	keys() []key.Binding
	// lines draws the content: height lines of width cells.
	lines(focused bool) []string
	// focusable panes take part in tab.
	focusable() bool
	// current is what the cursor is on.
	current() target
	// filter shows only what matches; filtered returns the text in use.
	filter(text string)
	filtered() string
}

// tablePane is a pane made of a table.
type tablePane struct {
	name  string
	table *table.Table
	// rows makes the rows from a snapshot.
	rows func(*feed.Snapshot) []table.Row
	// tail keeps the cursor on the last row while it is there: newest events.
	tail bool
	// unchanged, if set, says that the rows are the same as at the last call, so that long lists are not made anew.
	unchanged func(*feed.Snapshot) bool
}

func newTablePane(t *theme.Theme, name string, columns []table.Column, empty string, rows func(*feed.Snapshot) []table.Row) *tablePane {
	p := &tablePane{name: name, table: table.New(t, columns), rows: rows}
	p.table.Empty = empty
	return p
}

func (p *tablePane) title() string {
	title := p.name + " (" + number(p.table.Len())
	if p.table.Len() != p.table.Total() {
		title += " of " + number(p.table.Total())
	}
	title += ")"
	if f := p.table.Filter(); f.Active() {
		title += " /" + f.String()
	}
	return title
}

func (p *tablePane) setSize(width, height int) { p.table.SetSize(width, height) }

func (p *tablePane) update(s *feed.Snapshot) {
	if p.unchanged != nil && p.unchanged(s) {
		return
	}
	follow := p.tail && p.table.AtEnd()
	p.table.SetRows(p.rows(s))
	if follow {
		p.table.Last()
	}
}

func (p *tablePane) handle(k tea.KeyMsg) bool {
	switch {
	case key.Matches(k, moveKeys.up):
		p.table.Move(-1)
	case key.Matches(k, moveKeys.down):
		p.table.Move(1)
	case key.Matches(k, moveKeys.pageUp):
		p.table.MovePage(-1)
	case key.Matches(k, moveKeys.pageDown):
		p.table.MovePage(1)
	case key.Matches(k, moveKeys.first):
		p.table.First()
	case key.Matches(k, moveKeys.last):
		p.table.Last()
	case key.Matches(k, sortKeys.next):
		p.table.SortNext()
	case key.Matches(k, sortKeys.reverse):
		p.table.SortReverse()
	default:
		return false
	}
	return true
}

func (p *tablePane) keys() []key.Binding {
	return append(moveKeys.all(), sortKeys.next, sortKeys.reverse)
}

func (p *tablePane) lines(focused bool) []string { return p.table.View(focused) }
func (p *tablePane) focusable() bool             { return true }
func (p *tablePane) filtered() string            { return p.table.Filter().String() }

func (p *tablePane) filter(text string) {
	p.table.SetFilter(table.ParseFilter(text))
	if p.tail {
		p.table.Last()
	}
}

func (p *tablePane) current() target {
	row, ok := p.table.Current()
	if !ok {
		return target{}
	}
	return targetOf(row.Key)
}
