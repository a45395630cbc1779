package tui

import (
	"strings"

	"github.com/charmbracelet/bubbles/key"
)

func bind(help, desc string, keys ...string) key.Binding {
	return key.NewBinding(key.WithKeys(keys...), key.WithHelp(help, desc))
}

// moves are the keys of everything that scrolls, vi's and the arrows.
type moves struct{ up, down, pageUp, pageDown, first, last key.Binding }

var moveKeys = moves{
	up:       bind("k/up", "up", "up", "k"),
	down:     bind("j/down", "down", "down", "j"),
	pageUp:   bind("pgup", "page up", "pgup", "ctrl+b", "ctrl+u"),
	pageDown: bind("pgdn", "page down", "pgdown", "ctrl+f", "ctrl+d"),
	first:    bind("g/home", "first", "home", "g"),
	last:     bind("G/end", "last", "end", "G"),
}

func (m moves) all() []key.Binding {
	return []key.Binding{m.up, m.down, m.pageUp, m.pageDown, m.first, m.last}
}

var sortKeys = struct{ next, reverse key.Binding }{
	next:    bind("S", "sort by the next column", "S"),
	reverse: bind("R", "reverse the order", "R"),
}

var pagerKeys = struct{ left, right, follow, wrap key.Binding }{
	left:   bind("h/left", "scroll left", "left", "h"),
	right:  bind("l/right", "scroll right", "right", "l"),
	follow: bind("f", "follow the end", "f"),
	wrap:   bind("w", "wrap long lines", "w"),
}

// globalKeys work on every screen.
var globalKeys = struct {
	quit, back, leave, help, command, filter, nextPane, prevPane, refresh, suspend, redraw key.Binding
}{
	quit:     bind("ctrl+c", "quit", "ctrl+c"),
	leave:    bind("q", "back; on the first screen quit", "q"),
	back:     bind("esc", "clear the filter, or back", "esc"),
	help:     bind("?", "help", "?"),
	command:  bind(":", "command", ":"),
	filter:   bind("/", "filter", "/"),
	nextPane: bind("tab", "next pane", "tab"),
	prevPane: bind("shift+tab", "previous pane", "shift+tab"),
	refresh:  bind("r", "refresh now, or retry", "r"),
	suspend:  bind("ctrl+z", "suspend", "ctrl+z"),
	redraw:   bind("ctrl+l", "redraw", "ctrl+l"),
}

// action is a key that means a line of the CLI's grammar for what the cursor is on.
type action struct {
	key key.Binding
	// line makes the command line for a target; "" where the key does not apply.
	line func(*App, target) string
	// acts marks what changes the cluster: not offered when reading only.
	acts bool
	// rank orders what the line of keys leaves out on a narrow terminal: the highest goes first, -1 is never there.
	rank int
}

// actions are tried in order.
var actions = []action{
	{key: bind("enter", "show", "enter"), rank: 1, line: showLine},
	{key: bind("c", "console", "c"), rank: 5, line: vmLine("vm console ")},
	{key: bind("o", "output", "o"), rank: 6, line: vmLine("vm output ")},
	{key: bind("e", "events", "e"), rank: 8, line: func(_ *App, t target) string {
		if t.kind != aCell && t.kind != aServer && t.kind != aVM {
			return ""
		}
		return "events /" + t.name
	}},
	{key: bind("t", "time line", "t"), rank: 6, line: func(_ *App, t target) string { return lineFor(t, aServer, "server slices ") }},
	{key: bind("m", "pages", "m"), rank: 7, line: func(_ *App, t target) string { return lineFor(t, aVM, "vm pages ") }},
	{key: bind("C", "cordon or uncordon", "C"), rank: 4, acts: true, line: func(a *App, t target) string {
		switch {
		case t.kind == aCell && a.snapshot().Cell(t.name).GetCordoned():
			return "cell uncordon " + t.name
		case t.kind == aServer && a.snapshot().Server(t.name).GetCordoned():
			return "server uncordon " + t.name
		}
		return placeLine(t, " cordon ")
	}},
	{key: bind("D", "drain", "D"), rank: 3, acts: true, line: func(_ *App, t target) string { return placeLine(t, " drain ") }},
	{key: bind("U", "restore", "U"), rank: 7, acts: true, line: func(_ *App, t target) string { return placeLine(t, " restore ") }},
	{key: bind("z", "safe to stop?", "z"), rank: 8, line: func(_ *App, t target) string { return placeLine(t, " safe-to-stop ") }},
	{key: bind("M", "migrate", "M"), rank: 4, acts: true, line: func(a *App, t target) string {
		if a.snapshot().VM(t.name).GetState().Ended() {
			return ""
		}
		return lineFor(t, aVM, ":vm migrate ", " --to ")
	}},
	{key: bind("P", "protect", "P"), rank: 8, acts: true, line: func(a *App, t target) string {
		if a.snapshot().VM(t.name).GetState().Ended() {
			return ""
		}
		return lineFor(t, aVM, ":vm protect ", " replica")
	}},
	{key: bind("X", "cancel", "X"), rank: 3, acts: true, line: func(_ *App, t target) string { return lineFor(t, anOperation, "op cancel ") }},
	{key: bind("i", "interrupt", "i"), rank: 2, acts: true, line: func(_ *App, t target) string { return lineFor(t, aRun, "interrupt ") }},
	{key: bind("s", "stop", "s"), rank: 2, acts: true, line: func(a *App, t target) string {
		if t.kind != aVM || a.snapshot().VM(t.name).GetState().Ended() {
			return ""
		}
		return "vm stop " + t.name
	}},
	{key: bind("x", "remove", "x"), rank: 3, acts: true, line: func(a *App, t target) string {
		if t.kind != aVM {
			return ""
		}
		if vm := a.snapshot().VM(t.name); vm != nil && !vm.GetState().Ended() {
			return "vm rm " + t.name + " --force"
		}
		return "vm rm " + t.name
	}},
	{key: bind("1", "overview", "1"), rank: -1, line: always("status")},
	{key: bind("2", "cells", "2"), rank: -1, line: always("cell ls")},
	{key: bind("3", "servers", "3"), rank: -1, line: always("server ls")},
	{key: bind("4", "VMs", "4"), rank: -1, line: always("vm ls")},
	{key: bind("5", "events", "5"), rank: -1, line: always("events")},
	{key: bind("6", "recoveries", "6"), rank: -1, line: always("recoveries")},
	{key: bind("7", "operations", "7"), rank: -1, line: always("op ls")},
	{key: bind("8", "load", "8"), rank: -1, line: always("cell load")},
	{key: bind("9", "drills", "9"), rank: -1, line: always("drill ls")},
}

// lineFor puts words around the name of a target of that kind; "" for others. A line that begins with a colon is put into the prompt, to be
// completed.
func lineFor(t target, k kind, before string, after ...string) string {
	if t.kind != k {
		return ""
	}
	return before + t.name + strings.Join(after, "")
}

// placeLine is a verb on a cell or a server.
func placeLine(t target, verb string) string {
	if t.kind != aCell && t.kind != aServer {
		return ""
	}
	return kindWords[t.kind] + verb + t.name
}

func vmLine(prefix string) func(*App, target) string {
	return func(_ *App, t target) string {
		if t.kind != aVM {
			return ""
		}
		return prefix + t.name
	}
}

func always(line string) func(*App, target) string {
	return func(*App, target) string { return line }
}

// showLine shows a thing; a drill is run.
func showLine(_ *App, t target) string {
	switch t.kind {
	case aCell:
		return "cell show " + t.name
	case aServer:
		return "server show " + t.name
	case aVM:
		return "vm show " + t.name
	case anOperation:
		return "op show " + t.name
	case aRun:
		return "run " + t.name
	case aDrill:
		return ":drill run " + t.name + " --up"
	}
	return ""
}
