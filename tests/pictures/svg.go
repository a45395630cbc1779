package main

import (
	"fmt"
	"html"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Size of a cell in the picture, in pixels.
const (
	cellWidth, cellHeight = 8.0, 17.0
	margin                = 10.0
)

// palette is the sixteen colours of a terminal.
var palette = []string{"#1e1e24", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d0d0d0",
	"#7f848e", "#ff7b85", "#b5e890", "#ffd68a", "#8cc8ff", "#dd9cf0", "#7fd7e0", "#ffffff"}

// look is how a run of text is painted: SGR attributes.
type look struct {
	fg, bg               int // -1: the terminal's own
	bold, faint, reverse bool
}

var plainLook = look{fg: -1, bg: -1}

// sgr takes the parameters of one escape sequence over.
func (l look) sgr(params string) look {
	for _, p := range strings.Split(params, ";") {
		n, _ := strconv.Atoi(p)
		switch {
		case n == 0:
			l = plainLook
		case n == 1:
			l.bold = true
		case n == 2:
			l.faint = true
		case n == 7:
			l.reverse = true
		case n == 22:
			l.bold, l.faint = false, false
		case n == 27:
			l.reverse = false
		case n >= 30 && n <= 37:
			l.fg = n - 30
		case n == 39:
			l.fg = -1
		case n >= 40 && n <= 47:
			l.bg = n - 40
		case n == 49:
			l.bg = -1
		case n >= 90 && n <= 97:
			l.fg = n - 90 + 8
		case n >= 100 && n <= 107:
			l.bg = n - 100 + 8
		}
	}
	return l
}

func (l look) colours() (fg, bg string) {
	fg, bg = palette[7], ""
	if l.fg >= 0 {
		fg = palette[l.fg]
	}
	if l.bg >= 0 {
		bg = palette[l.bg]
	}
	if l.reverse {
		if bg == "" {
			bg = palette[0]
		}
		fg, bg = bg, fg
	}
	return fg, bg
}

// draw makes an SVG of a screen as tmux captures it: lines with escape sequences for colours. Every run of text is pinned to its cells, so that
// the font does not matter.
func draw(screen string) string {
	var b strings.Builder
	width, height := columns*cellWidth+2*margin, rows*cellHeight+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="6" fill="%s"/>`+"\n", palette[0])
	now := plainLook
	for y, line := range strings.Split(strings.TrimRight(screen, "\n"), "\n") {
		x := 0
		for line != "" {
			if rest, is := strings.CutPrefix(line, "\x1b["); is {
				params, after, _ := strings.Cut(rest, "m")
				now, line = now.sgr(params), after
				continue
			}
			text := line
			if i := strings.IndexByte(line, 0x1b); i >= 0 {
				text = line[:i]
			}
			line = line[len(text):]
			paint(&b, now, text, x, y)
			x += utf8.RuneCountInString(text)
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func paint(b *strings.Builder, l look, text string, x, y int) {
	fg, bg := l.colours()
	cells := utf8.RuneCountInString(text)
	left, top := margin+float64(x)*cellWidth, margin+float64(y)*cellHeight
	if bg != "" {
		fmt.Fprintf(b, `<rect x="%g" y="%g" width="%g" height="%g" fill="%s"/>`+"\n", left, top, float64(cells)*cellWidth, cellHeight, bg)
	}
	if strings.TrimSpace(text) == "" {
		return
	}
	style := ""
	if l.bold {
		style += ` font-weight="bold"`
	}
	if l.faint {
		style += ` opacity="0.6"`
	}
	fmt.Fprintf(b, `<text x="%g" y="%g" textLength="%g" lengthAdjust="spacingAndGlyphs" xml:space="preserve" fill="%s"%s>%s</text>`+"\n",
		left, top+cellHeight-4, float64(cells)*cellWidth, fg, style, html.EscapeString(text))
}
