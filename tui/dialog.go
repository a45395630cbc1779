package tui

import (
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/theme"
)

// dialog asks before something is destroyed. Only y goes ahead.
type dialog struct {
	question, line string
	plan           []string
	yes            func() tea.Cmd
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
	}
	return nil
}

// dialogCells bounds the width of the box.
const dialogCells = 76

// over draws the dialog over the middle of the body.
func (d *dialog) over(t *theme.Theme, body []string, width int) []string {
	inner := min(width, dialogCells) - 4
	if inner < 8 {
		return body
	}
	var text []string
	text = append(text, "")
	text = append(text, theme.Wrap(t.Prompt+" cellvisor "+t.Clean(d.line), inner)...)
	text = append(text, "")
	for _, p := range d.plan {
		text = append(text, theme.Wrap(t.Clean(p), inner)...)
	}
	text = append(text, "", "y  yes, do it      n or esc  no")

	title := t.Truncate(t.Clean(d.question), inner-2)
	rules := strings.Repeat(t.Rule, max(inner-theme.Width(title)-1, 0))
	box := make([]string, 0, len(text)+2)
	box = append(box, t.Paint(theme.Accent, t.TopLeft+t.Rule+" "+title+" "+rules+t.TopRight))
	wall := t.Paint(theme.Accent, t.Wall)
	for _, line := range text {
		box = append(box, wall+" "+t.Fit(line, inner)+" "+wall)
	}
	box = append(box, t.Paint(theme.Accent, t.BottomLeft+strings.Repeat(t.Rule, inner+2)+t.BottomRight))
	if over := len(box) - len(body); over > 0 {
		// The choice at the end must stay; the plan gives way.
		keep := max(len(box)-over-3, 1)
		box = append(box[:keep:keep], box[len(box)-min(3, len(body)-1):]...)
		box = box[:min(len(box), len(body))]
	}
	left := (width - inner - 4) / 2
	right := width - inner - 4 - left
	top := (len(body) - len(box)) / 2
	for i, line := range box {
		body[top+i] = theme.Spaces(left) + line + theme.Spaces(right)
	}
	return body
}
