package lending

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// Each test is one claim of Cellular Disco's memory balancing (Govil, Teodosiu, Huang, Rosenblum: Cellular Disco, SOSP 1999, section 5) that the code
// follows, in our words above it.

func anyLenders(t *rapid.T) []Lender {
	var out []Lender
	for i := range rapid.IntRange(0, 6).Draw(t, "lenders") {
		l := Lender{Server: ident.ServerID(i + 2), Cell: ident.CellName(rune('a' + rapid.IntRange(0, 3).Draw(t, "cell"))),
			Memory: ident.Bytes(64<<rapid.IntRange(0, 4).Draw(t, "memory")) * ident.MiB}
		l.Held = ident.Bytes(rapid.IntRange(0, 8).Draw(t, "held")) * ident.MiB
		l.Limit = l.Held + ident.Bytes(rapid.IntRange(0, 8).Draw(t, "spare"))*ident.MiB
		l.Owes = l.Limit > 0
		out = append(out, l)
	}
	return out
}

// wants tells who is asked for more than is held there.
func wants(asks []Ask) (out []ident.ServerID) {
	for _, a := range asks {
		if a.Want > max(a.Has, a.Held) {
			out = append(out, a.Server)
		}
	}
	return out
}

// A cell looks for memory when it has less than 16 MB free, lends while it has more than 32 MB, and deals in pieces of 4 MB: of a gigabyte.
func TestPaperThresholds(t *testing.T) {
	if got := Of(ident.GiB); got != (Thresholds{Short: 16 * ident.MiB, Plenty: 32 * ident.MiB, Chunk: 4 * ident.MiB}) {
		t.Errorf("%+v", got)
	}
}

// A borrower keeps 4 MB more than it uses at each cell that it prefers: it asks each where it has less, for that much, and none where it has it.
func TestPaperAChunkFromEachPreferredCellThatHasLess(t *testing.T) {
	chunk := Of(ident.GiB).Chunk
	lenders := []Lender{
		{Server: 2, Cell: "a", Memory: ident.GiB},
		{Server: 3, Cell: "a", Memory: ident.GiB, Limit: chunk, Owes: true},
		{Server: 4, Cell: "a", Memory: ident.GiB, Limit: 2*chunk - 1, Held: chunk, Owes: true},
	}
	asks := Plan(0, Borrower{Short: true, Out: ident.GiB, Cells: []ident.CellName{"a"}, Fits: true}, lenders)
	if got := wants(asks); !slices.Equal(got, []ident.ServerID{2, 4}) {
		t.Errorf("%v are asked for more: %+v", got, asks)
	}
	if asks[0].Want != chunk {
		t.Errorf("%v is asked for, want %v", asks[0].Want, chunk)
	}
}

// Who has enough memory borrows none.
func TestPaperNobodyBorrowsWithoutNeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Borrower{Cells: []ident.CellName{"a"}, Fits: rapid.Bool().Draw(t, "fits"), Short: rapid.Bool().Draw(t, "short")}
		if !b.Short {
			b.Out = ident.Bytes(rapid.IntRange(0, 64).Draw(t, "out")) * ident.MiB
		}
		if got := wants(Plan(0, b, anyLenders(t))); len(got) > 0 {
			t.Fatalf("%v are asked for more", got)
		}
	})
}

// A cell lends only while it has more than its upper threshold free, and never goes below that by lending.
func TestPaperLendsWhileItHasPlenty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		used := ident.Bytes(rapid.IntRange(0, 1024).Draw(t, "used")) * ident.MiB
		l, plenty := NewLedger(ident.GiB, ""), Of(ident.GiB).Plenty
		l.Own(0, used, 0)
		for n := range rapid.IntRange(1, 300).Draw(t, "questions") {
			had := ident.GiB - used - min(ident.GiB-used, l.Lent())
			k := Key{VM: ident.VMID(n % 5)}
			var has ident.Bytes
			if i, found := l.find(k); found {
				has = l.loans[i].Limit
			}
			limit, _ := l.Renew(ident.Micros(n), k, uint64(n+1), has, has, ident.GiB)
			if limit > has && ident.GiB-used-l.Lent() < plenty {
				t.Fatalf("%v are free after %v were lent", ident.GiB-used-l.Lent(), limit-has)
			}
			if had >= plenty+Of(ident.GiB).Chunk && limit == has {
				t.Fatalf("%v were free, and nothing was lent", had)
			}
		}
	})
}

// A virtual machine whose memory fits its cell never comes to depend on another one because it borrowed.
func TestPaperAVMThatFitsStaysInItsCell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lenders := anyLenders(t)
		b := Borrower{Short: true, Out: ident.Bytes(rapid.IntRange(1, 999).Draw(t, "out")) * ident.MiB, Cells: []ident.CellName{"a"}, Fits: true}
		for _, a := range Plan(0, b, lenders) {
			i := slices.IndexFunc(lenders, func(l Lender) bool { return l.Server == a.Server })
			if lenders[i].Cell != "a" && a.Want > 0 {
				t.Fatalf("server %d of cell %s is asked for %v", a.Server, lenders[i].Cell, a.Want)
			}
		}
	})
}

// One that does not fit borrows from the cells that it depends on anyway first, and from others only when these have no more.
func TestPaperPreferredCellsFirst(t *testing.T) {
	b := Borrower{Short: true, Out: ident.GiB, Cells: []ident.CellName{"a"}}
	lenders := []Lender{{Server: 2, Cell: "b", Memory: ident.GiB}, {Server: 3, Cell: "a", Memory: ident.GiB}}
	if got := wants(Plan(0, b, lenders)); !slices.Equal(got, []ident.ServerID{3}) {
		t.Errorf("%v are asked first", got)
	}
	lenders[1].Asked = 1 // and had nothing
	if got := wants(Plan(2, b, lenders)); !slices.Equal(got, []ident.ServerID{2}) {
		t.Errorf("%v are asked when the preferred cell has nothing", got)
	}
}

// A lender that runs short gets its memory back on demand.
func TestPaperLentMemoryComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLedger(ident.GiB, "")
		l.Own(0, 0, 0)
		want := ident.Bytes(rapid.IntRange(1, 900).Draw(t, "want")) * ident.MiB
		var has ident.Bytes
		for n := uint64(1); n < 100; n++ {
			has, _ = l.Renew(ident.Micros(n), Key{VM: 1}, n, has, has, want)
		}
		if has == 0 {
			t.Fatal("nothing was lent")
		}
		used := ident.Bytes(rapid.IntRange(0, 1024).Draw(t, "used")) * ident.MiB
		l.Own(second, used, ident.GiB-used)
		limit, _ := l.Renew(second, Key{VM: 1}, 100, has, has, has)
		if limit != 0 {
			t.Fatalf("all is wanted, and the borrower may go on with %v", limit)
		}
		l.Renew(second, Key{VM: 1}, 101, 0, 0, 0)
		if l.Lent() != 0 {
			t.Fatalf("it was given back, and %v counts as lent", l.Lent())
		}
	})
}
