package tui

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// drillInfo is an entry of `drill ls -o json`.
type drillInfo struct {
	Name     string `json:"name"`
	Cells    int    `json:"cells"`
	Servers  int    `json:"servers_per_cell"`
	MaxCells int    `json:"max_cells"`
	About    string `json:"about"`
}

// drillsMsg brings the ready drills.
type drillsMsg struct {
	list []drillInfo
	err  error
}

// drillsPatience bounds the wait for the list.
const drillsPatience = 10 * time.Second

func (a *App) listDrills() tea.Cmd {
	program, outer := a.program, a.ctx
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(outer, drillsPatience)
		defer cancel()
		var out bytes.Buffer
		m := drillsMsg{err: program(ctx, []string{"drill", "ls", "-o", "json"}, &out)}
		if m.err == nil {
			m.err = json.Unmarshal(out.Bytes(), &m.list)
		}
		return m
	}
}

func (a *App) onDrills(m drillsMsg) {
	if m.err != nil {
		a.say(theme.Bad, "the drills cannot be listed: "+m.err.Error())
	}
	a.drills = m.list
	a.screen().update(a.snapshot())
}

var drillColumns = []table.Column{
	{Title: "DRILL", Min: 8},
	{Title: "NEEDS", Rank: 2},
	{Title: "BREAKS", Rank: 1},
	{Title: "ABOUT", Min: 20, Grow: true},
}

func drillRows(t *theme.Theme, list []drillInfo) []table.Row {
	rows := make([]table.Row, 0, len(list))
	for _, d := range list {
		rows = append(rows, table.Row{Key: target{aDrill, d.Name}.key(), Cells: []table.Cell{
			{Text: t.Clean(d.Name), Role: theme.Strong}, {Text: fmt.Sprintf("%dx%d", d.Cells, d.Servers)},
			{Text: plural(d.MaxCells, "cell", "cells")}, {Text: t.Clean(d.About)},
		}})
	}
	return rows
}

var runColumns = []table.Column{
	{Title: "BEGAN"},
	{Title: "LINE", Min: 16, Max: 60},
	{Title: "STATE", Min: 20, Grow: true},
}

func (a *App) runRows() []table.Row {
	t := a.theme
	rows := make([]table.Row, 0, len(a.processes))
	for i, p := range a.processes {
		text, done, err := p.state()
		m := mark{t.Running, text, theme.Accent}
		switch {
		case err != nil:
			m = mark{t.Fail, text, theme.Bad}
		case done:
			m = mark{t.Done, text, theme.Good}
		}
		m.word = t.Clean(m.word)
		rows = append(rows, table.Row{Key: target{aRun, number(i)}.key(), Cells: []table.Cell{
			{Text: p.began.Local().Format("15:04:05"), Role: theme.Dim}, {Text: t.Clean(p.line)}, m.cell(),
		}})
	}
	return rows
}

// newDrills lists the ready drills and what this console has run.
func newDrills(a *App) *screen {
	t := a.theme
	list := newTablePane(t, "Drills", drillColumns, "asking for the drills "+t.Ellipsis, func(*feed.Snapshot) []table.Row { return drillRows(t, a.drills) })
	runs := newTablePane(t, "Runs of this console", runColumns, "none yet; enter on a drill runs it", func(*feed.Snapshot) []table.Row { return a.runRows() })
	runs.tail = true
	s := &screen{theme: t, crumb: "drills", command: "drill ls", panes: []pane{list, runs}}
	s.arrange = func(_ *screen, width, height int) []rect {
		return stack(width, height, -1, min(max(runs.table.Total()+2, 3), height/2))
	}
	s.opened = func(a *App) tea.Cmd { return a.listDrills() }
	return s
}

// askDrill says what a drill breaks, and asks.
func askDrill(a *App, c call) tea.Cmd {
	name := c.args[0]
	args := []string{"drill", "run", name}
	for _, f := range []string{"seed", "patience", "html", "junit"} {
		if v, has := c.flags[f]; has {
			args = append(args, "--"+f, v)
		}
	}
	if _, has := c.flags["up"]; has {
		args = append(args, "--up")
	}
	plan := []string{"It injects real faults: processes of servers and workers are stopped and killed."}
	for _, d := range a.drills {
		if d.Name == name {
			plan = append(plan, fmt.Sprintf("%s. It breaks at most %s at a time.", strings.TrimSuffix(d.About, "."), plural(d.MaxCells, "cell", "cells")))
		}
	}
	if _, has := c.flags["up"]; has {
		plan = append(plan, "It runs on a cluster of its own, which is taken down at the end: this cluster is not touched.")
	} else {
		plan = append(plan, "It runs on THIS cluster. VMs without protection that depend on what it breaks are lost.")
	}
	plan = append(plan, "Everything is healed at its end, when it fails, and when it is interrupted.")
	a.ask("Run drill "+name+"?", quoteWords(args), plan, func() tea.Cmd { return a.begin(args) })
	return nil
}

// interrupt asks whether to end a run.
func interrupt(a *App, c call) tea.Cmd {
	n, err := strconv.Atoi(c.args[0])
	if err != nil || n < 0 || n >= len(a.processes) {
		a.say(theme.Bad, fmt.Sprintf("this console has no run %q", c.args[0]))
		return nil
	}
	p := a.processes[n]
	a.ask("Interrupt it?", p.line, []string{"It is asked to end, as by Ctrl-C. A drill heals what it broke first."}, func() tea.Cmd {
		p.stop()
		a.say(theme.Plain, "asked to end: "+p.line)
		return nil
	})
	return nil
}

// showRun opens the output of a run once more.
func (a *App) showRun(i int) tea.Cmd {
	if i < 0 || i >= len(a.processes) {
		return nil
	}
	return a.push(newProcessScreen(a, a.processes[i]))
}
