package tui

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// recovered is what the events tell of one recovery: a view that lost someone, and the stages that each server went through for it.
type recovered struct {
	epoch  uint64
	at     time.Time
	lost   []string
	vms    []string
	stages []stage
}

// stage is a bar of the timeline.
type stage struct {
	name, server string
	begin, took  time.Duration
}

// The stages in the order in which a recovery goes through them. Those of the server that decides come one after the other; the others
// all begin when the new view is in force.
var (
	decidingStages  = []string{"detect", "fence", "agree"}
	followingStages = []string{"unwedge", "remap", "resume"}
)

// recoveriesOf groups the events of recoveries by the epoch that they led to, the newest last.
func recoveriesOf(events []*api.Event) []*recovered {
	var list []*recovered
	of := func(epoch uint64, at time.Time) *recovered {
		i := slices.IndexFunc(list, func(r *recovered) bool { return r.epoch == epoch })
		if i < 0 {
			list = append(list, &recovered{epoch: epoch, at: at})
			i = len(list) - 1
		}
		return list[i]
	}
	for _, e := range events {
		at := e.GetTime().AsTime()
		switch e.GetType() {
		case "server.dead":
			r := of(e.GetEpoch(), at)
			r.lost = append(r.lost, e.GetServer())
		case "cell.lost":
			r := of(e.GetEpoch(), at)
			// The cell says more than the last of its servers.
			r.lost = append([]string{"cell " + e.GetCell()}, r.lost...)
		case "vm.lost":
			r := of(e.GetEpoch(), at)
			r.vms = append(r.vms, e.GetVm())
		case "recovery.stages":
			epoch, err := strconv.ParseUint(e.GetFields()["epoch"], 10, 64)
			if err != nil {
				epoch = e.GetEpoch()
			}
			r := of(epoch, at)
			r.stages = append(r.stages, stagesOf(e)...)
		}
	}
	for _, r := range list {
		r.align()
	}
	return list
}

func stagesOf(e *api.Event) []stage {
	var out []stage
	for _, name := range slices.Concat(decidingStages, followingStages) {
		micros, err := strconv.ParseInt(e.GetFields()[name+"_us"], 10, 64)
		if err == nil && micros >= 0 && micros < int64(time.Hour/time.Microsecond) {
			out = append(out, stage{name: name, server: e.GetServer(), took: time.Duration(micros) * time.Microsecond})
		}
	}
	return out
}

// align puts the bars on one time line that begins at the last sign of life.
func (r *recovered) align() {
	var decided time.Duration
	for _, name := range decidingStages {
		begin := decided
		for i := range r.stages {
			if s := &r.stages[i]; s.name == name {
				s.begin = begin
				decided = max(decided, begin+s.took)
			}
		}
	}
	for i := range r.stages {
		if s := &r.stages[i]; !slices.Contains(decidingStages, s.name) {
			s.begin = decided
		}
	}
	slices.SortStableFunc(r.stages, func(a, b stage) int { return int(a.begin - b.begin) })
}

// total is the time from the last sign of life to the end of the last stage.
func (r *recovered) total() time.Duration {
	var end time.Duration
	for _, s := range r.stages {
		end = max(end, s.begin+s.took)
	}
	return end
}

var recoveryColumns = []table.Column{
	{Title: "TIME"},
	{Title: "EPOCH", Right: true},
	{Title: "TOOK", Right: true},
	{Title: "LOST", Min: 8, Max: 40},
	{Title: "VMS", Right: true, Rank: 1},
	{Title: "VMS LOST", Min: 8, Rank: 2, Grow: true},
}

func recoveryRows(t *theme.Theme, list []*recovered) []table.Row {
	rows := make([]table.Row, 0, len(list))
	for _, r := range list {
		took := "-"
		if len(r.stages) > 0 {
			took = millis(r.total())
		}
		rows = append(rows, table.Row{
			Key: "epoch/" + number(r.epoch),
			Cells: []table.Cell{
				{Text: r.at.Local().Format("15:04:05.000"), Role: theme.Dim},
				{Text: number(r.epoch)},
				{Text: took},
				{Text: t.Clean(strings.Join(r.lost, ", ")), Role: theme.Bad},
				{Text: number(len(r.vms))},
				{Text: t.Clean(strings.Join(r.vms, ", "))},
			},
			Order: []uint64{1: r.epoch, 2: uint64(r.total()), 4: uint64(len(r.vms))},
		})
	}
	return rows
}

// millis formats a stage: "55.8 ms", "2.10 s".
func millis(d time.Duration) string {
	if d >= time.Second {
		return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + " s"
	}
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 1, 64) + " ms"
}

// timelineCells is the length of the time line.
const timelineCells = 40

var stageColumns = []table.Column{
	{Title: "STAGE"},
	{Title: "SERVER", Min: 6},
	{Title: "FROM", Right: true, Rank: 2},
	{Title: "TOOK", Right: true},
	{Title: "TIMELINE", Rank: 1, Grow: true},
}

func stageRows(t *theme.Theme, r *recovered) []table.Row {
	if r == nil {
		return nil
	}
	total := r.total()
	rows := make([]table.Row, 0, len(r.stages))
	for _, s := range r.stages {
		rows = append(rows, table.Row{
			Key: s.name + "/" + s.server,
			Cells: []table.Cell{
				{Text: s.name}, {Text: t.Clean(s.server)}, {Text: millis(s.begin)}, {Text: millis(s.took)},
				{Text: bar(t, s.begin, s.took, total), Role: theme.Accent},
			},
			Order: []uint64{2: uint64(s.begin), 3: uint64(s.took)},
		})
	}
	return rows
}

// bar draws a span on a time line of the length of total; every span shows at least one cell.
func bar(t *theme.Theme, begin, took, total time.Duration) string {
	if total <= 0 {
		return ""
	}
	cell := func(d time.Duration) int { return int(int64(d) * timelineCells / int64(total)) }
	from := min(cell(begin), timelineCells-1)
	to := max(cell(begin+took), from+1)
	return theme.Spaces(from) + strings.Repeat(t.Full, to-from)
}

// newRecoveries lists the recoveries that the events tell of, and draws the time line of the one under the cursor as it grows.
func newRecoveries(a *App) *screen {
	t := a.theme
	var known []*recovered
	list := newTablePane(t, "Recoveries", recoveryColumns, "no server was lost since the oldest event that is kept", func(s *feed.Snapshot) []table.Row {
		known = recoveriesOf(s.Events)
		return recoveryRows(t, known)
	})
	list.tail = true
	stages := newTablePane(t, "Stages", stageColumns, "no server has told of its stages", func(*feed.Snapshot) []table.Row {
		row, _ := list.table.Current()
		for _, r := range known {
			if row.Key == "epoch/"+number(r.epoch) {
				return stageRows(t, r)
			}
		}
		return nil
	})
	return &screen{
		theme: t, crumb: "recoveries", command: "events", panes: []pane{list, stages}, linked: true,
		arrange: func(_ *screen, width, height int) []rect {
			return stack(width, height, min(list.table.Total()+2, height/2), -1)
		},
	}
}
