package tui

import (
	"fmt"
	"strings"

	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/theme"
)

// dialog asks before something is destroyed. Only y goes ahead. What does not fit is scrolled.
type dialog struct {
	question, line string
	plan           []string
	yes            func() tea.Cmd

	top   int // first line of the text that is shown
	shown int // lines of it that were shown last
}

func (a *App) ask(question, line string, plan []string, yes func() tea.Cmd) {
	a.dialog = &dialog{question: question, line: line, plan: plan, yes: yes}
}

func (d *dialog) handle(a *App, k tea.KeyMsg) tea.Cmd {
	switch k.String() {
	case "y", "Y":
		a.dialog = nil
		return d.yes()
	case "n", "N", "esc", "q":
		a.dialog = nil
		a.say(theme.Plain, "nothing was changed")
		return nil
	}
	switch m := moveKeys; {
	case key.Matches(k, m.up):
		d.top--
	case key.Matches(k, m.down):
		d.top++
	case key.Matches(k, m.pageUp):
		d.top -= max(d.shown-1, 1)
	case key.Matches(k, m.pageDown):
		d.top += max(d.shown-1, 1)
	case key.Matches(k, m.first):
		d.top = 0
	case key.Matches(k, m.last):
		d.top = len(d.plan) * dialogCells // more than there can be: drawing bounds it
	}
	return nil
}

// dialogCells bounds the width of the box.
const dialogCells = 76

// over draws the dialog over the middle of the body. Where the body is too low for all of the text, as much of it as fits is shown, and where it
// goes on.
func (d *dialog) over(t *theme.Theme, body []string, width int) []string {
	inner := min(width, dialogCells) - 4
	if inner < 8 {
		return body
	}
	text := theme.Wrap(t.Prompt+" cellvisor "+t.Clean(d.line), inner)
	text = append(text, "")
	for _, p := range d.plan {
		text = append(text, theme.Wrap(t.Clean(p), inner)...)
	}
	choice := "y  yes, do it      n or esc  no"
	const frame = 2 // rules at the top and at the bottom
	switch room := len(body) - frame; {
	case len(text)+3 <= room:
		text = append(append([]string{""}, text...), "", choice)
	case len(text)+1 <= room:
		text = append(text, choice)
	default:
		d.shown = max(room-1, 1)
		d.top = min(max(d.top, 0), max(len(text)-d.shown, 0))
		below := len(text) - d.top - d.shown
		text = append(text[d.top:d.top+d.shown:d.top+d.shown], t.Truncate(fmt.Sprintf("y yes  n no  j/k %d above, %d below", d.top, below), inner))
	}
	body = body[:len(body):len(body)]
	box := d.box(t, text, inner)
	left := (width - inner - 4) / 2
	right := width - inner - 4 - left
	top := max((len(body)-len(box))/2, 0)
	for i, line := range box[:min(len(box), len(body))] {
		body[top+i] = theme.Spaces(left) + line + theme.Spaces(right)
	}
	return body
}

// box draws a frame with the question around the text.
func (d *dialog) box(t *theme.Theme, text []string, inner int) []string {
	title := t.Truncate(t.Clean(d.question), inner-2)
	rules := strings.Repeat(t.Rule, max(inner-theme.Width(title)-1, 0))
	wall := t.Paint(theme.Accent, t.Wall)
	box := []string{t.Paint(theme.Accent, t.TopLeft+t.Rule+" "+title+" "+rules+t.TopRight)}
	for _, line := range text {
		box = append(box, wall+" "+t.Fit(line, inner)+" "+wall)
	}
	return append(box, t.Paint(theme.Accent, t.BottomLeft+strings.Repeat(t.Rule, inner+2)+t.BottomRight))
}
