package locality

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// asked is a request of part from for a page that holder has, at the directory at part at.
func asked(at, from, holder ident.Part, moves uint32) *mem.Traffic {
	return &mem.Traffic{Kind: mem.Asked, At: at, Peer: from, Holder: holder, Page: 512, Moves: moves}
}

// Two parts that pass pages to each other get the directory from a third one, when that has cost as much as going does.
func TestADirectoryGoesToWhoUsesIt(t *testing.T) {
	o := NewObserver(Auto, 1)
	for i := range 10 * homePrice {
		o.Note(asked(2, ident.Part(i%2), ident.Part(1-i%2), 0))
		if page, to, ok := o.Rehome(); ok {
			if page != 512 || to > 1 || i+1 < homePrice || i+1 > 2*homePrice {
				t.Errorf("page %d goes to %v after %d requests", page, to, i+1)
			}
			return
		}
	}
	t.Error("it stays where nobody is")
}

// A directory that is at one of the two saves nothing by going to the other one, and one that others ask as often goes nowhere.
func TestADirectoryStaysWhereItIsOfUse(t *testing.T) {
	o := NewObserver(Auto, 1)
	for i := range 2000 {
		o.Note(asked(0, 1, 0, 0))
		o.Note(asked(0, 0, 1, 0))
		if i%2 == 0 {
			o.Note(asked(0, 1, 1, 0)) // first touches
			o.Note(asked(0, 0, 0, 0))
		}
		if _, to, ok := o.Rehome(); ok {
			t.Fatalf("after %d rounds it goes to %v", i, to)
		}
	}
	for _, p := range []Policy{Fetch, Replicate, Move} {
		if p.Rehomes() {
			t.Errorf("%v moves directories", p)
		}
	}
}

// Where those who use it change all the time, it goes less and less often.
func TestADirectoryThatGoesToAndFroGrowsPatient(t *testing.T) {
	parts := []*Observer{NewObserver(Auto, 1), NewObserver(Auto, 1)}
	at, moves := ident.Part(0), uint32(0)
	var first uint32
	for i := range 40_000 {
		user := ident.Part(i / 50 % 2) // fifty first touches each
		parts[at].Note(asked(at, user, user, moves))
		if _, to, ok := parts[at].Rehome(); ok {
			at, moves = to, moves+1
		}
		if i == 4000 {
			first = moves
		}
	}
	if first < 2 || first > 20 || moves > 3*first {
		t.Errorf("%d moves in 4,000 requests, %d in 40,000", first, moves)
	}
}

func TestNotingRequestsAllocatesNothing(t *testing.T) {
	o := NewObserver(Auto, 1)
	page := ident.PageNo(0)
	if n := testing.AllocsPerRun(10_000, func() {
		page += 512
		o.Note(&mem.Traffic{Kind: mem.Asked, At: 1, Page: page % (1 << 20)})
		o.Age()
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
