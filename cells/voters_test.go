package cells

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// pool builds candidates from words such as "1a" (server 1 in cell a), "2bv" (votes now), "3b-" (dead), "4w" (a witness), "5cL" (leads).
func pool(words ...string) []Candidate {
	var out []Candidate
	for _, w := range words {
		c := Candidate{ID: ident.ServerID(w[0] - '0'), Cell: ident.CellName(w[1:2]), Alive: true, Witness: w[1] == 'w'}
		for _, f := range w[2:] {
			switch f {
			case 'v':
				c.Voter = true
			case '-':
				c.Alive = false
			case 'L':
				c.Leader, c.Voter = true, true
			}
		}
		out = append(out, c)
	}
	return out
}

func TestChooseVoters(t *testing.T) {
	for _, tt := range []struct {
		name string
		pool []Candidate
		want []ident.ServerID
	}{
		{"nobody", nil, nil},
		{"one", pool("1a"), []ident.ServerID{1}},
		{"two: one votes, so that the other may fail", pool("1a", "2b"), []ident.ServerID{1}},
		{"three cells", pool("1a", "2b", "3c"), []ident.ServerID{1, 2, 3}},
		{"two cells and a witness", pool("1a", "2b", "3w"), []ident.ServerID{1, 2, 3}},
		{"the witness votes, and each cell", pool("1a", "2a", "3b", "4b", "5w"), []ident.ServerID{1, 2, 3, 4, 5}},
		{"four: an odd number, one a cell first", pool("1a", "2a", "3b", "4c"), []ident.ServerID{1, 3, 4}},
		{"six over three cells: five at most", pool("1a", "2a", "3b", "4b", "5c", "6c"), []ident.ServerID{1, 2, 3, 4, 5}},
		{"seven cells: seven", pool("1a", "2b", "3c", "4d", "5e", "6f", "7g", "8g"), []ident.ServerID{1, 2, 3, 4, 5, 6, 7}},
		{"a dead voter gives way to a live server", pool("1a-v", "2a", "3bv", "4cv"), []ident.ServerID{2, 3, 4}},
		{"without one to take over it stays", pool("1a-v", "2bv", "3cv"), []ident.ServerID{1, 2, 3}},
		{"one that comes back does not push others out", pool("1a", "2av", "3bv", "4cv"), []ident.ServerID{2, 3, 4}},
		{"the leader votes", pool("1a", "2b", "3cL", "4c"), []ident.ServerID{1, 2, 3}},
	} {
		if got := ChooseVoters(tt.pool); !slices.Equal(got, tt.want) {
			t.Errorf("%s: voters are %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Whatever the cluster: an odd number within the bounds, live ones before dead ones, no cell favoured among the live, no order of the
// candidates preferred, and a choice that is made stays.
func TestChooseVotersProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "n")
		var in []Candidate
		for i := range n {
			in = append(in, Candidate{
				ID: ident.ServerID(i + 1), Cell: ident.CellName(fmt.Sprint(rapid.IntRange(0, 7).Draw(t, "cell"))),
				Alive: rapid.Bool().Draw(t, "alive"), Voter: rapid.Bool().Draw(t, "voter"),
			})
		}
		got := ChooseVoters(in)
		if len(got)%2 == 0 || len(got) > 7 || len(got) > n {
			t.Fatalf("%d voters of %d", len(got), n)
		}
		reversed := slices.Clone(in)
		slices.Reverse(reversed)
		if again := ChooseVoters(reversed); !slices.Equal(got, again) {
			t.Fatalf("%v or, in another order, %v", got, again)
		}
		perCell := make(map[ident.CellName]int)
		for _, c := range in {
			if slices.Contains(got, c.ID) {
				perCell[c.Cell]++
			}
		}
		for _, c := range in {
			for _, d := range in {
				in, out := slices.Contains(got, d.ID), !slices.Contains(got, c.ID)
				if in && out && c.Alive && !d.Alive {
					t.Fatalf("dead %d votes, live %d does not", d.ID, c.ID)
				}
				if in && out && c.Alive && d.Alive && perCell[d.Cell] > perCell[c.Cell]+1 {
					t.Fatalf("cell %s has %d voters, cell %s has %d though %d could vote", d.Cell, perCell[d.Cell], c.Cell, perCell[c.Cell], c.ID)
				}
			}
		}
		for i := range in {
			in[i].Voter = slices.Contains(got, in[i].ID)
		}
		if again := ChooseVoters(in); !slices.Equal(got, again) {
			t.Fatalf("the choice %v is not kept: %v", got, again)
		}
	})
}
