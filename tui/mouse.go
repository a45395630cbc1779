package tui

import (
	tea "github.com/charmbracelet/bubbletea"
)

// wheelRows is how far a notch of the wheel scrolls.
const wheelRows = 3

// onMouse takes the wheel as keys, and a click as the choice of a pane and a row in it; a click on the row under the cursor shows it. Nothing that
// the mouse does cannot be done with keys, and it never answers a question.
func (a *App) onMouse(m tea.MouseMsg) tea.Cmd {
	if a.dialog != nil || a.prompt != nil || m.Action != tea.MouseActionPress {
		return nil
	}
	s := a.screen()
	switch m.Button {
	case tea.MouseButtonWheelUp, tea.MouseButtonWheelDown:
		k := tea.KeyMsg{Type: tea.KeyDown}
		if m.Button == tea.MouseButtonWheelUp {
			k.Type = tea.KeyUp
		}
		for range wheelRows {
			s.focused().handle(k)
		}
	case tea.MouseButtonLeft:
		return a.click(m.X, m.Y-2-len(a.banner()))
	default:
		return nil
	}
	if s.linked {
		s.update(a.snapshot())
	}
	return nil
}

// click takes a click at a cell of the body.
func (a *App) click(x, y int) tea.Cmd {
	s := a.screen()
	for i, p := range s.panes {
		r := s.places[i]
		if !s.visible(i) || !p.focusable() || x < r.x || x >= r.x+r.width || y < r.y || y >= r.y+r.height {
			continue
		}
		s.focus = i
		t, ok := p.(*tablePane)
		if !ok {
			return nil
		}
		// Above the rows are the pane's rule and the titles.
		again := t.table.ClickRow(y - r.y - 2)
		if s.linked {
			s.update(a.snapshot())
		}
		if again {
			return a.actionKey(tea.KeyMsg{Type: tea.KeyEnter})
		}
		return nil
	}
	return nil
}
