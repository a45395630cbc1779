package tui

import (
	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/table"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// mark is a state as it is drawn: never by colour alone.
type mark struct {
	glyph, word string
	role        theme.Role
}

func (m mark) cell() table.Cell { return table.Cell{Text: m.glyph + " " + m.word, Role: m.role} }

func serverMark(t *theme.Theme, s api.ServerState) mark {
	switch s {
	case api.ServerState_SERVER_STATE_LIVE:
		return mark{t.Live, s.Word(), theme.Good}
	case api.ServerState_SERVER_STATE_DEAD:
		return mark{t.Dead, s.Word(), theme.Bad}
	case api.ServerState_SERVER_STATE_JOINING:
		return mark{t.Joining, s.Word(), theme.Warn}
	}
	return mark{t.Unknown, s.Word(), theme.Warn}
}

func cellMark(t *theme.Theme, s api.CellState) mark {
	switch s {
	case api.CellState_CELL_STATE_LIVE:
		return mark{t.Live, s.Word(), theme.Good}
	case api.CellState_CELL_STATE_DEGRADED:
		return mark{t.Degraded, s.Word(), theme.Warn}
	case api.CellState_CELL_STATE_DEAD:
		return mark{t.Dead, s.Word(), theme.Bad}
	}
	return mark{t.Unknown, s.Word(), theme.Warn}
}

func vmMark(t *theme.Theme, vm *api.VM) mark {
	s := vm.GetState()
	switch s {
	case api.VMState_VM_STATE_STARTING:
		return mark{t.Starting, s.Word(), theme.Warn}
	case api.VMState_VM_STATE_RUNNING:
		return mark{t.Running, s.Word(), theme.Good}
	case api.VMState_VM_STATE_PAUSED:
		return mark{t.Stopped, s.Word(), theme.Warn}
	case api.VMState_VM_STATE_STOPPED:
		return mark{t.Stopped, s.Word(), theme.Dim}
	case api.VMState_VM_STATE_EXITED:
		if vm.GetExitStatus() != 0 {
			return mark{t.Fail, s.Word(), theme.Bad}
		}
		return mark{t.Done, s.Word(), theme.Dim}
	case api.VMState_VM_STATE_LOST:
		return mark{t.Lost, s.Word(), theme.Bad}
	case api.VMState_VM_STATE_FAILED:
		return mark{t.Fail, s.Word(), theme.Bad}
	}
	return mark{t.Unknown, s.Word(), theme.Warn}
}

// yesNo is a boolean with the role of its bad answer.
func yesNo(v bool, no theme.Role) table.Cell {
	if v {
		return table.Cell{Text: "yes"}
	}
	return table.Cell{Text: "no", Role: no}
}
