package table

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/tui/theme"
)

var columns = []Column{
	{Title: "NAME", Min: 4},
	{Title: "STATE"},
	{Title: "PID", Right: true, Rank: 2},
	{Title: "NOTES", Min: 5, Rank: 1, Grow: true},
}

func TestLayout(t *testing.T) {
	natural := []int{10, 8, 5, 20}
	for _, c := range []struct {
		width int
		want  []int
	}{
		// 2 of margin, 3 gaps of 2: all fit in 51, what is more goes to NOTES.
		{60, []int{10, 8, 5, 29}},
		{51, []int{10, 8, 5, 20}},
		// What can be truncated is, the widest surplus first.
		{41, []int{9, 8, 5, 11}},
		{34, []int{6, 8, 5, 7}},
		// Below that columns go, the highest rank first; what they leave is used.
		{29, []int{7, 8, -1, 8}},
		{20, []int{8, 8, -1, -1}},
		// The last ones are cut at any price.
		{12, []int{4, 4, -1, -1}},
		{3, []int{1, -1, -1, -1}},
		{0, []int{-1, -1, -1, -1}},
	} {
		if got := Layout(columns, natural, c.width); !slices.Equal(got, c.want) {
			t.Errorf("width %d: %v, want %v", c.width, got, c.want)
		}
	}
}

// TestLayoutFits: whatever the columns, the line fits the width, and rank 0 goes last.
func TestLayoutFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "columns")
		cols, natural := make([]Column, n), make([]int, n)
		for i := range cols {
			cols[i] = Column{
				Min: rapid.IntRange(0, 9).Draw(t, "min"), Max: rapid.IntRange(0, 20).Draw(t, "max"),
				Rank: rapid.IntRange(0, 3).Draw(t, "rank"), Grow: rapid.Bool().Draw(t, "grow"),
			}
			natural[i] = rapid.IntRange(0, 40).Draw(t, "natural")
		}
		width := rapid.IntRange(0, 120).Draw(t, "width")
		widths := Layout(cols, natural, width)
		if total(widths) > max(width-margin, 0) {
			t.Fatalf("%v is wider than %d", widths, width)
		}
		th := theme.New(false, false)
		row := Row{Cells: make([]Cell, n)}
		for i := range row.Cells {
			row.Cells[i].Text = strings.Repeat("界", i)
		}
		for _, mark := range []Mark{Unmarked, Here, Away} {
			if got := theme.Width(Line(th, cols, widths, row, mark, width)); got != width {
				t.Fatalf("a line of %d cells, not %d", got, width)
			}
		}
	})
}

func TestLine(t *testing.T) {
	th := theme.New(true, false)
	row := Row{Cells: []Cell{{Text: "a-very-long-name"}, {Text: "* live"}, {Text: "42"}, {Text: "leader"}}}
	widths := []int{8, 6, 5, 10}
	for mark, want := range map[Mark]string{
		Unmarked: "  a-very-~  * live     42  leader    ",
		Here:     "> a-very-~  * live     42  leader    ",
		Away:     "- a-very-~  * live     42  leader    ",
	} {
		if got := Line(th, columns, widths, row, mark, 37); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	// A row shorter than the columns is filled up.
	if got := Line(th, columns, widths, Row{}, Unmarked, 37); got != theme.Spaces(37) {
		t.Errorf("%q", got)
	}
	coloured := theme.New(true, true)
	row.Cells[1].Role = theme.Bad
	if got := Line(coloured, columns, widths, row, Unmarked, 37); !strings.Contains(got, "\x1b[1;31m* live\x1b[0m") {
		t.Errorf("%q", got)
	}
	if got := Line(coloured, columns, widths, row, Here, 37); !strings.HasPrefix(got, "\x1b[7m> a-very") || strings.Contains(got, "31m") {
		t.Errorf("%q", got)
	}
}

func rows(names ...string) []Row {
	out := make([]Row, len(names))
	for i, n := range names {
		out[i] = Row{Key: n, Cells: []Cell{{Text: n}, {Text: []string{"live", "dead"}[i%2]}, {Text: fmt.Sprint(100 - i)}, {Text: "x"}},
			Order: []uint64{2: uint64(100 - i)}}
	}
	return out
}

func newTable(height int, names ...string) *Table {
	tb := New(theme.New(true, false), columns)
	tb.SetSize(50, height)
	tb.SetRows(rows(names...))
	return tb
}

func current(tb *Table) string {
	r, _ := tb.Current()
	return r.Key
}

func TestCursorStaysOnItsRow(t *testing.T) {
	tb := newTable(4, "a", "b", "c", "d", "e")
	tb.Move(2)
	tb.SetRows(rows("0", "1", "a", "c"))
	if current(tb) != "c" {
		t.Errorf("on %q", current(tb))
	}
	// Its row is gone: it stays at the place.
	tb.SetRows(rows("0", "1", "a"))
	if current(tb) != "a" {
		t.Errorf("on %q", current(tb))
	}
	tb.SetRows(nil)
	if _, ok := tb.Current(); ok || !tb.AtEnd() {
		t.Error("a row of none")
	}
	tb.SetRows(rows("z"))
	if current(tb) != "z" {
		t.Errorf("on %q", current(tb))
	}
}

func TestScroll(t *testing.T) {
	tb := newTable(4, "a", "b", "c", "d", "e", "f", "g")
	names := func() string {
		out := ""
		for _, l := range tb.View(true)[1:] {
			out += strings.Fields(strings.TrimLeft(l, "> "))[0]
		}
		return out
	}
	for _, c := range []struct {
		move func()
		want string
	}{
		{func() {}, "abc"}, {func() { tb.Move(3) }, "bcd"}, {tb.Last, "efg"}, {func() { tb.Move(-1) }, "efg"}, {func() { tb.MovePage(-1) }, "cde"},
		{tb.First, "abc"}, {func() { tb.MovePage(1) }, "bcd"}, {func() { tb.Move(99) }, "efg"},
	} {
		c.move()
		if got := names(); got != c.want {
			t.Errorf("sees %s, want %s", got, c.want)
		}
	}
	tb.SetSize(50, 20)
	if got := len(tb.View(false)); got != 20 {
		t.Errorf("%d lines", got)
	}
	for h := range 3 {
		tb.SetSize(10, h)
		if got := len(tb.View(true)); got != h {
			t.Errorf("%d lines of %d", got, h)
		}
	}
}

func TestSort(t *testing.T) {
	tb := newTable(9, "b", "a", "c")
	order := func() string {
		out := ""
		for _, r := range tb.shown {
			out += r.Key
		}
		return out
	}
	tb.SortNext()
	if order() != "abc" || !strings.Contains(tb.View(true)[0], "NAME^") {
		t.Errorf("by name: %s under %q", order(), tb.View(true)[0])
	}
	tb.SortReverse()
	if order() != "cba" || !strings.Contains(tb.View(true)[0], "NAMEv") {
		t.Errorf("reversed: %s", order())
	}
	tb.SortNext()
	if order() != "abc" {
		t.Errorf("by state: %s", order())
	}
	// 98, 99, 100 are numbers, not texts.
	tb.SortNext()
	if order() != "cab" {
		t.Errorf("by pid: %s", order())
	}
	tb.SortNext()
	tb.SortNext()
	if order() != "bac" {
		t.Errorf("as given: %s", order())
	}
}

func TestFilter(t *testing.T) {
	row := Row{Cells: []Cell{{Text: "web-1"}, {Text: "● live"}, {Text: "7001"}, {Text: "127.0.0.1:7001 Leader"}}, Search: "cell:a"}
	for text, want := range map[string]bool{
		"": true, "  ": true, "web": true, "WEB leader": true, "web db": false, "!db": true, "!web": false, "state:live": true, "state:web": false,
		"!state:dead live": true, "127.0.0.1:7001": true, "cell:a": true, "cell:b": false, "!": true, ":": true, "state:": true, "notes:leader": true,
	} {
		if got := ParseFilter(text).Match(columns, row); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
