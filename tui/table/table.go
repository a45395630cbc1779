package table

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/tui/theme"
)

// Table keeps rows, the cursor and what is seen of them. The zero value is not usable; see New. It is owned by one goroutine.
type Table struct {
	theme   *theme.Theme
	columns []Column
	// all holds the rows as given, shown those that pass the filter, in order.
	all, shown []Row
	filter     Filter
	sorted     int
	down       bool
	// natural is the widest content that each column ever had: columns do not jump about while values change.
	natural []int
	widths  []int

	cursor, top   int
	width, height int
	// Empty is the line shown when there are no rows at all.
	Empty string
}

// New returns a table without rows. Rows are in the order given until the user chooses a column.
func New(t *theme.Theme, columns []Column) *Table {
	tb := &Table{theme: t, columns: columns, sorted: -1, natural: make([]int, len(columns))}
	tb.resetNatural()
	return tb
}

// SetSize sets the size in cells, the header line included.
func (t *Table) SetSize(width, height int) {
	if width != t.width {
		t.width = width
		t.resetNatural()
		t.measure()
	}
	t.height = height
	t.clamp()
}

// SetRows replaces the rows. The cursor stays on the row of the same key; if that is gone, on its place.
func (t *Table) SetRows(rows []Row) {
	t.all = rows
	t.measure()
	t.refresh()
}

// SetFilter shows only rows that pass.
func (t *Table) SetFilter(f Filter) {
	t.filter = f
	t.refresh()
}

// Filter returns the filter in use.
func (t *Table) Filter() Filter { return t.filter }

// SortNext orders by the next visible column; after the last one, as given again.
func (t *Table) SortNext() {
	t.down = false
	for t.sorted++; t.sorted < len(t.columns); t.sorted++ {
		if t.widths[t.sorted] > 0 {
			// Room for the mark of the direction.
			t.natural[t.sorted] = max(t.natural[t.sorted], theme.Width(t.columns[t.sorted].Title)+1)
			t.widths = Layout(t.columns, t.natural, t.width)
			t.refresh()
			return
		}
	}
	t.sorted = -1
	t.refresh()
}

// SortReverse turns the order about.
func (t *Table) SortReverse() {
	if t.sorted >= 0 {
		t.down = !t.down
		t.refresh()
	}
}

// Len is the number of rows that pass the filter, Total that of all rows.
func (t *Table) Len() int   { return len(t.shown) }
func (t *Table) Total() int { return len(t.all) }

// Current returns the row under the cursor.
func (t *Table) Current() (Row, bool) {
	if t.cursor < 0 || t.cursor >= len(t.shown) {
		return Row{}, false
	}
	return t.shown[t.cursor], true
}

// Select puts the cursor on the row of that key, if it is shown.
func (t *Table) Select(key string) bool {
	i := slices.IndexFunc(t.shown, func(r Row) bool { return r.Key == key })
	if i < 0 {
		return false
	}
	t.cursor = i
	t.clamp()
	return true
}

// ClickRow puts the cursor on the row in line y of those that are seen, and says whether it was there already.
func (t *Table) ClickRow(y int) (again bool) {
	i := t.top + y
	if y < 0 || y >= t.visible() || i >= len(t.shown) {
		return false
	}
	again, t.cursor = i == t.cursor, i
	return again
}

// Move moves the cursor by rows and stops at the ends.
func (t *Table) Move(rows int) {
	t.cursor += rows
	t.clamp()
}

// MovePage moves by a share of the visible rows: 1 is a page down, -1 a page up.
func (t *Table) MovePage(pages int) { t.Move(pages * max(t.visible(), 1)) }

// First and Last move to the ends.
func (t *Table) First() { t.Move(-len(t.shown)) }
func (t *Table) Last()  { t.Move(len(t.shown)) }

// AtEnd says whether the cursor is on the last row, or there is none.
func (t *Table) AtEnd() bool { return t.cursor >= len(t.shown)-1 }

// visible is the number of rows that fit below the header.
func (t *Table) visible() int { return max(t.height-1, 0) }

// refresh applies filter and order, and keeps the cursor on its row.
func (t *Table) refresh() {
	current, had := t.Current()
	t.shown = t.shown[:0]
	for _, r := range t.all {
		if t.filter.Match(t.columns, r) {
			t.shown = append(t.shown, r)
		}
	}
	t.order()
	if !had || !t.Select(current.Key) {
		t.clamp()
	}
}

func (t *Table) order() {
	c := t.sorted
	if c < 0 {
		return
	}
	slices.SortStableFunc(t.shown, func(a, b Row) int {
		var n int
		if c < len(a.Order) && c < len(b.Order) {
			n = cmp.Compare(a.Order[c], b.Order[c])
		}
		if n == 0 && c < len(a.Cells) && c < len(b.Cells) {
			n = cmp.Compare(a.Cells[c].Text, b.Cells[c].Text)
		}
		if t.down {
			n = -n
		}
		return n
	})
}

func (t *Table) clamp() {
	t.cursor = max(min(t.cursor, len(t.shown)-1), 0)
	visible := t.visible()
	t.top = min(t.top, t.cursor)
	if visible > 0 && t.cursor >= t.top+visible {
		t.top = t.cursor - visible + 1
	}
	// No blank lines at the bottom while rows are hidden above.
	t.top = max(min(t.top, len(t.shown)-visible), 0)
}

func (t *Table) resetNatural() {
	for i, c := range t.columns {
		t.natural[i] = theme.Width(c.Title)
	}
	t.widths = Layout(t.columns, t.natural, t.width)
}

func (t *Table) measure() {
	changed := false
	for _, r := range t.all {
		for i := range min(len(r.Cells), len(t.natural)) {
			if w := theme.Width(r.Cells[i].Text); w > t.natural[i] {
				t.natural[i] = w
				changed = true
			}
		}
	}
	if changed {
		t.widths = Layout(t.columns, t.natural, t.width)
	}
}

// View returns the header and the visible rows. focused says whether the keys go to this table.
func (t *Table) View(focused bool) []string {
	lines := make([]string, 0, t.height)
	if t.height <= 0 {
		return lines
	}
	lines = append(lines, Header(t.theme, t.columns, t.widths, t.sorted, t.down, t.width))
	if len(t.shown) == 0 && t.height > 1 {
		text := t.Empty
		if len(t.all) > 0 {
			text = "nothing matches " + t.theme.Clean(t.filter.String()) + " (esc clears the filter)"
		}
		lines = append(lines, t.theme.Paint(theme.Dim, t.theme.Fit("  "+text, t.width)))
	}
	for i := t.top; i < len(t.shown) && len(lines) < t.height; i++ {
		mark := Unmarked
		if i == t.cursor {
			mark = Away
			if focused {
				mark = Here
			}
		}
		lines = append(lines, Line(t.theme, t.columns, t.widths, t.shown[i], mark, t.width))
	}
	for len(lines) < t.height {
		lines = append(lines, theme.Spaces(t.width))
	}
	return lines
}
