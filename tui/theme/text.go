package theme

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/mattn/go-runewidth"
)

// widths ignores the locale: an ambiguous rune is one cell wide, as the glyphs above are taken to be.
var widths = &runewidth.Condition{}

// printable says whether s is only visible US-ASCII, the common case, which needs neither cleaning nor measuring.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// Width is the number of terminal cells that cleaned text takes.
func Width(s string) int {
	if printable(s) {
		return len(s)
	}
	return widths.StringWidth(s)
}

// Clean makes text from elsewhere harmless: control characters, invalid UTF-8 and invisible format characters (which could reorder or
// hide text) become a dot each, tabs a space. With ASCII set all other characters beyond US-ASCII become a question mark.
func (t *Theme) Clean(s string) string {
	if printable(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\t' || r == '\n':
			b.WriteByte(' ')
		case r == utf8.RuneError && size <= 1, !unicode.IsPrint(r), widths.RuneWidth(r) == 0:
			b.WriteString(t.Dot)
		case t.ASCII && r > 0x7e:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
		i += size
	}
	return t.countable(b.String())
}

// countable returns s if its width is the sum of its runes' widths. Where runes join to one character (combining marks, flags, skin tones),
// terminals and libraries disagree on how wide that is: then all beyond US-ASCII becomes dots.
func (t *Theme) countable(s string) string {
	sum := 0
	for _, r := range s {
		sum += widths.RuneWidth(r)
	}
	if ansi.StringWidth(s) == sum && widths.StringWidth(s) == sum && !strings.ContainsFunc(s, joins) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r <= 0x7e {
			b.WriteRune(r)
		} else {
			b.WriteString(t.Dot)
		}
	}
	return b.String()
}

// joins tells whether a rune may join the one before it.
func joins(r rune) bool {
	return unicode.Is(unicode.M, r) || r >= 0x1f1e6 && r <= 0x1f1ff || r >= 0x1f3fb && r <= 0x1f3ff || r >= 0x1100 && r <= 0x11ff || r == 0xff9e || r == 0xff9f
}

// Fit pads or truncates cleaned text to exactly width cells. What is cut off is marked by an ellipsis.
func (t *Theme) Fit(s string, width int) string {
	if width <= 0 {
		return ""
	}
	w := Width(s)
	if w == width {
		return s
	}
	if w < width {
		return s + Spaces(width-w)
	}
	s = t.Truncate(s, width)
	return s + Spaces(width-Width(s))
}

// FitRight is Fit with the padding at the left.
func (t *Theme) FitRight(s string, width int) string {
	if w := Width(s); w < width {
		return Spaces(width-w) + s
	}
	return t.Fit(s, width)
}

// Truncate cuts cleaned text to at most width cells, the last of which is an ellipsis if anything was cut.
func (t *Theme) Truncate(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if Width(s) <= width {
		return s
	}
	room, end := width-1, 0
	for i, r := range s {
		w := widths.RuneWidth(r)
		if w > room {
			break
		}
		room -= w
		end = i + utf8.RuneLen(r)
	}
	return s[:end] + t.Ellipsis
}

// Skip drops the first cells cells of cleaned text. A wide rune that is cut in half goes altogether and leaves a space.
func Skip(s string, cells int) string {
	for i, r := range s {
		if cells <= 0 {
			return Spaces(-cells) + s[i:]
		}
		cells -= widths.RuneWidth(r)
	}
	return Spaces(-cells)
}

const blank = "                                                                                                                        "

// Spaces returns n spaces.
func Spaces(n int) string {
	if n <= 0 {
		return ""
	}
	if n <= len(blank) {
		return blank[:n]
	}
	return strings.Repeat(" ", n)
}

// Wrap breaks cleaned text into lines of at most width cells, at spaces where possible.
func Wrap(s string, width int) []string {
	if width <= 0 {
		return nil
	}
	var lines []string
	for Width(s) > width {
		cut, space, used := 0, 0, 0
		for i, r := range s {
			w := widths.RuneWidth(r)
			if used+w > width {
				break
			}
			if r == ' ' {
				space = i
			}
			used += w
			cut = i + utf8.RuneLen(r)
		}
		if cut == 0 {
			// One rune wider than the line: nothing sensible can be shown.
			return append(lines, Spaces(width))
		}
		if cut < len(s) && s[cut] == ' ' {
			space = cut
		}
		if space > 0 {
			lines = append(lines, s[:space])
			s = strings.TrimLeft(s[space:], " ")
			continue
		}
		lines = append(lines, s[:cut])
		s = s[cut:]
	}
	return append(lines, s)
}
