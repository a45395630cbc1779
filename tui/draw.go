package tui

import (
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// The smallest terminal in which screens are drawn.
const (
	leastWidth  = 40
	leastHeight = 10
)

// View implements tea.Model. It is called after every message, so it draws only when something changed.
func (a *App) View() string {
	if a.dirty {
		a.drawn = strings.Join(a.draw(), "\n")
		a.dirty = false
	}
	return a.drawn
}

// draw returns height lines of width cells: header, tabs, perhaps a banner, the body, the command line, the keys.
func (a *App) draw() []string {
	t := a.theme
	if a.width < leastWidth || a.height < leastHeight {
		return a.tooSmall()
	}
	lines := make([]string, 0, a.height)
	lines = append(lines, a.header(), a.tabs())
	for _, b := range a.banner() {
		lines = append(lines, t.Paint(theme.Alarm, t.Fit(" "+b, a.width)))
	}
	body := a.body()
	if a.dialog != nil {
		body = a.dialog.over(t, body, a.width)
	}
	lines = append(lines, body...)
	return append(lines, a.foot()...)
}

// foot is the command line and the keys. An outcome that is longer than a line takes the place of both until the next key.
func (a *App) foot() []string {
	text := a.theme.Clean(a.notice.text)
	if a.prompt != nil || a.dialog != nil || theme.Width(text) <= a.width-2 {
		return []string{a.commandLine(), a.keyLine()}
	}
	lines := theme.Wrap(text, a.width-2)
	if len(lines) > 2 {
		lines = []string{lines[0], lines[1] + " " + a.theme.Ellipsis}
	}
	for i, line := range lines {
		lines[i] = a.theme.Paint(a.notice.role, a.theme.Fit(" "+line, a.width))
	}
	return lines
}

func (a *App) tooSmall() []string {
	lines := make([]string, max(a.height, 0))
	for i := range lines {
		lines[i] = theme.Spaces(a.width)
	}
	if len(lines) > 0 {
		lines[0] = a.theme.Fit("terminal too small: 40x10 or more", a.width)
	}
	return lines
}

// bodyHeight is what header, tabs, banner, command line and keys leave.
func (a *App) bodyHeight() int {
	return max(a.height-4-len(a.banner()), 0)
}

func (a *App) body() []string {
	if a.last != nil {
		return a.screen().lines()
	}
	lines := make([]string, a.bodyHeight())
	for i := range lines {
		lines[i] = theme.Spaces(a.width)
	}
	if len(lines) > 1 {
		lines[1] = a.theme.Fit("  connecting to "+a.theme.Clean(a.conn.Addr)+" "+a.theme.Ellipsis, a.width)
	}
	return lines
}

// part is a piece of a line that may be left out; the highest rank goes first.
type part struct {
	text string
	rank int
}

// fitParts leaves out parts until the rest fits the width.
func fitParts(parts []part, width int, gap int) []part {
	for {
		used, worst := -gap, -1
		for i, p := range parts {
			used += theme.Width(p.text) + gap
			if p.rank > 0 && (worst < 0 || p.rank > parts[worst].rank) {
				worst = i
			}
		}
		if used <= width || worst < 0 {
			return parts
		}
		parts = append(parts[:worst:worst], parts[worst+1:]...)
	}
}

// header tells how the cluster is, in the one line that is always there.
func (a *App) header() string {
	t, s := a.theme, a.snapshot()
	st := s.Status
	name := st.GetClusterName()
	if name == "" {
		name = st.GetClusterId()
	}
	parts := []part{{text: "Cellvisor", rank: 5}, {text: t.Truncate(t.Clean(name), 20), rank: 6}}
	if a.last != nil {
		quorum := t.Live + " quorum"
		if !st.GetQuorum() {
			quorum = t.Dead + " NO QUORUM"
		}
		leader := st.GetLeader()
		if leader == "" {
			leader = "none"
		}
		parts = append(parts,
			part{text: "epoch " + number(st.GetEpoch()), rank: 2},
			part{text: quorum},
			part{text: "leader " + t.Clean(leader), rank: 3},
			part{text: "servers " + ratio(st.GetServersLive(), st.GetServersTotal()) + " live", rank: 1},
			part{text: "cells " + ratio(st.GetCellsLive(), st.GetCellsTotal()), rank: 7},
			part{text: "VMs " + ratio(st.GetVmsRunning(), st.GetVmsTotal()) + " running", rank: 4},
			part{text: "via " + t.Clean(st.GetServer()), rank: 8},
			part{text: t.Clean(st.GetVersion()), rank: 9},
		)
	}
	if a.readOnly {
		parts = append(parts, part{text: "READ-ONLY"})
	}
	parts = fitParts(parts, a.width-2, 3)
	texts := make([]string, 0, len(parts))
	for _, p := range parts {
		if p.text != "" {
			texts = append(texts, p.text)
		}
	}
	return t.Paint(theme.Bar, t.Fit(" "+strings.Join(texts, " "+t.Wall+" "), a.width))
}

// shortTabs is what a terminal of 80 columns has room for.
const shortTabs = " 1 2cells 3servers 4VMs 5events 6recov 7ops 8load 9drills"

// tabs shows the first-level screens by their keys, and the path to the present one, which gives up its beginning first.
func (a *App) tabs() string {
	t := a.theme
	tabs := " 1 overview  2 cells  3 servers  4 VMs  5 events  6 recoveries  7 operations  8 load  9 drills"
	path := make([]string, len(a.stack))
	for i, s := range a.stack {
		path[i] = t.Clean(s.crumb)
	}
	for _, lead := range []string{tabs, shortTabs, ""} {
		room := a.width - theme.Width(lead) - 3
		for from := range path {
			if from > 0 && lead == tabs {
				break // the path is worth more than long names
			}
			trail := strings.Join(path[from:], " "+t.Crumb+" ")
			if from > 0 {
				trail = t.Ellipsis + " " + t.Crumb + " " + trail
			}
			if w := theme.Width(trail); w <= room {
				return t.Paint(theme.Dim, t.Fit(lead, a.width-w-1)) + t.Paint(theme.Accent, trail) + " "
			}
		}
	}
	return " " + t.Paint(theme.Accent, t.Fit(path[len(path)-1], a.width-1))
}

// lostAfter is the number of failed polls after which the cluster counts as lost: the first one only means going to another server.
const lostAfter = 2

// banner tells of trouble with the whole cluster in at most two lines; none if there is none.
func (a *App) banner() []string {
	t := a.theme
	if a.conn.Err != nil && (a.conn.Attempt >= lostAfter || a.last == nil) {
		text := t.Alarm + " CLUSTER LOST " + t.Dot + " try " + number(a.conn.Attempt)
		if left := a.conn.RetryAt.Sub(a.now()); left >= time.Second {
			text += ", next in " + span(left)
		}
		text += " (r: now)"
		if a.last != nil {
			text += " " + t.Dot + " shown as of " + a.last.At.Local().Format("15:04:05")
		}
		return []string{text, "  " + t.Clean(api.Message(a.conn.Err))}
	}
	if a.last == nil {
		return nil
	}
	st := a.last.Status
	if !st.GetQuorum() {
		return []string{t.Alarm + " NO QUORUM " + t.Dot + " " + t.Clean(st.GetServer()) + " answers but cannot agree with the others",
			"  What is shown may be old, and nothing can be changed."}
	}
	if a.last.Stale != nil {
		return []string{t.Alarm + " STALE " + t.Dot + " " + t.Clean(api.Message(a.last.Stale))}
	}
	return nil
}

// commandLine is the prompt, the outcome of the last command, or the CLI line that shows the same as this screen.
func (a *App) commandLine() string {
	t := a.theme
	if a.prompt != nil {
		return a.prompt.line(t, a.width)
	}
	if a.notice.text != "" {
		return t.Paint(a.notice.role, t.Fit(" "+t.Clean(a.notice.text), a.width))
	}
	return t.Paint(theme.Dim, t.Fit(" "+t.Prompt+" cellvisor "+t.Clean(a.screen().command), a.width))
}

// keyLine shows the keys that mean something here, those of the thing under the cursor first.
func (a *App) keyLine() string {
	t := a.theme
	var parts []part
	add := func(keys, desc string, rank int) {
		parts = append(parts, part{text: keys + " " + desc, rank: rank})
	}
	switch {
	case a.dialog != nil:
		add("y", "yes, do it", 0)
		add("n", "no", 0)
	case a.prompt != nil:
		add("enter", "run", 0)
		add("esc", "drop", 0)
		if a.prompt.complete != nil {
			add("tab", "complete", 1)
			add("up", "earlier lines", 2)
		}
	default:
		for _, act := range actions {
			if act.rank < 0 || act.acts && a.readOnly || a.lineOf(act) == "" {
				continue
			}
			add(act.key.Help().Key, act.key.Help().Desc, act.rank)
		}
		if p, ok := a.screen().focused().(*canvas); ok {
			for _, b := range p.bindings {
				add(b.Help().Key, b.Help().Desc, 4)
			}
		}
		if p, ok := a.screen().focused().(*pager); ok {
			add("f", followWord(p.follow), 3)
			add("w", "wrap", 4)
		}
		add("/", "filter", 5)
		add(":", "command", 4)
		add("tab", "pane", 9)
		add("esc", "back", 7)
		add("?", "help", 0)
	}
	parts = fitParts(parts, a.width-2, 2)
	line, used := " ", 1
	for i, p := range parts {
		if i > 0 {
			line += "  "
			used += 2
		}
		keys, desc, _ := strings.Cut(p.text, " ")
		line += t.Paint(theme.Accent, keys) + " " + t.Paint(theme.Dim, desc)
		used += theme.Width(p.text)
	}
	return line + theme.Spaces(a.width-used)
}

func followWord(on bool) string {
	if on {
		return "stop following"
	}
	return "follow"
}
