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

// fact is a line "label  value" of a facts pane.
type fact struct {
	label, value string
	role         theme.Role
}

// factsPane shows what is known of one thing. It takes no keys.
type factsPane struct {
	theme         *theme.Theme
	name          string
	facts         func(*feed.Snapshot) []fact
	shown         []fact
	width, height int
}

func (p *factsPane) title() string             { return p.name }
func (p *factsPane) setSize(width, height int) { p.width, p.height = width, height }
func (p *factsPane) update(s *feed.Snapshot)   { p.shown = p.facts(s) }
func (p *factsPane) handle(tea.KeyMsg) bool    { return false }
func (p *factsPane) keys() []key.Binding       { return nil }
func (p *factsPane) focusable() bool           { return false }
func (p *factsPane) current() target           { return target{} }
func (p *factsPane) filter(string)             {}
func (p *factsPane) filtered() string          { return "" }

// labelCells is the width of the labels.
const labelCells = 12

// lines puts the facts in as many columns as are 40 cells wide, filled one after the other; long values go on in a column of one.
func (p *factsPane) lines(bool) []string {
	columns := max(p.width/40, 1)
	perColumn := (len(p.shown) + columns - 1) / columns
	width := p.width / columns
	lines := make([]string, 0, p.height)
	for i := 0; i < perColumn && len(lines) < p.height; i++ {
		line := ""
		for c := range columns {
			room := width
			if c == columns-1 {
				room = p.width - c*width
			}
			j := c*perColumn + i
			if j >= len(p.shown) {
				line += theme.Spaces(room)
				continue
			}
			line += p.line(p.shown[j], room)
		}
		lines = append(lines, line)
	}
	for len(lines) < p.height {
		lines = append(lines, theme.Spaces(p.width))
	}
	return lines
}

func (p *factsPane) line(f fact, width int) string {
	t := p.theme
	label := t.Fit("  "+f.label, min(labelCells+2, width))
	rest := max(width-labelCells-2, 0)
	value := t.Fit(t.Clean(f.value), max(rest-1, 0))
	if rest > 0 {
		value = t.Paint(f.role, value) + " "
	}
	return t.Paint(theme.Dim, label) + value
}
