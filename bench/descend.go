package bench

import (
	"math"
)

// Score is hbal's, for a cluster without secondary nodes: the standard deviations over the nodes of the share of free memory, of vCPUs for each CPU, and,
// four times (as processor, memory, disk and network load, all 1 unless measured), of the number of instances.
func (c *GanetiCluster) Score() float64 { return newSpread(c).score() }

// spread keeps sums, so that the score after a move costs the same however large the cluster is.
type spread struct {
	c      *GanetiCluster
	online float64
	nodes  []nodeLoad
	sums   [3]float64 // over nodes
	sqs    [3]float64 // of squares

	size     []int   // by node: equal for nodes of the same memory and CPUs
	kind     []int   // by instance: equal for those of the same size; -1: it does not move
	first    []int   // by kind and node: the first such instance, -1 if there is none; scratch
	lightest []place // see findLightest
}

// place is a node that may take instances: those of one node only if that is lighter.
type place struct {
	node, than int // -1: none is
}

// nodeLoad is a node's share of free memory, vCPUs for each CPU, and number of instances.
type nodeLoad [3]float64

func newSpread(c *GanetiCluster) *spread {
	s := &spread{c: c, nodes: make([]nodeLoad, len(c.Nodes))}
	for i, n := range c.Nodes {
		s.nodes[i][0] = float64(n.FreeMiB) / float64(n.MemoryMiB)
	}
	for _, x := range c.Instances {
		s.nodes[x.Node][1] += float64(x.VCPUs) / float64(c.Nodes[x.Node].CPUs)
		s.nodes[x.Node][2]++
	}
	for i, n := range s.nodes {
		if c.Nodes[i].offline() {
			continue
		}
		s.online++
		for k, v := range n {
			s.sums[k] += v
			s.sqs[k] += v * v
		}
	}
	s.sort()
	return s
}

// sort finds what is of one size.
func (s *spread) sort() {
	sizes, kinds := map[[2]int]int{}, map[[2]int]int{}
	number := func(of map[[2]int]int, key [2]int) int {
		k, ok := of[key]
		if !ok {
			k = len(of)
			of[key] = k
		}
		return k
	}
	for _, n := range s.c.Nodes {
		s.size = append(s.size, number(sizes, [2]int{n.MemoryMiB, n.CPUs}))
	}
	for i := range s.c.Instances {
		k := -1
		if x := &s.c.Instances[i]; x.movable() && !s.c.Nodes[x.Node].offline() {
			k = number(kinds, [2]int{x.MemoryMiB, x.VCPUs})
		}
		s.kind = append(s.kind, k)
	}
	s.first = make([]int, len(kinds)*len(s.nodes))
}

func (s *spread) score() float64 { return s.of(s.sums, s.sqs) }

func (s *spread) of(sums, sqs [3]float64) float64 {
	out := 0.0
	for k, weight := range weights {
		mean := sums[k] / s.online
		out += weight * math.Sqrt(max(0, sqs[k]/s.online-mean*mean))
	}
	return out
}

// weights of a node's three loads in the score.
var weights = [3]float64{1, 1, 4}

// change is what an instance adds to a node.
func (s *spread) change(x *GanetiInstance, node int) nodeLoad {
	n := &s.c.Nodes[node]
	return nodeLoad{-float64(x.MemoryMiB) / float64(n.MemoryMiB), float64(x.VCPUs) / float64(n.CPUs), 1}
}

// shift changes the sums as if the load of a node changed by sign times d.
func shift(sums, sqs *[3]float64, at, d nodeLoad, sign float64) {
	for k := range d {
		after := at[k] + sign*d[k]
		sums[k] += after - at[k]
		sqs[k] += after*after - at[k]*at[k]
	}
}

// move makes it true.
func (s *spread) move(instance, to int) {
	x := &s.c.Instances[instance]
	for _, e := range []struct {
		node int
		sign float64
	}{{x.Node, -1}, {to, 1}} {
		d := s.change(x, e.node)
		shift(&s.sums, &s.sqs, s.nodes[e.node], d, e.sign)
		for k := range d {
			s.nodes[e.node][k] += e.sign * d[k]
		}
	}
	s.c.move(instance, to)
}

// fits tells whether a node may take the instance.
func (s *spread) fits(x *GanetiInstance, to int) bool {
	n := &s.c.Nodes[to]
	return to != x.Node && !n.offline() && n.FreeMiB >= x.MemoryMiB && s.nodes[to][1]+float64(x.VCPUs)/float64(n.CPUs) <= maxRatio
}

const least = 1e-9 // a smaller gain is an error of arithmetic

// hbal ends when a step gains less than a hundredth, unless the score is large; so does the descent, or it would take more moves for nothing.
const (
	minGain      = 1e-2
	minGainLimit = 1e-1
)

// Descend takes the best single move again and again, as hbal does, and then, with no more instances moved than that, looks for better ones to
// move and better places for them.
func Descend(c *GanetiCluster) *GanetiCluster {
	s := newSpread(c.clone())
	for {
		before := s.score()
		i, to, best := s.bestMove(before - least)
		if i < 0 || before <= minGainLimit && before-best < minGain {
			break
		}
		s.move(i, to)
	}
	moved := s.c.movedFrom(c)
	for s.refine(c, moved) {
	}
	return s.c
}

// bestMove finds the move with the lowest score below the given one. Of instances of the same size it looks only at those on nodes that no other such node
// outdoes: to move one from a node that is heavier in every respect is better, wherever it goes.
func (s *spread) bestMove(below float64) (instance, to int, score float64) {
	instance, to, score = -1, -1, below
	s.findLightest()
	for k := range s.first {
		s.first[k] = -1
	}
	count := len(s.nodes)
	for i := len(s.c.Instances) - 1; i >= 0; i-- {
		if k := s.kind[i]; k >= 0 {
			s.first[k*count+s.c.Instances[i].Node] = i
		}
	}
	for k := 0; k < len(s.first); k += count {
		for node, i := range s.first[k : k+count] {
			if i < 0 || s.outdone(s.first[k:k+count], node) {
				continue
			}
			if n, v := s.bestPlace(&s.c.Instances[i], score); n >= 0 {
				instance, to, score = i, n, v
			}
		}
	}
	return instance, to, score
}

// outdone tells whether another node with an instance of the kind is heavier in every respect.
func (s *spread) outdone(first []int, node int) bool {
	for other, i := range first {
		if i >= 0 && s.lighter(node, other) {
			return true
		}
	}
	return false
}

// lighter tells whether a node is of the size of another one, and no heavier in any respect; of two that are equal the first is.
func (s *spread) lighter(a, b int) bool {
	x, y := &s.nodes[a], &s.nodes[b]
	if a == b || x[0] < y[0] || x[1] > y[1] || x[2] > y[2] || s.size[a] != s.size[b] {
		return false
	}
	return a < b || *x != *y
}

// findLightest lists the nodes that an instance may go to: those than which no other is lighter, and, for instances of the one node that is, those than which only
// that is. Whatever goes to another one would better have gone to the lighter.
func (s *spread) findLightest() {
	s.lightest = s.lightest[:0]
	for b := range s.nodes {
		if s.c.Nodes[b].offline() {
			continue
		}
		than, count := -1, 0
		for a := range s.nodes {
			if s.lighter(a, b) && !s.c.Nodes[a].offline() {
				if than, count = a, count+1; count > 1 {
					break
				}
			}
		}
		if count <= 1 {
			s.lightest = append(s.lightest, place{b, than})
		}
	}
}

// bestPlace finds the node for an instance with the lowest score below the given one, or -1. That the instance leaves its node is reckoned once. It requires
// findLightest.
func (s *spread) bestPlace(x *GanetiInstance, below float64) (to int, score float64) {
	to, score = -1, below
	sums, sqs := s.sums, s.sqs
	shift(&sums, &sqs, s.nodes[x.Node], s.change(x, x.Node), -1)
	for _, l := range s.lightest {
		n := l.node
		if l.than >= 0 && l.than != x.Node || !s.fits(x, n) {
			continue
		}
		d, at := s.change(x, n), &s.nodes[n]
		v := 0.0
		for k, weight := range weights {
			mean := (sums[k] + d[k]) / s.online
			v += weight * math.Sqrt(max(0, (sqs[k]+d[k]*(2*at[k]+d[k]))/s.online-mean*mean))
		}
		if v < score {
			to, score = n, v
		}
	}
	return to, score
}

// refine goes over the instances that have moved and lowers the score with at most so many instances moved: one goes to another node, or goes home and
// another goes in its place. It tells whether it found anything.
func (s *spread) refine(start *GanetiCluster, most int) bool {
	found := false
	for i := range s.c.Instances {
		x := &s.c.Instances[i]
		home, now := start.Instances[i].Node, x.Node
		if now == home {
			continue
		}
		before := s.score()
		s.findLightest()
		if n, _ := s.bestPlace(x, before-least); n >= 0 {
			s.move(i, n)
			found = true
			continue
		}
		if !s.fits(x, home) {
			continue
		}
		s.move(i, home)
		if j, to, _ := s.bestMove(before - least); j >= 0 && j != i {
			was := s.c.Instances[j].Node
			s.move(j, to)
			if s.c.movedFrom(start) <= most {
				found = true
				continue
			}
			s.move(j, was)
		}
		s.move(i, now)
	}
	return found
}
