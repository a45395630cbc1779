package bench

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// GanetiCluster is a cluster as hbal's text files have it: sections of groups, nodes, instances, tags and policies, separated by empty lines; fields are
// separated by bars. Only instances without a secondary node can be moved here, those whose disks lie elsewhere, as Cellvisor's do.
type GanetiCluster struct {
	Groups    []string
	Nodes     []GanetiNode
	Instances []GanetiInstance
	Tail      []string // tags and policies
}

// GanetiNode is a line of the second section: name, total, used and free memory, total and free disk, CPUs, then what is only kept.
type GanetiNode struct {
	Name                        string
	MemoryMiB, UsedMiB, FreeMiB int
	DiskMiB, FreeDiskMiB, CPUs  int
	Rest                        string // offline (Y, N or M for the master), group, spindles and what follows
}

func (n *GanetiNode) offline() bool { return strings.HasPrefix(n.Rest, "Y") }

// GanetiInstance is a line of the third section. Fields keeps all of them; field 6 is the name of its node.
type GanetiInstance struct {
	Name             string
	MemoryMiB, VCPUs int
	Node             int // index
	Fields           []string
}

// movable tells whether a balancer may move the instance.
func (x *GanetiInstance) movable() bool { return x.Fields[5] == "Y" && x.Fields[7] == "" }

// maxRatio is hbal's limit of vCPUs for each CPU, unless a policy says otherwise.
const maxRatio = 4

// ParseGaneti reads hbal's text format.
func ParseGaneti(text string) (*GanetiCluster, error) {
	var sections [][]string
	section := []string{}
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			sections, section = append(sections, section), []string{}
			continue
		}
		section = append(section, line)
	}
	sections = append(sections, section)
	if len(sections) < 4 {
		return nil, fmt.Errorf("%d sections, separated by empty lines, where hbal's format has 4 or 5: groups, nodes, instances, tags, policies", len(sections))
	}
	c := &GanetiCluster{Groups: sections[0]}
	at := map[string]int{}
	for _, line := range sections[1] {
		n, err := parseNode(line)
		if err != nil {
			return nil, err
		}
		at[n.Name] = len(c.Nodes)
		c.Nodes = append(c.Nodes, n)
	}
	for _, line := range sections[2] {
		f := strings.Split(line, "|")
		if len(f) < 10 {
			return nil, fmt.Errorf("instance %q has %d fields, 10 or more are needed", line, len(f))
		}
		node, ok := at[f[6]]
		if !ok {
			return nil, fmt.Errorf("instance %s is on node %q, which is not listed", f[0], f[6])
		}
		v, err := integers(f[0], f[1], f[3])
		if err != nil {
			return nil, err
		}
		c.Instances = append(c.Instances, GanetiInstance{Name: f[0], MemoryMiB: v[0], VCPUs: v[1], Node: node, Fields: f})
	}
	for _, s := range sections[3:] {
		c.Tail = append(append(c.Tail, ""), s...)
	}
	if len(c.Nodes) == 0 {
		return nil, fmt.Errorf("no node is listed")
	}
	return c, nil
}

func parseNode(line string) (GanetiNode, error) {
	f := strings.Split(line, "|")
	if len(f) < 9 {
		return GanetiNode{}, fmt.Errorf("node %q has %d fields, 9 or more are needed", line, len(f))
	}
	v, err := integers(f[0], f[1:7]...)
	if err == nil && (v[0] < 1 || v[5] < 1) {
		err = fmt.Errorf("%s: %d MiB of memory and %d CPUs; each must be at least 1", f[0], v[0], v[5])
	}
	if err != nil {
		return GanetiNode{}, err
	}
	return GanetiNode{Name: f[0], MemoryMiB: v[0], UsedMiB: v[1], FreeMiB: v[2], DiskMiB: v[3], FreeDiskMiB: v[4], CPUs: v[5], Rest: strings.Join(f[7:], "|")}, nil
}

func integers(name string, fields ...string) ([]int, error) {
	var out []int
	for _, f := range fields {
		v, err := strconv.Atoi(f)
		if err != nil || v < 0 {
			return nil, fmt.Errorf("%s: %q must be a number, not negative", name, f)
		}
		out = append(out, v)
	}
	return out, nil
}

// String writes hbal's text format.
func (c *GanetiCluster) String() string {
	var b strings.Builder
	for _, g := range c.Groups {
		b.WriteString(g + "\n")
	}
	b.WriteByte('\n')
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "%s|%d|%d|%d|%d|%d|%d|%s\n", n.Name, n.MemoryMiB, n.UsedMiB, n.FreeMiB, n.DiskMiB, n.FreeDiskMiB, n.CPUs, n.Rest)
	}
	b.WriteByte('\n')
	for _, x := range c.Instances {
		f := slices.Clone(x.Fields)
		f[6] = c.Nodes[x.Node].Name
		b.WriteString(strings.Join(f, "|") + "\n")
	}
	tail := c.Tail
	if len(tail) == 0 {
		tail = []string{""}
	}
	b.WriteString(strings.Join(tail, "\n") + "\n")
	return b.String()
}

func (c *GanetiCluster) clone() *GanetiCluster {
	out := *c
	out.Nodes, out.Instances = slices.Clone(c.Nodes), slices.Clone(c.Instances)
	return &out
}

func (c *GanetiCluster) vcpusOn(node int) int {
	n := 0
	for _, x := range c.Instances {
		if x.Node == node {
			n += x.VCPUs
		}
	}
	return n
}

func (c *GanetiCluster) move(instance, to int) {
	x := &c.Instances[instance]
	c.Nodes[x.Node].FreeMiB += x.MemoryMiB
	c.Nodes[to].FreeMiB -= x.MemoryMiB
	x.Node = to
}

// movedFrom counts the instances that are elsewhere than before.
func (c *GanetiCluster) movedFrom(before *GanetiCluster) int {
	n := 0
	for i := range c.Instances {
		if c.Instances[i].Node != before.Instances[i].Node {
			n++
		}
	}
	return n
}

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
	return s
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

// bestMove finds the move with the lowest score below the given one.
func (s *spread) bestMove(below float64) (instance, to int, score float64) {
	instance, to, score = -1, -1, below
	for i := range s.c.Instances {
		x := &s.c.Instances[i]
		if !x.movable() {
			continue
		}
		if n, v := s.bestPlace(x, score); n >= 0 {
			instance, to, score = i, n, v
		}
	}
	return instance, to, score
}

// bestPlace finds the node for an instance with the lowest score below the given one, or -1. That the instance leaves its node is reckoned once.
func (s *spread) bestPlace(x *GanetiInstance, below float64) (to int, score float64) {
	to, score = -1, below
	sums, sqs := s.sums, s.sqs
	shift(&sums, &sqs, s.nodes[x.Node], s.change(x, x.Node), -1)
	for n := range s.nodes {
		if !s.fits(x, n) {
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
