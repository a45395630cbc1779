package tui

import (
	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// The load tree has the cluster at its root, then cells, then servers; each node holds the load below it. The balancer goes down it where
// left and right differ by more than one vCPU.
var loadColumns = []table.Column{
	{Title: "TREE", Min: 10},
	{Title: "VCPUS", Right: true},
	{Title: "SLOTS", Right: true},
	{Title: "LOAD", Right: true},
	{Title: "", Rank: 1},
	{Title: "CPU", Right: true, Rank: 2},
	{Title: "REMOTE/S", Right: true, Rank: 5},
	{Title: "MEMORY", Right: true, Rank: 3},
	{Title: "VMS", Right: true, Rank: 6},
	{Title: "NOTES", Rank: 4, Min: 16, Grow: true},
}

// loadGaugeCells is the width of a node's bar.
const loadGaugeCells = 20

// loadNode is the load at and below a node.
type loadNode struct {
	vcpus, slots, memory, memoryAll uint64
	cpuPermille, remote             uint64
	vms                             map[uint64]bool
}

func (n *loadNode) add(m loadNode) {
	n.vcpus, n.slots = n.vcpus+m.vcpus, n.slots+m.slots
	n.memory, n.memoryAll = n.memory+m.memory, n.memoryAll+m.memoryAll
	n.cpuPermille, n.remote = n.cpuPermille+m.cpuPermille, n.remote+m.remote
	for id := range m.vms {
		n.vms[id] = true
	}
}

// loadOf is the load of a server. A dead one has none, and no slots.
func loadOf(s *feed.Snapshot, server *api.Server, vms map[string]map[uint64]bool) loadNode {
	n := loadNode{vms: map[uint64]bool{}}
	if server.GetState() != api.ServerState_SERVER_STATE_LIVE {
		return n
	}
	l := s.ServerLoad(server.GetName())
	n.vcpus, n.slots = uint64(server.GetSlotsUsed()), uint64(server.GetSlots())
	n.memory, n.memoryAll = server.GetMemoryUsedBytes(), server.GetMemoryBytes()
	n.cpuPermille, n.remote = l.CPUPermille, l.RemotePerSecond
	for id := range vms[server.GetName()] {
		n.vms[id] = true
	}
	return n
}

// vmsByServer lists the VMs that run a part on each server.
func vmsByServer(s *feed.Snapshot) map[string]map[uint64]bool {
	out := map[string]map[uint64]bool{}
	for _, vm := range s.VMs {
		if vm.GetState().Ended() {
			continue
		}
		for _, w := range vm.GetWorkers() {
			if out[w.GetServer()] == nil {
				out[w.GetServer()] = map[uint64]bool{}
			}
			out[w.GetServer()][vm.GetId()] = true
		}
	}
	return out
}

func loadRows(t *theme.Theme, s *feed.Snapshot) []table.Row {
	vms := vmsByServer(s)
	root := loadNode{vms: map[uint64]bool{}}
	rows := []table.Row{{}}
	for i, c := range s.Cells {
		cell, at := loadNode{vms: map[uint64]bool{}}, len(rows)
		rows = append(rows, table.Row{})
		low, high := ^uint64(0), uint64(0)
		for j, name := range c.GetServers() {
			server := s.Server(name)
			if server == nil {
				continue
			}
			n := loadOf(s, server, vms)
			cell.add(n)
			notes, role := serverNotes(server)
			if server.GetState() == api.ServerState_SERVER_STATE_LIVE && n.slots > 0 {
				low, high = min(low, n.vcpus), max(high, n.vcpus)
			} else {
				notes, role = []string{server.GetState().Word()}, theme.Bad
			}
			lead := "  " + trunk(t, i < len(s.Cells)-1) + " " + branch(t, j == len(c.GetServers())-1) + " "
			rows = append(rows, loadRow(t, target{aServer, name}.key(), lead+name, n, table.Cell{Text: t.Clean(joined(notes)), Role: role}))
		}
		note := table.Cell{}
		if low != ^uint64(0) && high > low+1 {
			note = table.Cell{Text: "servers differ by " + plural(int(high-low), "vCPU", "vCPUs"), Role: theme.Warn}
		}
		root.add(cell)
		rows[at] = loadRow(t, target{aCell, c.GetName()}.key(), "  "+branch(t, i == len(s.Cells)-1)+" "+c.GetName(), cell, note)
	}
	rows[0] = loadRow(t, "cluster/", "cluster", root, table.Cell{})
	return rows
}

func branch(t *theme.Theme, last bool) string {
	if last {
		return t.LastBranch
	}
	return t.Branch
}

func trunk(t *theme.Theme, on bool) string {
	if on {
		return t.Trunk
	}
	return " "
}

func joined(words []string) string {
	text := ""
	for i, w := range words {
		if i > 0 {
			text += ", "
		}
		text += w
	}
	return text
}

func loadRow(t *theme.Theme, key, name string, n loadNode, note table.Cell) table.Row {
	load, role := "-", theme.Accent
	permille := uint64(0)
	if n.slots > 0 {
		permille = n.vcpus * 1000 / n.slots
		load = number(permille/10) + "%"
		if permille > 1000 {
			role = theme.Warn
		}
	}
	return table.Row{
		Key: key,
		Cells: []table.Cell{
			{Text: t.Clean(name), Role: theme.Strong}, {Text: number(n.vcpus)}, {Text: number(n.slots)}, {Text: load},
			{Text: t.Gauge(min(permille, 1000), 1000, loadGaugeCells), Role: role}, {Text: number(n.cpuPermille/10) + "%"}, {Text: count(n.remote)},
			{Text: sizePair(n.memory, n.memoryAll)}, {Text: number(len(n.vms))}, note,
		},
		Order: []uint64{1: n.vcpus, 2: n.slots, 3: permille, 4: permille, 5: n.cpuPermille, 6: n.remote, 7: n.memory, 8: uint64(len(n.vms))},
	}
}

func newLoadTree(a *App) *screen {
	t := a.theme
	tree := newTablePane(t, "Load tree", loadColumns, "no servers", func(s *feed.Snapshot) []table.Row { return loadRows(t, s) })
	return &screen{theme: t, crumb: "load", command: "cell load", panes: []pane{tree}, arrange: whole}
}
