package tui

import (
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// rect is where a pane is drawn, its rule included.
type rect struct{ x, y, width, height int }

// screen is a set of panes, of which one has the focus, and a layout of them.
type screen struct {
	theme *theme.Theme
	// crumb names the screen in the path at the top.
	crumb string
	// command is the CLI line that shows the same.
	command string
	// about is the thing that the screen shows: keys that act mean it when no row says otherwise.
	about target
	panes []pane
	// arrange gives each pane its place; a height or width of 0 hides it.
	arrange func(s *screen, width, height int) []rect
	// opened and closed, if set, run when the screen appears and goes.
	opened func(*App) tea.Cmd
	closed func(*App)
	// want is what the screen shows beyond the lists.
	want feed.Want
	// linked panes show what the cursor of another one is on, so that they are brought up to date with every key.
	linked bool

	places        []rect
	focus         int
	width, height int
}

func (s *screen) setSize(width, height int) {
	s.width, s.height = width, height
	s.layout()
}

// layout places the panes; it runs at every update since some sizes depend on what there is to show.
func (s *screen) layout() {
	s.places = s.arrange(s, s.width, s.height)
	for i, p := range s.panes {
		r := s.places[i]
		p.setSize(max(r.width, 0), max(r.height-1, 0))
	}
	if !s.visible(s.focus) || !s.panes[s.focus].focusable() {
		s.cycle(1)
	}
}

func (s *screen) visible(i int) bool { return s.places[i].width > 0 && s.places[i].height > 1 }

func (s *screen) update(snapshot *feed.Snapshot) {
	for _, p := range s.panes {
		p.update(snapshot)
	}
	s.layout()
}

func (s *screen) focused() pane { return s.panes[s.focus] }

// cycle moves the focus to the next pane that can have it, backwards for -1.
func (s *screen) cycle(step int) {
	n := len(s.panes)
	for i := 1; i <= n; i++ {
		j := ((s.focus+i*step)%n + n) % n
		if s.visible(j) && s.panes[j].focusable() {
			s.focus = j
			return
		}
	}
}

// clearFilter clears the filter of the pane that has the focus, or else those of all panes; false if there was none.
func (s *screen) clearFilter() bool {
	if s.focused().filtered() != "" {
		s.focused().filter("")
		return true
	}
	cleared := false
	for _, p := range s.panes {
		if p.filtered() != "" {
			p.filter("")
			cleared = true
		}
	}
	return cleared
}

// lines draws the panes into height lines of width cells. Panes side by side are separated by the last column of the left one.
func (s *screen) lines() []string {
	type band struct{ parts [][]string }
	out := make([]string, 0, s.height)
	for y := 0; y < s.height; {
		// A band is the panes that begin at this line; arrange makes panes side by side equally high.
		var b band
		height := 0
		for i, p := range s.panes {
			r := s.places[i]
			if r.y != y || !s.visibleRect(r) {
				continue
			}
			height = r.height
			focused := i == s.focus
			part := append([]string{s.rule(p, focused, r.width)}, p.lines(focused)...)
			b.parts = append(b.parts, part)
		}
		if height == 0 {
			out = append(out, theme.Spaces(s.width))
			y++
			continue
		}
		for l := range height {
			out = append(out, s.join(b.parts, l))
		}
		y += height
	}
	return out
}

func (s *screen) visibleRect(r rect) bool { return r.width > 0 && r.height > 0 }

func (s *screen) join(parts [][]string, line int) string {
	joined := ""
	for i, part := range parts {
		if i > 0 {
			joined += s.theme.Paint(theme.Dim, s.theme.Wall)
		}
		joined += part[line]
	}
	return joined
}

// rule draws the line above a pane with its title.
func (s *screen) rule(p pane, focused bool, width int) string {
	t := s.theme
	title := t.Truncate(t.Clean(p.title()), max(width-4, 0))
	left, role := t.Rule+" ", theme.Strong
	if focused {
		left, role = t.Cursor+" ", theme.Accent
	}
	used := 2 + theme.Width(title) + 1
	line := t.Paint(role, t.Fit(left+title, min(used-1, width)))
	if used > width {
		return line
	}
	rest := " "
	for range width - used {
		rest += t.Rule
	}
	return line + t.Paint(theme.Dim, rest)
}

// stack places panes one above the other with the given heights; what is left over goes to the pane with height -1.
func stack(width, height int, heights ...int) []rect {
	fixed, flexible := 0, 0
	for _, h := range heights {
		if h >= 0 {
			fixed += h
		} else {
			flexible++
		}
	}
	places := make([]rect, len(heights))
	y := 0
	for i, h := range heights {
		if h < 0 {
			h = max(height-fixed, 0) / flexible
		}
		h = min(h, height-y)
		places[i] = rect{0, y, width, h}
		y += h
	}
	return places
}
