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

// kind says what a row is about.
type kind uint8

const (
	nothing kind = iota
	aCell
	aServer
	aVM
	anEvent
	anOperation
	aDrill
	aRun
)

// kindWords are the words that keys of rows begin with.
var kindWords = [...]string{nothing: "", aCell: "cell", aServer: "server", aVM: "vm", anEvent: "event", anOperation: "op", aDrill: "drill", aRun: "run"}

// target is what the cursor is on.
type target struct {
	kind kind
	name string
}

func (t target) key() string {
	return kindWords[t.kind] + "/" + t.name
}

// targetOf reads a row's key back; what follows a # only tells rows about the same thing apart.
func targetOf(key string) target {
	prefix, name, _ := strings.Cut(key, "/")
	name, _, _ = strings.Cut(name, "#")
	if i := slices.Index(kindWords[:], prefix); i > 0 {
		return target{kind(i), name}
	}
	return target{}
}

// gaugeCells is the width of a bar of use.
const gaugeCells = 8

var machineColumns = []table.Column{
	{Title: "NAME", Min: 8},
	{Title: "STATE"},
	{Title: "SLOTS", Right: true, Rank: 1},
	{Title: "LOAD", Rank: 4},
	{Title: "MEMORY", Right: true, Rank: 2},
	{Title: "PID", Right: true, Rank: 7},
	{Title: "ADDR", Rank: 8},
	{Title: "API", Rank: 10, Max: 40},
	{Title: "VERSION", Rank: 9},
	{Title: "NOTES", Min: 20, Rank: 3, Grow: true},
}

// treeRows lists each cell followed by its servers, and the witnesses last.
func treeRows(t *theme.Theme, s *feed.Snapshot) []table.Row {
	rows := make([]table.Row, 0, len(s.Cells)+len(s.Servers))
	placed := make(map[string]bool, len(s.Servers))
	for _, c := range s.Cells {
		rows = append(rows, cellRow(t, c))
		for i, name := range c.GetServers() {
			server := s.Server(name)
			if server == nil {
				continue
			}
			placed[name] = true
			branch := t.Branch
			if i == len(c.GetServers())-1 {
				branch = t.LastBranch
			}
			row := serverRow(t, server)
			row.Cells[0].Text = branch + " " + row.Cells[0].Text
			rows = append(rows, row)
		}
	}
	for _, server := range s.Servers {
		if !placed[server.GetName()] {
			rows = append(rows, serverRow(t, server))
		}
	}
	return rows
}

func cellRows(t *theme.Theme, s *feed.Snapshot) []table.Row {
	rows := make([]table.Row, 0, len(s.Cells))
	for _, c := range s.Cells {
		rows = append(rows, cellRow(t, c))
	}
	return rows
}

func cellRow(t *theme.Theme, c *api.Cell) table.Row {
	notes := []string{ratio(c.GetServersLive(), uint32(len(c.GetServers()))) + " servers", plural(int(c.GetVms()), "VM", "VMs")}
	if c.GetCordoned() {
		notes = append(notes, "cordoned")
	}
	return table.Row{
		Key: target{aCell, c.GetName()}.key(),
		Cells: []table.Cell{
			{Text: t.Clean(c.GetName()), Role: theme.Strong},
			cellMark(t, c.GetState()).cell(),
			{Text: ratio(c.GetSlotsUsed(), c.GetSlots())},
			{Text: t.Gauge(uint64(c.GetSlotsUsed()), uint64(c.GetSlots()), gaugeCells), Role: theme.Accent},
			{Text: sizePair(c.GetMemoryUsedBytes(), c.GetMemoryBytes())},
			{}, {}, {}, {},
			{Text: strings.Join(notes, ", ")},
		},
		Order: []uint64{2: uint64(c.GetSlotsUsed()), 3: uint64(c.GetSlotsUsed()), 4: c.GetMemoryUsedBytes()},
	}
}

// serverRows lists the servers of a cell, all for "".
func serverRows(t *theme.Theme, s *feed.Snapshot, cell string) []table.Row {
	rows := make([]table.Row, 0, len(s.Servers))
	for _, server := range s.Servers {
		if cell == "" || server.GetCell() == cell {
			rows = append(rows, serverRow(t, server))
		}
	}
	return rows
}

func serverRow(t *theme.Theme, s *api.Server) table.Row {
	notes, role := serverNotes(s)
	return table.Row{
		Key: target{aServer, s.GetName()}.key(),
		Cells: []table.Cell{
			{Text: t.Clean(s.GetName())},
			serverMark(t, s.GetState()).cell(),
			{Text: ratio(s.GetSlotsUsed(), s.GetSlots())},
			{Text: t.Gauge(uint64(s.GetSlotsUsed()), uint64(s.GetSlots()), gaugeCells), Role: theme.Accent},
			{Text: sizePair(s.GetMemoryUsedBytes(), s.GetMemoryBytes())},
			{Text: numberOrDash(s.GetPid())},
			{Text: t.Clean(s.GetAddr())},
			{Text: t.Clean(s.GetApiAddr()), Role: theme.Dim},
			{Text: t.Clean(s.GetVersion()), Role: theme.Dim},
			{Text: t.Clean(strings.Join(notes, ", ")), Role: role},
		},
		Search: "cell:" + s.GetCell(),
		Order: []uint64{2: uint64(s.GetSlotsUsed()), 3: uint64(s.GetSlotsUsed()), 4: s.GetMemoryUsedBytes(),
			5: uint64(s.GetPid())},
	}
}

// serverNotes says what sets a server apart, the most important first.
func serverNotes(s *api.Server) (notes []string, role theme.Role) {
	if r := s.GetUnfitReason(); r != "" {
		notes, role = append(notes, "runs no VMs: "+r), theme.Warn
	}
	if s.GetCordoned() {
		notes, role = append(notes, "cordoned"), theme.Warn
	}
	if s.GetRole() == api.ServerRole_SERVER_ROLE_WITNESS {
		notes = append(notes, "witness")
	}
	switch {
	case s.GetLeader():
		notes = append(notes, "leader")
	case s.GetVoter():
		notes = append(notes, "voter")
	}
	return notes, role
}

var vmColumns = []table.Column{
	{Title: "NAME", Min: 8, Max: 40},
	{Title: "STATE"},
	{Title: "VCPUS", Right: true, Rank: 2},
	{Title: "MEMORY", Right: true, Rank: 3},
	{Title: "CELLS", Rank: 1, Min: 5, Max: 24},
	{Title: "HOME", Rank: 2},
	{Title: "PROTECTION", Rank: 3},
	{Title: "LAG", Right: true, Rank: 5},
	{Title: "CPU", Right: true, Rank: 5},
	{Title: "AGE", Right: true, Rank: 7},
	{Title: "ON-LOSS", Rank: 9},
	{Title: "SERVERS", Rank: 7, Max: 40},
	{Title: "PAYLOAD", Rank: 8, Max: 24},
	{Title: "REASON", Rank: 4, Min: 28, Grow: true},
}

// vmRows lists the VMs that pass.
func vmRows(t *theme.Theme, s *feed.Snapshot, pass func(*api.VM) bool) []table.Row {
	rows := make([]table.Row, 0, len(s.VMs))
	for _, vm := range s.VMs {
		if pass == nil || pass(vm) {
			rows = append(rows, vmRow(t, vm, s.VMLoad(vm.GetId()), s.At))
		}
	}
	return rows
}

func vmRow(t *theme.Theme, vm *api.VM, load feed.VMLoad, now time.Time) table.Row {
	servers := make([]string, len(vm.GetWorkers()))
	for i, w := range vm.GetWorkers() {
		servers[i] = w.GetServer()
	}
	m := vmMark(t, vm)
	reasonRole := theme.Plain
	if m.role == theme.Bad {
		reasonRole = theme.Bad
	}
	order := []uint64{2: uint64(vm.GetVcpus()), 3: vm.GetMemoryBytes(), 7: load.LagMicros, 8: load.CPUPermille, 9: 0}
	if c := vm.GetCreatedAt(); c != nil && now.After(c.AsTime()) {
		order[9] = uint64(now.Sub(c.AsTime()))
	}
	return table.Row{
		Key: target{aVM, vm.GetName()}.key(),
		Cells: []table.Cell{
			{Text: t.Clean(vm.GetName()), Role: theme.Strong},
			m.cell(),
			{Text: number(vm.GetVcpus())},
			{Text: size(vm.GetMemoryBytes())},
			{Text: t.Clean(strings.Join(vm.GetCells(), ","))},
			{Text: t.Clean(vm.GetHome())},
			protectionCell(t, vm, load),
			{Text: lagText(vm, load)},
			{Text: cpuText(vm, load)},
			{Text: age(vm.GetCreatedAt(), now)},
			{Text: vm.GetOnLoss().Word()},
			{Text: t.Clean(strings.Join(servers, ","))},
			{Text: t.Clean(vm.GetPayload()), Role: theme.Dim},
			{Text: t.Clean(vmReason(vm)), Role: reasonRole},
		},
		Order: order,
	}
}

// protectionCell says how the VM is protected now: what it asked for, and whether it has it.
func protectionCell(t *theme.Theme, vm *api.VM, load feed.VMLoad) table.Cell {
	text := vm.GetProtect()
	if text == "" || text == "none" {
		return table.Cell{Text: "none", Role: theme.Dim}
	}
	switch now := vm.GetProtection(); {
	case vm.GetState().Ended():
		return table.Cell{Text: t.Clean(text), Role: theme.Dim}
	case now == "safe":
		return table.Cell{Text: t.Clean(text + " " + t.Done + " safe"), Role: theme.Good}
	case now == "syncing" && load.SyncPermille > 0:
		return table.Cell{Text: t.Clean(text + " " + t.Starting + " syncing " + number(load.SyncPermille/10) + "%"), Role: theme.Warn}
	case now == "syncing":
		return table.Cell{Text: t.Clean(text + " " + t.Starting + " syncing"), Role: theme.Warn}
	case now == "partial":
		return table.Cell{Text: t.Clean(text + " " + t.Degraded + " partial"), Role: theme.Warn}
	case now == "unprotected":
		return table.Cell{Text: t.Clean(text + " " + t.Alarm + " UNPROTECTED"), Role: theme.Bad}
	}
	return table.Cell{Text: t.Clean(text)}
}

// lagText is how far the replicas are behind: the age of the newest checkpoint that all of them hold.
func lagText(vm *api.VM, load feed.VMLoad) string {
	if load.LagMicros == 0 || vm.GetState().Ended() {
		return ""
	}
	return span(time.Duration(load.LagMicros) * time.Microsecond)
}

// cpuText is the share of one CPU that all vCPUs use together.
func cpuText(vm *api.VM, load feed.VMLoad) string {
	if vm.GetState() != api.VMState_VM_STATE_RUNNING {
		return ""
	}
	return number(load.CPUPermille/10) + "%"
}

// vmReason is the VM's reason, with the exit status where there is one to tell.
func vmReason(vm *api.VM) string {
	if vm.GetState() != api.VMState_VM_STATE_EXITED {
		return vm.GetReason()
	}
	text := "status " + number(vm.GetExitStatus())
	if vm.GetReason() != "" {
		text += ": " + vm.GetReason()
	}
	return text
}

var eventColumns = []table.Column{
	{Title: "TIME", Rank: 3},
	{Title: "EPOCH", Right: true, Rank: 4},
	{Title: "TYPE", Rank: 1},
	{Title: "CELL", Rank: 6},
	{Title: "SERVER", Rank: 7},
	{Title: "VM", Rank: 5, Max: 20},
	{Title: "STAGE", Rank: 8},
	{Title: "AFTER", Right: true, Rank: 8},
	{Title: "BY", Rank: 9},
	{Title: "MESSAGE", Grow: true, Min: 44},
}

// eventRows lists the events that pass, the newest last.
func eventRows(t *theme.Theme, s *feed.Snapshot, pass func(*api.Event) bool) []table.Row {
	rows := make([]table.Row, 0, len(s.Events))
	for _, e := range s.Events {
		if pass == nil || pass(e) {
			rows = append(rows, eventRow(t, e))
		}
	}
	return rows
}

func eventRow(t *theme.Theme, e *api.Event) table.Row {
	after := ""
	if e.GetStage() != "" {
		after = span(time.Duration(e.GetStageMicros()) * time.Microsecond)
	}
	role := theme.Plain
	if alarming(e.GetType()) {
		role = theme.Bad
	}
	return table.Row{
		Key: target{anEvent, number(e.GetSeq())}.key(),
		Cells: []table.Cell{
			{Text: clock(e.GetTime()), Role: theme.Dim},
			{Text: number(e.GetEpoch())},
			{Text: t.Clean(e.GetType()), Role: role},
			{Text: t.Clean(e.GetCell())},
			{Text: t.Clean(e.GetServer())},
			{Text: t.Clean(e.GetVm())},
			{Text: t.Clean(e.GetStage())},
			{Text: after},
			{Text: t.Clean(e.GetRecordedBy()), Role: theme.Dim},
			{Text: t.Clean(e.GetMessage())},
		},
		Order: []uint64{1: e.GetEpoch(), 7: e.GetStageMicros()},
	}
}

// alarming says whether an event of that type is bad news. The words are those of the closed list; unknown types are not alarming.
func alarming(eventType string) bool {
	_, verb, _ := strings.Cut(eventType, ".")
	return verb == "dead" || verb == "lost" || verb == "failed"
}
