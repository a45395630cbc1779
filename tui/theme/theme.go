// Package theme says how the console looks: the roles that text may play, the glyphs that stand beside every coloured word, and the two
// operations that every byte from the cluster passes before it reaches a terminal, Clean and Fit.
//
// Invariants:
//   - Text that comes from guests, peers or operators is cleaned before it is drawn: no byte of it can move the cursor or change the
//     terminal's state.
//   - Fit returns a string of exactly the width asked for, in terminal cells.
//   - Nothing is said by colour alone: with colours off and ASCII glyphs the same words remain.
package theme

import (
	"io"
	"strings"

	"github.com/charmbracelet/lipgloss"
	"github.com/muesli/termenv"
)

// Role is what a piece of text is for; the theme decides how that looks.
type Role uint8

// The roles.
const (
	Plain Role = iota
	Dim
	Strong
	Good
	Warn
	Bad
	Accent
	// Selected is the row under the cursor in the pane that has the keys, SelectedAway the same in another pane.
	Selected
	SelectedAway
	// Bar is the header line, Alarm the banner that tells of a lost cluster.
	Bar
	Alarm
	// hue0 and its followers tell things of one kind apart; see Hue.
	hue0
	_
	_
	_
	_
	hue5
	roles
)

// Hue returns one of a few roles by which things of one kind are told apart, beside a glyph of their own.
func Hue(n int) Role { return hue0 + Role(n%int(hue5-hue0+1)) }

// Glyphs are the marks that accompany words. All of them are one cell wide.
type Glyphs struct {
	Live, Dead, Joining, Degraded                string
	Starting, Running, Stopped, Done, Lost, Fail string
	Cursor, Ellipsis, Full, Empty, Rule, Wall    string
	Alarm, Crumb, Dot, Unknown, Up, Down, Prompt string
	TopLeft, TopRight, BottomLeft, BottomRight   string
	Branch, LastBranch, Trunk                    string
	// Half is a bar's cell that is used in part; Many stands where several hold something.
	Half, Many string
}

var unicodeGlyphs = Glyphs{
	Live: "●", Dead: "✗", Joining: "◌", Degraded: "◐",
	Starting: "◌", Running: "▶", Stopped: "■", Done: "✓", Lost: "✗", Fail: "‼",
	Cursor: "›", Ellipsis: "…", Full: "█", Empty: "░", Rule: "─", Wall: "│",
	Alarm: "▲", Crumb: "›", Dot: "·", Unknown: "?", Up: "↑", Down: "↓", Prompt: "$",
	TopLeft: "┌", TopRight: "┐", BottomLeft: "└", BottomRight: "┘",
	Branch: "├", LastBranch: "└", Trunk: "│",
	Half: "▌", Many: "≡",
}

var asciiGlyphs = Glyphs{
	Live: "*", Dead: "x", Joining: "~", Degraded: "%",
	Starting: "~", Running: ">", Stopped: "#", Done: "+", Lost: "x", Fail: "!",
	Cursor: ">", Ellipsis: "~", Full: "#", Empty: ".", Rule: "-", Wall: "|",
	Alarm: "!", Crumb: ">", Dot: "-", Unknown: "?", Up: "^", Down: "v", Prompt: "$",
	TopLeft: "+", TopRight: "+", BottomLeft: "+", BottomRight: "+",
	Branch: "|", LastBranch: "`", Trunk: "|",
	Half: ":", Many: "=",
}

// Theme paints. It is immutable and may be shared.
type Theme struct {
	Glyphs
	// ASCII says that nothing beyond US-ASCII may be drawn.
	ASCII bool
	paint [roles][2]string
}

// New returns a theme, with colours or without. The environment is the caller's business: a library that looks at it by itself takes the terminal of
// a person who works with CI set for none, and CLICOLOR for more than NO_COLOR.
func New(ascii, colour bool) *Theme {
	t := &Theme{Glyphs: unicodeGlyphs, ASCII: ascii}
	if ascii {
		t.Glyphs = asciiGlyphs
	}
	if !colour {
		return t
	}
	r := lipgloss.NewRenderer(io.Discard)
	r.SetColorProfile(termenv.ANSI) // more than the sixteen colours are not used
	return t.coloured(r)
}

func (t *Theme) coloured(r *lipgloss.Renderer) *Theme {
	s := r.NewStyle
	// The first sixteen colours: they follow the user's own palette, so that contrast is the user's choice too.
	styles := [roles]lipgloss.Style{
		Plain:        s(),
		Dim:          s().Faint(true),
		Strong:       s().Bold(true),
		Good:         s().Foreground(lipgloss.Color("2")),
		Warn:         s().Foreground(lipgloss.Color("3")),
		Bad:          s().Foreground(lipgloss.Color("1")).Bold(true),
		Accent:       s().Foreground(lipgloss.Color("6")).Bold(true),
		Selected:     s().Reverse(true),
		SelectedAway: s().Bold(true),
		Bar:          s().Reverse(true),
		Alarm:        s().Foreground(lipgloss.Color("15")).Background(lipgloss.Color("1")).Bold(true),
	}
	for i, colour := range []string{"2", "4", "3", "5", "6", "9"} {
		styles[Hue(i)] = s().Foreground(lipgloss.Color(colour))
	}
	// Rendering through lipgloss costs microseconds a cell, and a screen has a thousand cells: keep what it puts around the text.
	for role, style := range styles {
		before, after, found := strings.Cut(style.Render("x"), "x")
		if found {
			t.paint[role] = [2]string{before, after}
		}
	}
	return t
}

// Paint returns s as the role looks. s must not be painted already: roles do not nest.
func (t *Theme) Paint(role Role, s string) string {
	p := &t.paint[role]
	if p[0] == "" || s == "" {
		return s
	}
	return p[0] + s + p[1]
}

// Gauge draws used of total as a bar of the given width, empty when total is 0. A use above nothing shows at least one full cell, and
// only a full use shows no empty one.
func (t *Theme) Gauge(used, total uint64, width int) string {
	if total == 0 || width <= 0 {
		return ""
	}
	full := width
	if used < total {
		full = int(float64(used) / float64(total) * float64(width))
		full = min(full, width-1)
		if used > 0 && full == 0 {
			full = 1
		}
	}
	return strings.Repeat(t.Full, full) + strings.Repeat(t.Empty, width-full)
}
