package tui

import (
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

var workerColumns = []table.Column{
	{Title: "PART", Right: true},
	{Title: "SERVER", Min: 6},
	{Title: "CELL", Rank: 7},
	{Title: "STATE"},
	{Title: "PID", Right: true, Rank: 1},
	{Title: "VCPUS", Min: 5, Max: 24},
	{Title: "RESIDENT", Right: true, Rank: 2},
	{Title: "READS/S", Right: true, Rank: 3},
	{Title: "WRITES/S", Right: true, Rank: 3},
	{Title: "IN/S", Right: true, Rank: 5},
	{Title: "OUT/S", Right: true, Rank: 5},
	{Title: "EXITS/S", Right: true, Rank: 4},
	{Title: "CPU", Right: true, Rank: 3},
	{Title: "FAULTS", Right: true, Rank: 9},
	{Title: "READS", Right: true, Rank: 8},
	{Title: "WRITES", Right: true, Rank: 8},
	{Title: "ADDR", Rank: 6, Grow: true},
}

// workerRows lists the parts of a VM; before is an earlier sight of the same VM, from which the rates come, nil if there is none.
func workerRows(t *theme.Theme, vm, before *api.VM, elapsed time.Duration) []table.Row {
	rows := make([]table.Row, 0, len(vm.GetWorkers()))
	for _, w := range vm.GetWorkers() {
		c := w.GetCounters()
		cells := []table.Cell{
			{Text: number(w.GetPart())},
			{Text: t.Clean(w.GetServer())},
			{Text: t.Clean(w.GetCell())},
			workerMark(t, vm, w).cell(),
			{Text: numberOrDash(w.GetPid())},
			{Text: vcpuSet(w.GetVcpus())},
			{Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"}, {Text: "-"},
			{Text: t.Clean(w.GetAddr()), Role: theme.Dim},
		}
		if c != nil {
			cells[6].Text = size(c.GetResidentBytes())
			cells[13].Text = count(c.GetLocalFaults())
			cells[14].Text = count(c.GetRemoteReads())
			cells[15].Text = count(c.GetRemoteWrites())
		}
		if b := sameWorker(before, w); b != nil && c != nil && elapsed > 0 {
			cells[7].Text = rate(b.GetRemoteReads(), c.GetRemoteReads(), elapsed)
			cells[8].Text = rate(b.GetRemoteWrites(), c.GetRemoteWrites(), elapsed)
			cells[9].Text = rate(b.GetPagesIn(), c.GetPagesIn(), elapsed)
			cells[10].Text = rate(b.GetPagesOut(), c.GetPagesOut(), elapsed)
			cells[11].Text = rate(b.GetVcpuExits(), c.GetVcpuExits(), elapsed)
			cells[12].Text = busy(b.GetRunMicros(), c.GetRunMicros(), elapsed)
		}
		rows = append(rows, table.Row{Key: target{aServer, w.GetServer()}.key(), Cells: cells})
	}
	return rows
}

func workerMark(t *theme.Theme, vm *api.VM, w *api.Worker) mark {
	switch {
	case w.GetMirror() && !w.GetLost() && !vm.GetState().Ended():
		return mark{t.Done, "mirror", theme.Good}
	case w.GetStandby() && !w.GetLost() && !vm.GetState().Ended():
		return mark{t.Done, "replica", theme.Good}
	case w.GetLost():
		return mark{t.Lost, "lost", theme.Bad}
	case vm.GetState().Ended():
		return mark{t.Stopped, "ended", theme.Dim}
	case w.GetReady():
		return mark{t.Live, "ready", theme.Good}
	}
	return mark{t.Starting, "starting", theme.Warn}
}

// sameWorker finds the counters that the same process had earlier; counters of another process cannot be compared.
func sameWorker(before *api.VM, w *api.Worker) *api.WorkerCounters {
	for _, b := range before.GetWorkers() {
		if b.GetServer() == w.GetServer() && b.GetPid() == w.GetPid() && b.GetPidStartTicks() == w.GetPidStartTicks() {
			return b.GetCounters()
		}
	}
	return nil
}

func rate(before, now uint64, elapsed time.Duration) string {
	if now < before {
		return "-"
	}
	return count(uint64(float64(now-before)/elapsed.Seconds() + 0.5))
}

// busy is the share of one CPU that the vCPUs used: 200% is two vCPUs that never stop.
func busy(before, now uint64, elapsed time.Duration) string {
	if now < before {
		return "-"
	}
	return number(uint64(float64(now-before)/float64(elapsed.Microseconds())*100+0.5)) + "%"
}
