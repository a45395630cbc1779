package table

import (
	"strings"

	"github.com/cellvisor/cellvisor/tui/theme"
)

// Cell is one field of a row: cleaned text and the role it plays.
type Cell struct {
	Text string
	Role theme.Role
}

// Row is one line. Key names it among the table's rows and stays the same while its cells change.
type Row struct {
	Key   string
	Cells []Cell
	// Search holds further words that a filter finds the row by.
	Search string
	// Order sorts the row where the texts of its cells would not: one number a column. Equal numbers, or none, leave it to the text.
	Order []uint64
}

// Mark says how the cursor stands to a row.
type Mark uint8

// The marks.
const (
	Unmarked Mark = iota
	// Here is the cursor of the pane that has the keys, Away that of another pane.
	Here
	Away
)

// Line renders a row to the sum of the widths, margin and gaps included, padded to width.
func Line(t *theme.Theme, columns []Column, widths []int, row Row, mark Mark, width int) string {
	var b strings.Builder
	b.Grow(width + 64)
	// Roles do not nest, so the row under the cursor is painted as a whole.
	whole := mark != Unmarked
	used := margin
	if width < margin {
		return theme.Spaces(width)
	}
	b.WriteString([...]string{Unmarked: " ", Here: t.Cursor, Away: t.Dot}[mark] + " ")
	first := true
	for i, c := range columns {
		if widths[i] < 0 {
			continue
		}
		if !first {
			b.WriteString(theme.Spaces(gap))
			used += gap
		}
		first = false
		var cell Cell
		if i < len(row.Cells) {
			cell = row.Cells[i]
		}
		text := fit(t, c, cell.Text, widths[i])
		used += widths[i]
		if whole {
			b.WriteString(text)
		} else {
			b.WriteString(t.Paint(cell.Role, text))
		}
	}
	b.WriteString(theme.Spaces(width - used))
	switch mark {
	case Here:
		return t.Paint(theme.Selected, b.String())
	case Away:
		return t.Paint(theme.SelectedAway, b.String())
	}
	return b.String()
}

// Header renders the titles; the column that the rows are ordered by is marked with the direction.
func Header(t *theme.Theme, columns []Column, widths []int, sorted int, down bool, width int) string {
	cells := make([]Cell, len(columns))
	for i, c := range columns {
		cells[i] = Cell{Text: c.Title}
		if i == sorted {
			arrow := t.Up
			if down {
				arrow = t.Down
			}
			cells[i].Text = c.Title + arrow
		}
	}
	return t.Paint(theme.Dim, Line(t, columns, widths, Row{Cells: cells}, Unmarked, width))
}

func fit(t *theme.Theme, c Column, text string, width int) string {
	if c.Right {
		return t.FitRight(text, width)
	}
	return t.Fit(text, width)
}
