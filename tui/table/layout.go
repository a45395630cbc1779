// Package table is a list of rows in columns with a cursor: what most screens of the console are made of.
//
// It is three things that are tested apart: Layout decides which columns fit a width and how wide each is (pure arithmetic), Line renders
// one row into exactly that width (pure text), and Table keeps cursor, scroll position, filter and order over rows that change under it.
//
// Invariants of Table:
//   - The cursor is on a row whenever there is one, and follows that row by its key, not by its position.
//   - View returns exactly as many lines as its height, each exactly as wide as its width.
package table

// Column describes one column.
type Column struct {
	Title string
	// Min is the width below which the column is of no use; it is truncated down to it before any column is dropped. 0: never truncated.
	Min int
	// Max bounds the width, 0 for none.
	Max int
	// Rank orders dropping: the highest rank goes first, rank 0 stays always.
	Rank int
	// Right aligns the text at the right.
	Right bool
	// Grow lets the column take the width that is left over.
	Grow bool
}

// gap is the number of blank cells between two columns.
const gap = 2

// margin holds the cursor mark at the left of each row.
const margin = 2

// Layout returns the width of each column, -1 for one that is dropped. natural holds each column's widest content, title included.
func Layout(columns []Column, natural []int, width int) []int {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = natural[i]
		if c.Max > 0 {
			widths[i] = min(widths[i], c.Max)
		}
	}
	room := width - margin
	for total(widths) > room {
		if shrink(columns, widths, total(widths)-room) {
			break
		}
		if !dropOne(columns, widths) {
			shrinkAll(columns, widths)
			break
		}
	}
	squeeze(columns, widths, room)
	grow(columns, widths, room)
	return widths
}

// total is the width of the columns that are there, gaps included.
func total(widths []int) int {
	sum := -gap
	for _, w := range widths {
		if w >= 0 {
			sum += w + gap
		}
	}
	return max(sum, 0)
}

// shrink takes excess cells from columns that can be truncated, the widest surplus first. If that is not enough it changes nothing.
func shrink(columns []Column, widths []int, excess int) bool {
	slack := 0
	for i, c := range columns {
		if widths[i] > c.Min && c.Min > 0 {
			slack += widths[i] - c.Min
		}
	}
	if slack < excess {
		return false
	}
	for ; excess > 0; excess-- {
		widest := -1
		for i, c := range columns {
			if c.Min > 0 && widths[i] > c.Min && (widest < 0 || widths[i]-c.Min > widths[widest]-columns[widest].Min) {
				widest = i
			}
		}
		widths[widest]--
	}
	return true
}

// shrinkAll takes columns down to what they need at least.
func shrinkAll(columns []Column, widths []int) {
	for i, c := range columns {
		if c.Min > 0 {
			widths[i] = min(widths[i], c.Min)
		}
	}
}

// dropOne drops the rightmost of the columns with the highest rank.
func dropOne(columns []Column, widths []int) bool {
	worst := -1
	for i, c := range columns {
		if widths[i] >= 0 && c.Rank > 0 && (worst < 0 || c.Rank >= columns[worst].Rank) {
			worst = i
		}
	}
	if worst < 0 {
		return false
	}
	widths[worst] = -1
	return true
}

// squeeze cuts what stays at any price to the room that there is, from the right.
func squeeze(columns []Column, widths []int, room int) {
	for i := len(columns) - 1; i >= 0 && total(widths) > room; i-- {
		if widths[i] < 0 {
			continue
		}
		cut := min(total(widths)-room, widths[i])
		widths[i] -= cut
		if widths[i] == 0 {
			widths[i] = -1
		}
	}
}

// grow gives what is left over to the growing columns, evenly.
func grow(columns []Column, widths []int, room int) {
	growing := 0
	for i, c := range columns {
		if c.Grow && widths[i] >= 0 {
			growing++
		}
	}
	left := room - total(widths)
	for i, c := range columns {
		if left > 0 && c.Grow && widths[i] >= 0 {
			share := left / growing
			widths[i] += share
			left -= share
			growing--
		}
	}
}
