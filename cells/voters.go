package cells

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Candidate is a server that may vote.
type Candidate struct {
	ID      ident.ServerID
	Cell    ident.CellName
	Witness bool
	Alive   bool // votes can be expected from it
	Voter   bool // it votes now
	Leader  bool
}

// maxVoters is how many voters a cluster of so many cells has at most.
func maxVoters(cells int) int {
	if cells >= 7 {
		return 7
	}
	return 5
}

// ChooseVoters picks who votes: an odd number, at most five (seven from seven cells up), spread over the cells as evenly as can be.
// Servers that are alive come before dead ones, the leader before all, witnesses before servers, present voters before others.
// Without a live one to take over, a dead voter stays: a smaller group would not survive more.
// The result is sorted by ID. It depends on the set of candidates only, not on their order.
func ChooseVoters(candidates []Candidate) []ident.ServerID {
	pool := slices.Clone(candidates)
	slices.SortFunc(pool, func(a, b Candidate) int { return compareIDs(a.ID, b.ID) })
	var names []ident.CellName
	for _, c := range pool {
		if !slices.Contains(names, c.Cell) {
			names = append(names, c.Cell)
		}
	}
	want := min(maxVoters(len(names)), len(pool))
	if want > 0 && want%2 == 0 {
		want--
	}
	var chosen []ident.ServerID
	perCell := make(map[ident.CellName]int)
	for len(chosen) < want {
		best := 0
		for i := 1; i < len(pool); i++ {
			if voterRank(pool[i], perCell[pool[i].Cell]) < voterRank(pool[best], perCell[pool[best].Cell]) {
				best = i
			}
		}
		chosen = append(chosen, pool[best].ID)
		perCell[pool[best].Cell]++
		pool = slices.Delete(pool, best, best+1)
	}
	slices.Sort(chosen)
	return chosen
}

// voterRank orders candidates: the lower, the better. inCell is how many voters its cell has already.
func voterRank(c Candidate, inCell int) int {
	rank := inCell * 4
	if !c.Witness {
		rank += 2
	}
	if !c.Voter {
		rank++
	}
	if !c.Alive {
		rank += 1 << 20
	}
	if c.Leader {
		rank = -1
	}
	return rank
}
