package tui

import (
	"bytes"
	"strings"

	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/ansi"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// Bounds of what a pager keeps.
const (
	pagerLines     = 10_000
	pagerLineBytes = 4096
)

// pager is a pane of text that grows at its end, such as a guest's console. What a guest writes is hostile until proven otherwise: escape
// sequences are taken out, control characters shown as dots.
type pager struct {
	theme *theme.Theme
	name  string
	// source, if set, gives the whole text with each snapshot.
	source func(*feed.Snapshot) string
	whole  string

	// kept holds cleaned lines, the last one possibly unfinished; raw is that line's text as it came.
	kept    []string
	raw     []byte
	partial bool
	// dropped counts the lines no longer kept.
	dropped uint64
	// note follows the title: that the VM has ended, or trouble with the stream.
	note string

	filterText string
	// shown are the lines that pass the filter, cut or wrapped to the width.
	shown []string
	stale bool

	top, left     int
	follow, wrap  bool
	width, height int
}

func newPager(t *theme.Theme, name string) *pager {
	return &pager{theme: t, name: name, follow: true, stale: true}
}

func (p *pager) title() string {
	title := p.name
	if p.filterText != "" {
		title += " /" + p.filterText
	}
	if p.note != "" {
		title += " " + p.theme.Dot + " " + p.note
	}
	if p.dropped > 0 {
		title += " " + p.theme.Dot + " older lines are left out"
	}
	return title
}

// size is the number of lines kept.
func (p *pager) size() int { return len(p.kept) }

func (p *pager) setSize(width, height int) {
	if width != p.width {
		p.stale = true
	}
	p.width, p.height = width, height
}

func (p *pager) update(s *feed.Snapshot) {
	if p.source == nil {
		return
	}
	text := p.source(s)
	if text == p.whole {
		return
	}
	p.whole = text
	p.clear()
	p.follow = false
	p.append([]byte(text))
}

func (p *pager) clear() {
	p.kept, p.raw, p.partial, p.dropped, p.top, p.stale = nil, nil, false, 0, 0, true
}

// append adds bytes as they came from a guest.
func (p *pager) append(data []byte) {
	for len(data) > 0 {
		line, rest, ended := bytes.Cut(data, []byte{'\n'})
		if room := pagerLineBytes - len(p.raw); len(line) > room {
			line, rest, ended = data[:room], data[room:], true
		}
		p.raw = append(p.raw, line...)
		p.setLast(p.clean(p.raw))
		p.partial = !ended
		if ended {
			p.raw = p.raw[:0]
		}
		data = rest
	}
	if over := len(p.kept) - pagerLines; over > 0 {
		p.kept = append(p.kept[:0], p.kept[over:]...)
		p.dropped += uint64(over)
		p.top = max(p.top-over, 0)
	}
	p.stale = true
}

// setLast replaces the unfinished line, or begins one.
func (p *pager) setLast(line string) {
	if p.partial {
		p.kept[len(p.kept)-1] = line
		return
	}
	p.kept = append(p.kept, line)
}

// clean makes a line harmless. A carriage return within it starts the line anew, as it does on a terminal.
func (p *pager) clean(raw []byte) string {
	raw = bytes.TrimRight(raw, "\r")
	if i := bytes.LastIndexByte(raw, '\r'); i >= 0 {
		raw = raw[i+1:]
	}
	text := string(raw)
	if bytes.IndexByte(raw, 0x1b) >= 0 {
		text = ansi.Strip(text)
	}
	return p.theme.Clean(strings.ReplaceAll(text, "\t", "    "))
}

// refresh makes the shown lines anew after something changed.
func (p *pager) refresh() {
	if p.stale {
		p.stale = false
		p.shown = p.shown[:0]
		lower := strings.ToLower(p.filterText)
		for _, line := range p.kept {
			if lower != "" && !strings.Contains(strings.ToLower(line), lower) {
				continue
			}
			if p.wrap {
				p.shown = append(p.shown, theme.Wrap(line, p.width)...)
			} else {
				p.shown = append(p.shown, line)
			}
		}
	}
	last := max(len(p.shown)-p.height, 0)
	if p.follow {
		p.top = last
	}
	p.top = max(min(p.top, last), 0)
}

func (p *pager) handle(k tea.KeyMsg) bool {
	p.refresh()
	move := func(lines int) {
		p.top += lines
		p.follow = false
	}
	switch {
	case key.Matches(k, moveKeys.up):
		move(-1)
	case key.Matches(k, moveKeys.down):
		move(1)
	case key.Matches(k, moveKeys.pageUp):
		move(-max(p.height, 1))
	case key.Matches(k, moveKeys.pageDown):
		move(max(p.height, 1))
	case key.Matches(k, moveKeys.first):
		move(-len(p.shown))
	case key.Matches(k, moveKeys.last):
		p.follow = true
	case key.Matches(k, pagerKeys.left):
		p.left = max(p.left-8, 0)
	case key.Matches(k, pagerKeys.right):
		p.left = min(p.left+8, pagerLineBytes)
	case key.Matches(k, pagerKeys.follow):
		p.follow = !p.follow
	case key.Matches(k, pagerKeys.wrap):
		p.wrap, p.left, p.stale = !p.wrap, 0, true
	default:
		return false
	}
	p.refresh()
	return true
}

func (p *pager) keys() []key.Binding {
	return append(moveKeys.all(), pagerKeys.left, pagerKeys.right, pagerKeys.follow, pagerKeys.wrap)
}

func (p *pager) focusable() bool  { return true }
func (p *pager) current() target  { return target{} }
func (p *pager) filtered() string { return p.filterText }

func (p *pager) filter(text string) {
	p.filterText = strings.TrimSpace(text)
	p.stale = true
}

func (p *pager) lines(bool) []string {
	p.refresh()
	lines := make([]string, 0, p.height)
	for i := p.top; i < len(p.shown) && len(lines) < p.height; i++ {
		line := p.shown[i]
		if p.left > 0 {
			line = theme.Skip(line, p.left)
		}
		lines = append(lines, p.theme.Fit(line, p.width))
	}
	for len(lines) < p.height {
		lines = append(lines, theme.Spaces(p.width))
	}
	return lines
}
