package bench

import (
	"fmt"
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
