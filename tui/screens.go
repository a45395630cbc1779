package tui

import (
	"slices"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

const (
	noVMs    = "no VMs; start one with :vm run NAME --payload BUILTIN"
	noEvents = "no events yet"
)

// newOverview shows machines, VMs and the newest events: beside each other where the terminal is wide, events only where it is high.
func newOverview(a *App) *screen {
	t := a.theme
	machines := newTablePane(t, "Cells and servers", machineColumns, "no cells", func(s *feed.Snapshot) []table.Row { return treeRows(t, s) })
	vms := newTablePane(t, "VMs", vmColumns, noVMs, func(s *feed.Snapshot) []table.Row { return vmRows(t, s, nil) })
	events := newEventsPane(t, nil)
	return &screen{
		theme: t, crumb: "overview", command: "status", focus: 1,
		panes: []pane{machines, vms, events},
		arrange: func(_ *screen, width, height int) []rect {
			return arrangeOverview(width, height, machines.table.Total(), vms.table.Total())
		},
	}
}

// Below these sizes the overview stacks its panes and leaves out the events.
const (
	overviewWideCells = 160
	overviewHighLines = 30
)

func arrangeOverview(width, height, machines, vms int) []rect {
	events := 0
	if height >= overviewHighLines {
		events = height / 4
	}
	top := height - events
	if width >= overviewWideCells {
		left := width * 2 / 5
		// One column between the two is the wall.
		return []rect{{0, 0, left, top}, {left + 1, 0, width - left - 1, top}, {0, top, width, events}}
	}
	// The machines get what they need, but never more than leaves the VMs half of the room or what they need.
	need := machines + 2
	high := min(need, max(top/2, top-vms-2))
	return []rect{{0, 0, width, high}, {0, high, width, top - high}, {0, top, width, events}}
}

func newCells(a *App) *screen {
	t := a.theme
	cells := newTablePane(t, "Cells", machineColumns, "no cells", func(s *feed.Snapshot) []table.Row { return cellRows(t, s) })
	return &screen{theme: t, crumb: "cells", command: "cell ls", panes: []pane{cells}, arrange: whole}
}

func newServers(a *App) *screen {
	t := a.theme
	servers := newTablePane(t, "Servers", machineColumns, "no servers", func(s *feed.Snapshot) []table.Row { return serverRows(t, s, "") })
	return &screen{theme: t, crumb: "servers", command: "server ls", panes: []pane{servers}, arrange: whole}
}

func newVMs(a *App) *screen {
	t := a.theme
	vms := newTablePane(t, "VMs", vmColumns, noVMs, func(s *feed.Snapshot) []table.Row { return vmRows(t, s, nil) })
	return &screen{theme: t, crumb: "VMs", command: "vm ls", panes: []pane{vms}, arrange: whole}
}

func whole(_ *screen, width, height int) []rect { return stack(width, height, -1) }

// newEvents shows all events; filter is what the user asked to see of them.
func newEvents(a *App, filter string) *screen {
	events := newEventsPane(a.theme, nil)
	if filter != "" {
		events.filter(filter)
	}
	return &screen{theme: a.theme, crumb: "events", command: "events --follow", panes: []pane{events}, arrange: whole}
}

// newEventsPane lists events that pass, and stays at the newest while the cursor is on it.
func newEventsPane(t *theme.Theme, pass func(*api.Event) bool) *tablePane {
	p := newTablePane(t, "Events", eventColumns, noEvents, func(s *feed.Snapshot) []table.Row { return eventRows(t, s, pass) })
	p.tail = true
	var first, last *api.Event
	p.unchanged = func(s *feed.Snapshot) bool {
		var f, l *api.Event
		if n := len(s.Events); n > 0 {
			f, l = s.Events[0], s.Events[n-1]
		}
		same := f == first && l == last && l != nil
		first, last = f, l
		return same
	}
	return p
}

func newCellDetail(a *App, name string) *screen {
	t := a.theme
	facts := &factsPane{theme: t, name: "Cell " + name, facts: func(s *feed.Snapshot) []fact { return cellFacts(t, s, name) }}
	servers := newTablePane(t, "Servers", machineColumns, "no servers", func(s *feed.Snapshot) []table.Row { return serverRows(t, s, name) })
	vms := newTablePane(t, "VMs that depend on it", vmColumns, "no VM depends on this cell", func(s *feed.Snapshot) []table.Row {
		return vmRows(t, s, func(vm *api.VM) bool { return slices.Contains(vm.GetCells(), name) })
	})
	return &screen{
		theme: t, crumb: "cell " + name, command: "cell ls", about: target{aCell, name},
		panes: []pane{facts, servers, vms},
		arrange: func(_ *screen, width, height int) []rect {
			return stack(width, height, facts.need(width), min(servers.table.Total()+2, height/3), -1)
		},
	}
}

func cellFacts(t *theme.Theme, s *feed.Snapshot, name string) []fact {
	c := s.Cell(name)
	if c == nil {
		return []fact{{label: "state", value: "not known any more", role: theme.Warn}}
	}
	m := cellMark(t, c.GetState())
	return []fact{
		{label: "state", value: m.glyph + " " + m.word, role: m.role},
		{label: "servers", value: ratio(c.GetServersLive(), uint32(len(c.GetServers()))) + " live"},
		{label: "VMs", value: number(c.GetVms()) + " depend on it"},
		{label: "slots", value: ratio(c.GetSlotsUsed(), c.GetSlots())},
		{label: "memory", value: sizePair(c.GetMemoryUsedBytes(), c.GetMemoryBytes())},
		{label: "cordoned", value: yesNo(c.GetCordoned(), theme.Plain).Text},
		{label: "if it died", value: ifDead(s, name), wide: true},
	}
}

func newServerDetail(a *App, name string) *screen {
	t := a.theme
	facts := &factsPane{theme: t, name: "Server " + name, facts: func(s *feed.Snapshot) []fact { return serverFacts(t, s, name) }}
	vms := newTablePane(t, "VMs with a part here", vmColumns, "no VM has a part on this server", func(s *feed.Snapshot) []table.Row {
		return vmRows(t, s, func(vm *api.VM) bool { return hasPart(vm, name) })
	})
	events := newEventsPane(t, func(e *api.Event) bool { return e.GetServer() == name })
	counters := newTablePane(t, "Counters", counterColumns, "the server has not told its counters", func(s *feed.Snapshot) []table.Row {
		return counterRows(t, s, name)
	})
	return &screen{
		theme: t, crumb: "server " + name, command: "server ls", about: target{aServer, name}, focus: 1, want: feed.Want{Counters: name},
		panes: []pane{facts, vms, events, counters},
		arrange: func(_ *screen, width, height int) []rect {
			top := facts.need(width)
			rest := height - top
			upper := min(max(vms.table.Total()+2, 4), rest/2)
			places := stack(width, height, top, upper, -1, 0)
			if width >= 100 && counters.table.Total() > 0 {
				// Beside the events: both are long lists.
				right := width / 3
				e := places[2]
				places[2] = rect{0, e.y, width - right - 1, e.height}
				places[3] = rect{width - right, e.y, right, e.height}
			}
			return places
		},
	}
}

func hasPart(vm *api.VM, server string) bool {
	return slices.ContainsFunc(vm.GetWorkers(), func(w *api.Worker) bool { return w.GetServer() == server })
}

func serverFacts(t *theme.Theme, s *feed.Snapshot, name string) []fact {
	server := s.Server(name)
	if server == nil {
		return []fact{{label: "state", value: "not known any more", role: theme.Warn}}
	}
	m := serverMark(t, server.GetState())
	notes, role := serverNotes(server)
	return []fact{
		{label: "state", value: m.glyph + " " + m.word, role: m.role, wide: true},
		{label: "notes", value: strings.Join(notes, ", "), role: role, wide: true},
		{label: "cell", value: server.GetCell()},
		{label: "pid", value: numberOrDash(server.GetPid())},
		{label: "slots", value: ratio(server.GetSlotsUsed(), server.GetSlots())},
		{label: "memory", value: sizePair(server.GetMemoryUsedBytes(), server.GetMemoryBytes())},
		{label: "peer addr", value: server.GetAddr()},
		{label: "if it died", value: ifDead(s, name), wide: true},
		{label: "API addr", value: server.GetApiAddr(), wide: true},
		{label: "admitted", value: "in epoch " + number(server.GetIncarnation())},
		{label: "id", value: strings.ToLower(numberOrDash(server.GetId()))},
		{label: "role", value: server.GetRole().Word()},
		{label: "version", value: server.GetVersion()},
	}
}

var counterColumns = []table.Column{
	{Title: "COUNTER", Min: 12, Grow: true},
	{Title: "VALUE", Right: true},
}

func counterRows(t *theme.Theme, s *feed.Snapshot, server string) []table.Row {
	if s.Counters.GetServer() != server {
		return nil
	}
	rows := make([]table.Row, 0, len(s.Counters.GetCounters()))
	for name, value := range s.Counters.GetCounters() {
		rows = append(rows, table.Row{
			Key:   name,
			Cells: []table.Cell{{Text: t.Clean(name)}, {Text: number(value)}},
			Order: []uint64{1: value},
		})
	}
	slices.SortFunc(rows, func(a, b table.Row) int { return strings.Compare(a.Key, b.Key) })
	return rows
}

// rateWindow is the least time between two sights of a VM from which rates are taken: shorter ones flicker.
const rateWindow = 900 * time.Millisecond

func newVMDetail(a *App, name string) *screen {
	t := a.theme
	facts := &factsPane{theme: t, name: "VM " + name, facts: func(s *feed.Snapshot) []fact { return vmFacts(t, s, name) }}
	parts := newPartsPane(t, name)
	events := newEventsPane(t, func(e *api.Event) bool { return e.GetVm() == name })
	registers := newPager(t, "Registers of the vCPU that failed")
	registers.source = func(s *feed.Snapshot) string { return vmNow(s, name).GetRegisters() }
	return &screen{
		theme: t, crumb: "VM " + name, command: "vm show " + name, about: target{aVM, name}, focus: 1, want: feed.Want{VM: name},
		panes: []pane{facts, parts, registers, events},
		arrange: func(_ *screen, width, height int) []rect {
			top := facts.need(width)
			rest := max(height-top, 0)
			dump := 0
			if n := registers.size(); n > 0 {
				dump = min(n+1, rest/2)
			}
			return stack(width, height, top, min(parts.table.Total()+2, max(rest/2, 3)), dump, -1)
		},
	}
}

// vmNow is the freshest sight of a VM: the watched one if it is that.
func vmNow(s *feed.Snapshot, name string) *api.VM {
	listed := s.VM(name)
	if w := s.Watched; w.GetName() == name && (listed == nil || listed.GetId() == w.GetId()) {
		return w
	}
	return listed
}

// newPartsPane lists a VM's parts with rates, which it takes from snapshots at least rateWindow apart.
func newPartsPane(t *theme.Theme, name string) *tablePane {
	var base, shownBase *api.VM
	var baseAt, shownAt time.Time
	return newTablePane(t, "Parts", workerColumns, "no parts", func(s *feed.Snapshot) []table.Row {
		vm := vmNow(s, name)
		if vm == nil {
			return nil
		}
		if base == nil {
			base, baseAt = vm, s.At
		}
		if s.At.Sub(baseAt) >= rateWindow {
			shownBase, shownAt = base, baseAt
			base, baseAt = vm, s.At
		}
		return workerRows(t, vm, shownBase, s.At.Sub(shownAt))
	})
}

func vmFacts(t *theme.Theme, s *feed.Snapshot, name string) []fact {
	vm := vmNow(s, name)
	if vm == nil {
		return []fact{{label: "state", value: "there is no VM of that name", role: theme.Warn}}
	}
	m := vmMark(t, vm)
	ended := ""
	if known(vm.GetEndedAt()) {
		ended = age(vm.GetEndedAt(), s.At) + " ago"
	}
	ran := ""
	if started := vm.GetStartedAt(); known(started) {
		until := s.At
		if e := vm.GetEndedAt(); known(e) {
			until = e.AsTime()
		}
		ran = span(until.Sub(started.AsTime()))
	}
	return []fact{
		{label: "state", value: m.glyph + " " + m.word, role: m.role, wide: true},
		{label: "reason", value: vmReason(vm), role: m.role, wide: true},
		{label: "vCPUs", value: number(vm.GetVcpus())},
		{label: "memory", value: size(vm.GetMemoryBytes())},
		{label: "cells", value: strings.Join(vm.GetCells(), ", ")},
		{label: "home", value: vm.GetHome()},
		{label: "payload", value: vm.GetPayload()},
		{label: "args", value: vm.GetArgs()},
		{label: "protect", value: vm.GetProtect()},
		{label: "on loss", value: vm.GetOnLoss().Word()},
		{label: "epoch", value: number(vm.GetEpoch())},
		{label: "id", value: number(vm.GetId())},
		{label: "created", value: age(vm.GetCreatedAt(), s.At) + " ago"},
		{label: "ran", value: ran},
		{label: "ended", value: ended},
		{label: "logs", value: size(vm.GetConsoleBytes()) + " console, " + plural(int(vm.GetOutputRecords()), "record", "records")},
	}
}
