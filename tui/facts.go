package tui

import (
	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// fact is "label  value" in a facts pane. One without a value is not shown.
type fact struct {
	label, value string
	role         theme.Role
	// wide facts have lines of their own above the others, as many as they need but at most wideLines.
	wide bool
}

const (
	// labelCells is the width of the labels, factCells the least width of a column of facts.
	labelCells = 12
	factCells  = 40
	wideLines  = 3
)

// factsPane shows what is known of one thing. It takes no keys.
type factsPane struct {
	theme         *theme.Theme
	name          string
	facts         func(*feed.Snapshot) []fact
	wide, narrow  []fact
	width, height int
}

func (p *factsPane) title() string             { return p.name }
func (p *factsPane) setSize(width, height int) { p.width, p.height = width, height }
func (p *factsPane) handle(tea.KeyMsg) bool    { return false }
func (p *factsPane) keys() []key.Binding       { return nil }
func (p *factsPane) focusable() bool           { return false }
func (p *factsPane) current() target           { return target{} }
func (p *factsPane) filter(string)             {}
func (p *factsPane) filtered() string          { return "" }

func (p *factsPane) update(s *feed.Snapshot) {
	p.wide, p.narrow = p.wide[:0], p.narrow[:0]
	for _, f := range p.facts(s) {
		f.value = p.theme.Clean(f.value)
		switch {
		case f.value == "":
		case f.wide:
			p.wide = append(p.wide, f)
		default:
			p.narrow = append(p.narrow, f)
		}
	}
}

// need is the height of pane and rule at a width.
func (p *factsPane) need(width int) int {
	n := 1 + p.rows(width)
	for _, f := range p.wide {
		n += len(p.wrapped(f, width))
	}
	return n
}

func columnsOf(width int) int { return max(width/factCells, 1) }

// rows is the number of lines that the narrow facts take.
func (p *factsPane) rows(width int) int {
	return (len(p.narrow) + columnsOf(width) - 1) / columnsOf(width)
}

func (p *factsPane) wrapped(f fact, width int) []string {
	lines := theme.Wrap(f.value, max(width-labelCells-3, 1))
	if len(lines) > wideLines {
		lines[wideLines-1] += " " + p.theme.Ellipsis
		lines = lines[:wideLines]
	}
	return lines
}

// lines draws the wide facts, then the others in columns that are filled one after the other.
func (p *factsPane) lines(bool) []string {
	lines := make([]string, 0, p.height)
	for _, f := range p.wide {
		for i, text := range p.wrapped(f, p.width) {
			if i > 0 {
				f.label = ""
			}
			lines = append(lines, p.line(f, text, p.width))
		}
	}
	columns, rows := columnsOf(p.width), p.rows(p.width)
	for i := range rows {
		line := ""
		for c := range columns {
			room := p.width / columns
			if c == columns-1 {
				room = p.width - c*room
			}
			if j := c*rows + i; j < len(p.narrow) {
				line += p.line(p.narrow[j], p.narrow[j].value, room)
			} else {
				line += theme.Spaces(room)
			}
		}
		lines = append(lines, line)
	}
	lines = lines[:min(len(lines), p.height)]
	for len(lines) < p.height {
		lines = append(lines, theme.Spaces(p.width))
	}
	return lines
}

func (p *factsPane) line(f fact, text string, width int) string {
	t := p.theme
	label := t.Fit("  "+f.label, min(labelCells+2, width))
	rest := max(width-labelCells-2, 0)
	value := ""
	if rest > 0 {
		value = t.Paint(f.role, t.Fit(text, rest-1)) + " "
	}
	return t.Paint(theme.Dim, label) + value
}
