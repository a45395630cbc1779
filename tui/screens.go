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
			return stack(width, height, factLines(width, 6)+1, min(servers.table.Total()+2, height/3), -1)
		},
	}
}

// factLines is the number of lines that n facts take at a width.
func factLines(width, n int) int {
	columns := max(width/40, 1)
	return (n + columns - 1) / columns
}

func cellFacts(t *theme.Theme, s *feed.Snapshot, name string) []fact {
	c := s.Cell(name)
	if c == nil {
		return []fact{{"state", "not known any more", theme.Warn}}
	}
	m := cellMark(t, c.GetState())
	return []fact{
		{"state", m.glyph + " " + m.word, m.role},
		{"servers", ratio(c.GetServersLive(), uint32(len(c.GetServers()))) + " live", theme.Plain},
		{"VMs", number(c.GetVms()) + " depend on it", theme.Plain},
		{"slots", ratio(c.GetSlotsUsed(), c.GetSlots()), theme.Plain},
		{"memory", sizePair(c.GetMemoryUsedBytes(), c.GetMemoryBytes()), theme.Plain},
		{"cordoned", yesNo(c.GetCordoned(), theme.Plain).Text, theme.Plain},
	}
}

func newServerDetail(a *App, name string) *screen {
	t := a.theme
	facts := &factsPane{theme: t, name: "Server " + name, facts: func(s *feed.Snapshot) []fact { return serverFacts(t, s, name) }}
	vms := newTablePane(t, "VMs with a part here", vmColumns, "no VM has a part on this server", func(s *feed.Snapshot) []table.Row {
		return vmRows(t, s, func(vm *api.VM) bool { return hasPart(vm, name) })
	})
	events := newEventsPane(t, func(e *api.Event) bool { return e.GetServer() == name })
	counters := newTablePane(t, "Counters", counterColumns, "only the server that answers tells its counters", func(s *feed.Snapshot) []table.Row {
		return counterRows(t, s, name)
	})
	return &screen{
		theme: t, crumb: "server " + name, command: "server ls", about: target{aServer, name}, focus: 1, counters: true,
		panes: []pane{facts, vms, events, counters},
		arrange: func(_ *screen, width, height int) []rect {
			top := factLines(width, serverFactCount) + 1
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

const serverFactCount = 12

func serverFacts(t *theme.Theme, s *feed.Snapshot, name string) []fact {
	server := s.Server(name)
	if server == nil {
		return []fact{{"state", "not known any more", theme.Warn}}
	}
	m := serverMark(t, server.GetState())
	notes, role := serverNotes(server)
	return []fact{
		{"state", m.glyph + " " + m.word, m.role},
		{"cell", server.GetCell(), theme.Plain},
		{"notes", strings.Join(notes, ", "), role},
		{"pid", numberOrDash(server.GetPid()), theme.Plain},
		{"slots", ratio(server.GetSlotsUsed(), server.GetSlots()), theme.Plain},
		{"memory", sizePair(server.GetMemoryUsedBytes(), server.GetMemoryBytes()), theme.Plain},
		{"peer addr", server.GetAddr(), theme.Plain},
		{"API addr", server.GetApiAddr(), theme.Plain},
		{"admitted", "in epoch " + number(server.GetIncarnation()), theme.Plain},
		{"id", strings.ToLower(numberOrDash(server.GetId())), theme.Plain},
		{"role", server.GetRole().Word(), theme.Plain},
		{"version", server.GetVersion(), theme.Plain},
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
		theme: t, crumb: "VM " + name, command: "vm show " + name, about: target{aVM, name}, focus: 1, watch: name,
		panes: []pane{facts, parts, registers, events},
		arrange: func(_ *screen, width, height int) []rect {
			top := factLines(width, vmFactCount) + 1
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

const vmFactCount = 16

func vmFacts(t *theme.Theme, s *feed.Snapshot, name string) []fact {
	vm := vmNow(s, name)
	if vm == nil {
		return []fact{{"state", "there is no VM of that name", theme.Warn}}
	}
	m := vmMark(t, vm)
	ended := ""
	if vm.GetEndedAt() != nil {
		ended = age(vm.GetEndedAt(), s.At) + " ago"
	}
	ran := ""
	if started := vm.GetStartedAt(); started != nil {
		until := s.At
		if e := vm.GetEndedAt(); e != nil {
			until = e.AsTime()
		}
		ran = span(until.Sub(started.AsTime()))
	}
	return []fact{
		{"state", m.glyph + " " + m.word, m.role},
		{"reason", vmReason(vm), m.role},
		{"vCPUs", number(vm.GetVcpus()), theme.Plain},
		{"memory", size(vm.GetMemoryBytes()), theme.Plain},
		{"cells", strings.Join(vm.GetCells(), ", "), theme.Plain},
		{"home", vm.GetHome(), theme.Plain},
		{"payload", vm.GetPayload(), theme.Plain},
		{"args", vm.GetArgs(), theme.Plain},
		{"protect", vm.GetProtect(), theme.Plain},
		{"on loss", vm.GetOnLoss().Word(), theme.Plain},
		{"epoch", number(vm.GetEpoch()), theme.Plain},
		{"id", number(vm.GetId()), theme.Plain},
		{"created", age(vm.GetCreatedAt(), s.At) + " ago", theme.Plain},
		{"ran", ran, theme.Plain},
		{"ended", ended, theme.Plain},
		{"logs", size(vm.GetConsoleBytes()) + " console, " + plural(int(vm.GetOutputRecords()), "record", "records"), theme.Plain},
	}
}
