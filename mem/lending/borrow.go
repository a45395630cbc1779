package lending

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Lender is another server as a borrower knows it.
type Lender struct {
	Server ident.ServerID
	Cell   ident.CellName
	Memory ident.Bytes
	Limit  ident.Bytes // its last answer; 0: none
	Held   ident.Bytes
	Asked  ident.Micros // when it was asked last; 0: never
	Closed bool         // nothing may be there: it is about to leave, or has the VM's replica
	Owes   bool         // it may think that something is held or wanted there: the last question was not "nothing", or was not answered
}

// Answered takes in a lender's answer to the last question, and returns how much has to leave it.
func (l *Lender) Answered(a Ask, limit ident.Bytes) (excess ident.Bytes) {
	l.Limit = limit
	l.Owes = a.Has != 0 || a.Want != 0 || a.Held != 0 || limit != 0
	return l.Held - min(l.Held, limit)
}

// Borrower is a part that may borrow.
type Borrower struct {
	Key
	Short  bool             // its limit here keeps it from holding what it uses
	Out    ident.Bytes      // of its pages are in its paging file: that much it could put elsewhere
	Cells  []ident.CellName // that its VM depends on anyway
	Fits   bool             // its VM's memory fits the servers of these cells
	Canary string
}

// Fits tells whether a VM's memory fits the servers of the cells that it depends on.
func Fits(vm ident.Bytes, cellsMemory ident.Bytes) bool { return vm <= cellsMemory }

// Ask is a question to a lender.
type Ask struct {
	Server          ident.ServerID
	Has, Held, Want ident.Bytes // the limit it goes by; what it holds; what it would like to hold
}

// MayBorrow tells whether a part may hold memory in a cell.
func (b *Borrower) MayBorrow(cell ident.CellName) bool {
	return slices.Contains(b.Cells, cell) || !b.Fits || b.Canary == "foreign-cell"
}

// Plan says whom to ask for what now. Lenders of the VM's own cells come first; others are asked only for a VM that does not fit these, and only while
// none of the preferred gives more. Whoever holds something for the part is asked in any case, which keeps the loan.
func Plan(now ident.Micros, b Borrower, lenders []Lender) (out []Ask) {
	sorted := slices.SortedFunc(slices.Values(lenders), func(x, y Lender) int {
		return cmp.Or(compareBool(slices.Contains(b.Cells, y.Cell), slices.Contains(b.Cells, x.Cell)), cmp.Compare(x.Server, y.Server))
	})
	left := b.Out
	hope := false // a preferred lender may give more
	for _, l := range sorted {
		preferred := slices.Contains(b.Cells, l.Cell)
		chunk := Of(l.Memory).Chunk
		spare := l.Limit - min(l.Limit, l.Held)
		want := l.Held
		switch {
		case l.Closed || !b.MayBorrow(l.Cell) || !preferred && hope && l.Held == 0:
			want = 0
		case b.Short && left > 0 && spare < chunk:
			want = max(l.Limit, l.Held) + min(step(chunk, l.Held), left)
		case b.Short && left > 0:
			want = l.Limit
		}
		left -= min(left, max(want, l.Held)-l.Held)
		refused := l.Asked != 0 && l.Limit <= l.Held
		hope = hope || preferred && b.Short && !refused && !l.Closed
		switch {
		case l.Limit == 0 && l.Held == 0 && want == 0 && !l.Owes:
		case l.Limit == 0 && l.Held == 0 && want > 0 && l.Asked != 0 && now-l.Asked < AskAgain: // it had nothing
		default:
			out = append(out, Ask{Server: l.Server, Has: l.Limit, Held: l.Held, Want: want})
		}
	}
	return out
}

func compareBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}
