package tui

import (
	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// canvas is a pane that draws itself: a time line, a map, a tree. It scrolls by lines when there are more than fit.
type canvas struct {
	theme *theme.Theme
	name  string
	// heading, if set, takes the name's place.
	heading func() string
	// draw makes the lines for a width, painted, each exactly that wide; it runs only when something has changed.
	draw func(s *feed.Snapshot, width, height int) []string
	// more keys that this pane takes, and what they do.
	bindings []key.Binding
	pressed  func(k tea.KeyMsg) bool

	snapshot      *feed.Snapshot
	drawn         []string
	stale         bool
	top           int
	width, height int
}

func (p *canvas) title() string {
	if p.heading != nil {
		return p.heading()
	}
	return p.name
}

func (p *canvas) setSize(width, height int) {
	if width != p.width || height != p.height {
		p.stale = true
	}
	p.width, p.height = width, height
}

func (p *canvas) update(s *feed.Snapshot) { p.snapshot, p.stale = s, true }

func (p *canvas) handle(k tea.KeyMsg) bool {
	switch {
	case key.Matches(k, moveKeys.up):
		p.top--
	case key.Matches(k, moveKeys.down):
		p.top++
	case key.Matches(k, moveKeys.pageUp):
		p.top -= max(p.height, 1)
	case key.Matches(k, moveKeys.pageDown):
		p.top += max(p.height, 1)
	case key.Matches(k, moveKeys.first):
		p.top = 0
	case key.Matches(k, moveKeys.last):
		p.top = len(p.drawn)
	default:
		if p.pressed == nil || !p.pressed(k) {
			return false
		}
		p.stale = true
	}
	p.clamp()
	return true
}

func (p *canvas) clamp() { p.top = max(min(p.top, len(p.drawn)-p.height), 0) }

func (p *canvas) keys() []key.Binding { return append(moveKeys.all(), p.bindings...) }

// refresh draws anew if need be.
func (p *canvas) refresh() {
	if p.stale && p.snapshot != nil {
		p.drawn, p.stale = p.draw(p.snapshot, p.width, p.height), false
		p.clamp()
	}
}

func (p *canvas) lines(bool) []string {
	p.refresh()
	lines := make([]string, 0, p.height)
	for i := p.top; i < len(p.drawn) && len(lines) < p.height; i++ {
		lines = append(lines, p.drawn[i])
	}
	for len(lines) < p.height {
		lines = append(lines, theme.Spaces(p.width))
	}
	return lines
}

func (p *canvas) focusable() bool  { return true }
func (p *canvas) current() target  { return target{} }
func (p *canvas) filter(string)    {}
func (p *canvas) filtered() string { return "" }

// piece is a run of cells of one role in a line that a canvas draws.
type piece struct {
	text string
	role theme.Role
}

// paintLine joins pieces to a line of exactly width cells; neighbours of one role are painted as one.
func paintLine(t *theme.Theme, width int, pieces ...piece) string {
	line, room := "", width
	for i := 0; i < len(pieces) && room > 0; {
		text := ""
		j := i
		for ; j < len(pieces) && pieces[j].role == pieces[i].role; j++ {
			text += pieces[j].text
		}
		if theme.Width(text) > room {
			text = t.Fit(text, room)
		}
		line += t.Paint(pieces[i].role, text)
		room -= theme.Width(text)
		i = j
	}
	return line + theme.Spaces(room)
}
