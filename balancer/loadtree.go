package balancer

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// LoadTree is Cellular Disco's load tree: its leaves are servers, ordered so that the servers of a cell lie below one another, and each inner node has
// the sum of what lies below it. A node lives on the first server below it, together with its left child: a change of one leaf travels up as at
// most one message for each level, and stops where a server is gone. Nothing is polled.
//
//	      a-1
//	  a-1     b-1
//	a-1 a-2 b-1 b-2
//
// Invariant: every inner node is the sum of its children.
type LoadTree struct {
	leaves int // a power of two
	nodes  []load
	at     map[ident.ServerID]int // leaf of a server; looked up, never walked
	order  []ident.ServerID       // by leaf
}

// load is what is below a node.
type load struct {
	vcpus, slots       int
	heaviest, lightest int // leaves with slots, by vCPUs for each slot; -1: none
}

// NewLoadTree builds the tree of the servers that are open.
func NewLoadTree(servers []Server) *LoadTree {
	open := usable(servers)
	slices.SortFunc(open, func(a, b Server) int { return cmp.Or(cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.ID, b.ID)) })
	t := &LoadTree{leaves: 1, at: make(map[ident.ServerID]int, len(open))}
	for t.leaves < len(open) {
		t.leaves *= 2
	}
	t.nodes = make([]load, 2*t.leaves)
	for i := range t.nodes {
		t.nodes[i] = load{heaviest: -1, lightest: -1}
	}
	for i, s := range open {
		t.at[s.ID] = i
		t.order = append(t.order, s.ID)
		t.nodes[t.leaves+i] = load{s.UsedVCPUs, s.Slots, i, i}
	}
	for i := t.leaves - 1; i > 0; i-- {
		t.nodes[i] = t.joined(i)
	}
	return t
}

// joined computes an inner node from its children.
func (t *LoadTree) joined(i int) load {
	l, r := t.nodes[2*i], t.nodes[2*i+1]
	out := load{l.vcpus + r.vcpus, l.slots + r.slots, l.heaviest, l.lightest}
	if out.heaviest < 0 || r.heaviest >= 0 && t.heavier(r.heaviest, out.heaviest) {
		out.heaviest = r.heaviest
	}
	if out.lightest < 0 || r.lightest >= 0 && t.heavier(out.lightest, r.lightest) {
		out.lightest = r.lightest
	}
	return out
}

// heavier compares two leaves by vCPUs for each slot, as fractions.
func (t *LoadTree) heavier(a, b int) bool {
	x, y := t.nodes[t.leaves+a], t.nodes[t.leaves+b]
	return x.vcpus*y.slots > y.vcpus*x.slots
}

// Set changes a server's load, and returns how many messages between servers that costs.
func (t *LoadTree) Set(id ident.ServerID, vcpus int) (messages int) {
	leaf, ok := t.at[id]
	if !ok {
		return 0
	}
	return t.change(leaf, load{vcpus, t.nodes[t.leaves+leaf].slots, leaf, leaf})
}

// Lose takes a server out that has died, likewise.
func (t *LoadTree) Lose(id ident.ServerID) (messages int) {
	leaf, ok := t.at[id]
	if !ok {
		return 0
	}
	delete(t.at, id)
	return t.change(leaf, load{heaviest: -1, lightest: -1})
}

func (t *LoadTree) change(leaf int, to load) (messages int) {
	i := t.leaves + leaf
	t.nodes[i] = to
	for ; i > 1; i /= 2 {
		if i%2 == 1 { // a right child lives elsewhere
			messages++
		}
		sum := t.joined(i / 2)
		if sum == t.nodes[i/2] {
			return messages
		}
		t.nodes[i/2] = sum
	}
	return messages
}

// Depth is how many levels are above the leaves.
func (t *LoadTree) Depth() int {
	d := 0
	for n := t.leaves; n > 1; n /= 2 {
		d++
	}
	return d
}

// Total returns the sums at the root.
func (t *LoadTree) Total() (vcpus, slots int) { return t.nodes[1].vcpus, t.nodes[1].slots }

// Check tells where the tree is wrong.
func (t *LoadTree) Check() error {
	for i := t.leaves - 1; i > 0; i-- {
		if t.nodes[i] != t.joined(i) {
			return fmt.Errorf("balancer: node %d has %+v, its children make %+v", i, t.nodes[i], t.joined(i))
		}
	}
	return nil
}

// lessens tells whether moving k vCPUs from one place to another evens out their loads: whether the sum of the squares of the loads by slot falls. For
// places of equal size and one vCPU this is the paper's rule, a difference of more than one. As the sum falls with each move, moves never go in
// circles.
func lessens(from, to load, k int) bool {
	return (2*from.vcpus-k)*to.slots > (2*to.vcpus+k)*from.slots
}

// keeps tells whether moving k vCPUs leaves the loads as even as they are, or makes them more so.
func keeps(from, to load, k int) bool {
	return k == 0 || (2*from.vcpus-k)*to.slots >= (2*to.vcpus+k)*from.slots
}

// Score tells how uneven the loads of the open servers are, in thousandths of a vCPU: the sum of the squares of their loads over their slots, less what
// it is when all have the same load for each slot. Every transfer of [Rebalance] lowers it, but those that bring VMs together, which leave
// it as it is or lower it.
func Score(servers []Server) uint64 {
	vcpus, slots, squares := uint64(0), uint64(0), uint64(0)
	for _, s := range usable(servers) {
		v := uint64(max(0, s.UsedVCPUs))
		vcpus, slots = vcpus+v, slots+uint64(s.Slots)
		squares += v * v * 1000 / uint64(s.Slots)
	}
	if slots == 0 {
		return 0
	}
	even := vcpus * vcpus * 1000 / slots
	return squares - min(even, squares)
}
