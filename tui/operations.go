package tui

import (
	"strconv"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

const noOperations = "no operations; start one with :cell drain CELL or :vm migrate NAME --to CELL"

var operationColumns = []table.Column{
	{Title: "OP", Right: true},
	{Title: "KIND", Rank: 1},
	{Title: "SUBJECT", Min: 6, Max: 30},
	{Title: "STATE"},
	{Title: "PROGRESS"},
	{Title: "STEPS", Right: true, Rank: 2},
	{Title: "BYTES", Right: true, Rank: 3},
	{Title: "LEFT", Right: true, Rank: 4},
	{Title: "AGE", Right: true, Rank: 6},
	{Title: "BY", Rank: 7, Max: 16},
	{Title: "NOTE", Rank: 5, Min: 20, Grow: true},
}

// opGaugeCells is the width of an operation's bar of progress.
const opGaugeCells = 12

func operationRows(t *theme.Theme, s *feed.Snapshot) []table.Row {
	rows := make([]table.Row, 0, len(s.Operations))
	for _, op := range s.Operations {
		p := progressOf(op)
		note, role := opNote(op)
		m := opMark(t, op.GetState())
		rows = append(rows, table.Row{
			Key: target{anOperation, number(op.GetId())}.key(),
			Cells: []table.Cell{
				{Text: number(op.GetId()), Role: theme.Strong},
				{Text: op.GetKind().Word()},
				{Text: t.Clean(op.GetSubject())},
				m.cell(),
				{Text: t.Gauge(p.permille(), 1000, opGaugeCells), Role: theme.Accent},
				{Text: ratio(p.done, p.steps)},
				{Text: sizePair(p.moved, p.all)},
				{Text: p.left(op, s.At)},
				{Text: age(op.GetStartedAt(), s.At)},
				{Text: t.Clean(op.GetBy()), Role: theme.Dim},
				{Text: t.Clean(note), Role: role},
			},
			Order: []uint64{0: op.GetId(), 4: p.permille(), 6: p.all},
		})
	}
	return rows
}

// opNote is what an operation waits for, what it does, or why it ended so.
func opNote(op *api.Operation) (string, theme.Role) {
	running := op.GetState() == api.OperationState_OPERATION_STATE_RUNNING
	switch {
	case running && op.GetNote() != "":
		return "waits: " + op.GetNote(), theme.Warn
	case running:
		for _, s := range op.GetSteps() {
			if s.GetState() != "done" && s.GetState() != "waiting" {
				return "VM " + s.GetVm() + ": " + s.GetState(), theme.Plain
			}
		}
	case op.GetState() == api.OperationState_OPERATION_STATE_FAILED:
		return op.GetNote(), theme.Bad
	}
	return op.GetNote(), theme.Plain
}

func opMark(t *theme.Theme, s api.OperationState) mark {
	switch s {
	case api.OperationState_OPERATION_STATE_RUNNING:
		return mark{t.Running, s.Word(), theme.Good}
	case api.OperationState_OPERATION_STATE_DONE:
		return mark{t.Done, s.Word(), theme.Dim}
	case api.OperationState_OPERATION_STATE_FAILED:
		return mark{t.Fail, s.Word(), theme.Bad}
	case api.OperationState_OPERATION_STATE_CANCELLED:
		return mark{t.Stopped, s.Word(), theme.Warn}
	}
	return mark{t.Unknown, s.Word(), theme.Warn}
}

// progress is how far an operation is.
type progress struct {
	done, steps int
	moved, all  uint64
}

func progressOf(op *api.Operation) progress {
	p := progress{steps: len(op.GetSteps())}
	for _, s := range op.GetSteps() {
		p.all += s.GetBytes()
		if s.GetState() == "done" {
			p.done++
			p.moved += s.GetBytes()
		}
	}
	return p
}

func (p progress) permille() uint64 {
	switch {
	case p.steps == 0:
		return 1000
	case p.all == 0:
		return uint64(p.done * 1000 / p.steps)
	}
	return p.moved * 1000 / p.all
}

// left estimates the time left from what was moved so far.
func (p progress) left(op *api.Operation, now time.Time) string {
	if op.GetState() != api.OperationState_OPERATION_STATE_RUNNING {
		return ""
	}
	since := now.Sub(op.GetStartedAt().AsTime())
	if p.moved == 0 || since <= 0 {
		return "?"
	}
	return span(time.Duration(float64(since) * float64(p.all-p.moved) / float64(p.moved)))
}

func newOperations(a *App) *screen {
	t := a.theme
	list := newTablePane(t, "Operations", operationColumns, noOperations, func(s *feed.Snapshot) []table.Row { return operationRows(t, s) })
	list.tail = true
	return &screen{theme: t, crumb: "operations", command: "op ls", panes: []pane{list}, arrange: whole}
}

var stepColumns = []table.Column{
	{Title: "VM", Min: 6, Max: 30},
	{Title: "WHAT", Rank: 4},
	{Title: "STATE"},
	{Title: "FROM", Rank: 1},
	{Title: "TO", Rank: 1},
	{Title: "AT MOST", Right: true, Rank: 3},
	{Title: "STOOD STILL", Right: true, Rank: 2},
	{Title: "TRIES", Right: true, Rank: 5},
	{Title: "NOTE", Rank: 4, Min: 16, Grow: true},
}

func stepRows(t *theme.Theme, op *api.Operation) []table.Row {
	var rows []table.Row
	for i, s := range op.GetSteps() {
		to, down := s.GetTo(), ""
		if to == "" {
			to = "-"
		}
		if s.GetDownMicros() > 0 {
			down = millis(time.Duration(s.GetDownMicros()) * time.Microsecond)
		}
		role := theme.Plain
		switch s.GetState() {
		case "done":
			role = theme.Good
		case "failed":
			role = theme.Bad
		case "waiting":
			role = theme.Dim
		}
		rows = append(rows, table.Row{
			Key: target{aVM, s.GetVm()}.key() + "#" + strconv.Itoa(i),
			Cells: []table.Cell{
				{Text: t.Clean(s.GetVm()), Role: theme.Strong}, {Text: t.Clean(s.GetKind())}, {Text: t.Clean(s.GetState()), Role: role},
				{Text: t.Clean(s.GetFrom())}, {Text: t.Clean(to)}, {Text: size(s.GetBytes())}, {Text: down}, {Text: number(s.GetTries())},
				{Text: t.Clean(s.GetNote())},
			},
			Order: []uint64{5: s.GetBytes(), 6: s.GetDownMicros()},
		})
	}
	return rows
}

func newOperationDetail(a *App, id string) *screen {
	t := a.theme
	of := func(s *feed.Snapshot) *api.Operation {
		n, _ := strconv.ParseUint(id, 10, 64)
		return s.Operation(n)
	}
	facts := &factsPane{theme: t, name: "Operation " + id, facts: func(s *feed.Snapshot) []fact { return opFacts(t, of(s), s.At) }}
	steps := newTablePane(t, "Steps", stepColumns, "nothing to do", func(s *feed.Snapshot) []table.Row { return stepRows(t, of(s)) })
	events := newEventsPane(t, func(e *api.Event) bool { return e.GetFields()["operation"] == id })
	return &screen{
		theme: t, crumb: "operation " + id, command: "op show " + id, about: target{anOperation, id}, focus: 1,
		panes: []pane{facts, steps, events},
		arrange: func(_ *screen, width, height int) []rect {
			top := facts.need(width)
			return stack(width, height, top, min(steps.table.Total()+2, max((height-top)*2/3, 3)), -1)
		},
	}
}

func opFacts(t *theme.Theme, op *api.Operation, now time.Time) []fact {
	if op == nil {
		return []fact{{label: "state", value: "not known any more", role: theme.Warn}}
	}
	m, p := opMark(t, op.GetState()), progressOf(op)
	note, role := opNote(op)
	ended, deadline := "", ""
	if known(op.GetEndedAt()) {
		ended = age(op.GetEndedAt(), now) + " ago"
	}
	if known(op.GetDeadlineAt()) && ended == "" {
		deadline = "in " + span(op.GetDeadlineAt().AsTime().Sub(now))
	}
	return []fact{
		{label: "state", value: m.glyph + " " + m.word, role: m.role, wide: true},
		{label: "note", value: note, role: role, wide: true},
		{label: "reason", value: op.GetReason(), wide: true},
		{label: "what", value: op.GetKind().Word() + " " + op.GetSubject()},
		{label: "by", value: op.GetBy()},
		{label: "progress", value: t.Gauge(p.permille(), 1000, opGaugeCells) + " " + ratio(p.done, p.steps) + " steps"},
		{label: "bytes", value: sizePair(p.moved, p.all)},
		{label: "time left", value: p.left(op, now)},
		{label: "deadline", value: deadline},
		{label: "started", value: age(op.GetStartedAt(), now) + " ago"},
		{label: "ended", value: ended},
	}
}
