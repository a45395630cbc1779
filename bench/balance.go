package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/ident"
)

// HbalPath is where Debian's package ganeti-htools-3.0 puts hbal.
const HbalPath = "/usr/lib/ganeti/3.0/usr/bin/hbal"

// BalanceSettings say how the balancers are compared.
type BalanceSettings struct {
	Hbal  string   `json:"hbal"`  // program; "" leaves it out
	Files []string `json:"files"` // clusters in hbal's text format; none: those that come with the benchmark
	Write string   `json:"write"` // directory for the clusters before and after; "": none
	Seed  uint64   `json:"seed"`  // of the clusters that come with it
}

// BalanceReport compares balancers on the same clusters. Names of fields are an interface: see docs/json.md.
type BalanceReport struct {
	Benchmark string           `json:"benchmark"`
	Host      Host             `json:"host"`
	Settings  BalanceSettings  `json:"settings"`
	Clusters  []BalanceCluster `json:"clusters"`
	Large     LargeFigure      `json:"large"`
}

// BalanceCluster is one cluster, and what each balancer made of it.
type BalanceCluster struct {
	Name      string        `json:"name"`
	Nodes     int           `json:"nodes"`
	Instances int           `json:"instances"`
	Score     float64       `json:"score"`         // before, by hbal's measure
	ScoreHbal float64       `json:"score_by_hbal"` // the same, computed by hbal; 0 without it
	Results   []BalanceTook `json:"results"`
	Startup   float64       `json:"hbal_startup_seconds"` // what hbal takes to start, read the cluster and score it
	Speedup   float64       `json:"speedup"`              // of descent over hbal, from text to text
	Net       float64       `json:"speedup_net"`          // likewise, hbal's startup and our reading and writing left out
}

// BalanceTook is what one balancer made of a cluster.
type BalanceTook struct {
	Who       string  `json:"who"` // "hbal"; "descent", which minimizes hbal's score; "loadtree", the cluster's own balancer, which minimizes another one
	Score     float64 `json:"score"`
	ScoreHbal float64 `json:"score_by_hbal"`
	Moves     int     `json:"moves"`
	Seconds   float64 `json:"seconds"`      // of processor time, from the cluster's text to that of the result; the median of several runs if they are short
	Planning  float64 `json:"plan_seconds"` // of these, without reading and writing, or hbal's startup
}

// LargeFigure is what the cluster's own balancer takes for 1,000 servers and 10,000 VMs, all of them on a tenth of the servers.
type LargeFigure struct {
	Servers     int     `json:"servers"`
	VMs         int     `json:"vms"`
	Moves       int     `json:"moves"`
	Seconds     float64 `json:"seconds"`
	ScoreBefore float64 `json:"score_before"`
	ScoreAfter  float64 `json:"score_after"`
}

// Balance compares the balancers.
func Balance(ctx context.Context, set BalanceSettings, say func(string)) (BalanceReport, error) {
	rep := BalanceReport{Benchmark: "balance", Host: ThisHost(), Settings: set}
	clusters, err := set.clusters()
	if err != nil {
		return rep, err
	}
	dir, err := os.MkdirTemp("", "cellvisor-balance-")
	if err != nil {
		return rep, err
	}
	defer os.RemoveAll(dir)
	for i, c := range clusters {
		name := fmt.Sprintf("%d-%d", len(c.Nodes), len(c.Instances))
		if len(set.Files) > 0 {
			name = filepath.Base(set.Files[i])
		}
		say(fmt.Sprintf("%d nodes, %d instances", len(c.Nodes), len(c.Instances)))
		out, err := set.compare(ctx, dir, name, c)
		if err != nil {
			return rep, fmt.Errorf("cluster %s: %w", name, err)
		}
		rep.Clusters = append(rep.Clusters, out)
	}
	say("1000 servers, 10000 VMs")
	rep.Large = large()
	return rep, nil
}

func (s *BalanceSettings) clusters() ([]*GanetiCluster, error) {
	if len(s.Files) == 0 {
		return []*GanetiCluster{drawGaneti(s.Seed, 8, 60), drawGaneti(s.Seed, 40, 200)}, nil
	}
	var out []*GanetiCluster
	for _, f := range s.Files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		c, err := ParseGaneti(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// drawGaneti draws a cluster most of whose instances are on its first nodes.
func drawGaneti(seed uint64, nodes, instances int) *GanetiCluster {
	const memory, disk, reserved = 65536, 1 << 20, 3072
	r := rand.New(rand.NewPCG(seed, uint64(nodes)))
	c := &GanetiCluster{Groups: []string{"default|11111111-1111-1111-1111-111111111111|preferred||"}}
	for i := range nodes {
		c.Nodes = append(c.Nodes, GanetiNode{Name: fmt.Sprintf("node%03d", i), MemoryMiB: memory, UsedMiB: 1024, FreeMiB: memory - 1024, DiskMiB: disk, FreeDiskMiB: disk, CPUs: 32, Rest: "N|11111111-1111-1111-1111-111111111111|1"})
	}
	for i := range instances {
		x := GanetiInstance{Name: fmt.Sprintf("inst%04d", i), MemoryMiB: 512 << r.IntN(4), VCPUs: []int{1, 1, 2, 4}[r.IntN(4)]}
		x.Fields = []string{x.Name, strconv.Itoa(x.MemoryMiB), "1024", strconv.Itoa(x.VCPUs), "running", "Y", "", "", "ext", "", "1"}
		for {
			skew := r.Float64()
			x.Node = int(skew * skew * float64(nodes))
			if n := &c.Nodes[x.Node]; n.FreeMiB-x.MemoryMiB >= reserved && (c.vcpusOn(x.Node)+x.VCPUs) <= 4*n.CPUs {
				n.FreeMiB -= x.MemoryMiB
				break
			}
		}
		c.Instances = append(c.Instances, x)
	}
	return c
}

// compare lets each balancer work on the cluster.
func (s *BalanceSettings) compare(ctx context.Context, dir, name string, c *GanetiCluster) (BalanceCluster, error) {
	out := BalanceCluster{Name: name, Nodes: len(c.Nodes), Instances: len(c.Instances), Score: round3(c.Score())}
	before := filepath.Join(dir, name+".data")
	if err := s.save(before, c); err != nil {
		return out, err
	}
	if s.Hbal != "" {
		var err error
		if out.ScoreHbal, err = s.hbalScore(ctx, before); err != nil {
			return out, err
		}
		took, err := s.runHbal(ctx, before)
		if err != nil {
			return out, err
		}
		if out.Startup, err = s.hbalStartup(ctx, before); err != nil {
			return out, err
		}
		took.Planning = max(0, took.Seconds-out.Startup)
		out.Results = append(out.Results, took)
	}
	text := c.String()
	for _, b := range []struct {
		who string
		run func(*GanetiCluster) *GanetiCluster
	}{{"descent", Descend}, {"loadtree", byLoadTree}} {
		var after *GanetiCluster
		took := BalanceTook{Who: b.who}
		planning := func() time.Duration { return ownTime(func() { after = b.run(c) }) }
		whole := func() time.Duration {
			return ownTime(func() {
				if again, err := ParseGaneti(text); err == nil {
					_ = b.run(again).String()
				}
			})
		}
		took.Planning, took.Seconds = typical(planning), typical(whole)
		took.Score, took.Moves = round3(after.Score()), after.movedFrom(c)
		path := filepath.Join(dir, name+"."+b.who)
		err := s.save(path, after)
		if err == nil && s.Hbal != "" {
			took.ScoreHbal, err = s.hbalScore(ctx, path)
		}
		if err != nil {
			return out, err
		}
		out.Results = append(out.Results, took)
		if b.who == "descent" && s.Hbal != "" {
			out.Speedup = round3(quotient(out.Results[0].Seconds, took.Seconds))
			out.Net = round3(quotient(out.Results[0].Planning, took.Planning))
		}
	}
	return out, nil
}

// save writes a cluster to where hbal reads it, and to where the operator wants it.
func (s *BalanceSettings) save(path string, c *GanetiCluster) error {
	text := []byte(c.String())
	err := os.WriteFile(path, text, 0o644)
	if s.Write != "" {
		err = errors.Join(err, os.MkdirAll(s.Write, 0o755), os.WriteFile(filepath.Join(s.Write, filepath.Base(path)), text, 0o644))
	}
	return err
}

var (
	hbalInitial = regexp.MustCompile(`[Ii]nitial score:? ([0-9.]+)`)
	hbalFinal   = regexp.MustCompile(`Cluster score improved from [0-9.]+ to ([0-9.]+)`)
	hbalMoves   = regexp.MustCompile(`Solution length=([0-9]+)`)
)

func (s *BalanceSettings) hbal(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, s.Hbal, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", s.Hbal, err, out)
	}
	return string(out), nil
}

// hbalScore has hbal compute a cluster's score.
func (s *BalanceSettings) hbalScore(ctx context.Context, path string) (float64, error) {
	text, err := s.hbal(ctx, "-t", path, "-l", "0")
	if err != nil {
		return 0, err
	}
	return figure(hbalInitial, text)
}

// runHbal lets hbal balance. Its processor time counts, not the time that a busy machine let it wait.
func (s *BalanceSettings) runHbal(ctx context.Context, path string) (BalanceTook, error) {
	out := BalanceTook{Who: "hbal"}
	var text string
	var err error
	out.Seconds = typical(func() (took time.Duration) {
		if err == nil {
			took, text, err = s.timeHbal(ctx, "-t", path, "-S", path+".saved")
		}
		return took
	})
	if err != nil {
		return out, err
	}
	if out.Score, err = figure(hbalFinal, text); err != nil {
		out.Score, err = figure(hbalInitial, text) // nothing to improve
	}
	if err != nil {
		return out, err
	}
	moves, err := figure(hbalMoves, text)
	if err != nil {
		return out, err
	}
	out.Moves = int(moves)
	out.ScoreHbal, err = s.hbalScore(ctx, path+".saved.balanced")
	out.Score = round3(out.Score)
	return out, err
}

// hbalStartup is what hbal takes when it has no move to find.
func (s *BalanceSettings) hbalStartup(ctx context.Context, path string) (float64, error) {
	var err error
	seconds := typical(func() (took time.Duration) {
		if err == nil {
			took, _, err = s.timeHbal(ctx, "-t", path, "-l", "0")
		}
		return took
	})
	return seconds, err
}

// timeHbal runs hbal and returns its processor time.
func (s *BalanceSettings) timeHbal(ctx context.Context, args ...string) (time.Duration, string, error) {
	cmd := exec.CommandContext(ctx, s.Hbal, args...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w\n%s", s.Hbal, err, text)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), string(text), nil
}

// typical is the median of some runs in seconds, of one if that takes long.
func typical(run func() time.Duration) float64 {
	const enough, times = time.Second, 9
	took := []time.Duration{run()}
	for len(took) < times && took[0] < enough {
		took = append(took, run())
	}
	slices.Sort(took)
	return took[len(took)/2].Seconds()
}

// ownTime is the processor time that this process takes for something, whichever of its threads do: the collector's counts, too.
func ownTime(run func()) time.Duration {
	began := processorTime()
	run()
	return processorTime() - began
}

func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func figure(re *regexp.Regexp, text string) (float64, error) {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("hbal said nothing like %q:\n%s", re, text)
	}
	return strconv.ParseFloat(m[1], 64)
}

// byLoadTree lets the cluster's own balancer work.
func byLoadTree(c *GanetiCluster) *GanetiCluster {
	out := c.clone()
	var servers []balancer.Server
	for i, n := range c.Nodes {
		servers = append(servers, balancer.Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(n.Name), Cell: "a", Open: !n.offline(), Slots: n.CPUs,
			MemoryBytes: ident.Bytes(n.FreeMiB) * ident.MiB, UsedVCPUs: c.vcpusOn(i)})
	}
	var vms []balancer.Running
	for i, x := range c.Instances {
		b := ident.Bytes(x.MemoryMiB) * ident.MiB
		servers[x.Node].MemoryBytes += b
		servers[x.Node].UsedBytes += b
		vms = append(vms, balancer.Running{VM: ident.VMID(i + 1), Settled: !x.movable(), Parts: []balancer.RunningPart{{Server: ident.ServerID(x.Node + 1), VCPUs: x.VCPUs, Bytes: b}}})
	}
	for _, t := range balancer.Rebalance(servers, vms, 100*len(vms)) {
		out.move(int(t.VM-1), int(t.To-1))
		if t.With != 0 {
			out.move(int(t.With-1), int(t.From-1))
		}
	}
	return out
}

// large lets the cluster's own balancer work on 10,000 VMs.
func large() LargeFigure {
	const count, vmCount, slots = 1000, 10_000, 16
	f := LargeFigure{Servers: count, VMs: vmCount}
	var servers []balancer.Server
	for i := range count {
		cell := ident.CellName(fmt.Sprintf("c%02d", i/slots))
		servers = append(servers, balancer.Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(fmt.Sprintf("%s-%d", cell, i)), Cell: cell, Open: true, Slots: slots, MemoryBytes: 1024 * ident.GiB})
	}
	var vms []balancer.Running
	for i := range vmCount {
		s, n := &servers[i%(count/10)], 1+i%4
		vms = append(vms, balancer.Running{VM: ident.VMID(i + 1), Parts: []balancer.RunningPart{{Server: s.ID, VCPUs: n, Bytes: ident.GiB}}})
		s.UsedVCPUs += n
		s.UsedBytes += ident.GiB
	}
	f.ScoreBefore = float64(balancer.Score(servers)) / 1000
	began := time.Now()
	plan := balancer.Rebalance(servers, vms, 10*vmCount)
	f.Seconds = time.Since(began).Seconds()
	f.Moves = len(plan)
	for _, t := range plan {
		servers[t.From-1].UsedVCPUs += t.WithVCPUs - t.VCPUs
		servers[t.To-1].UsedVCPUs += t.VCPUs - t.WithVCPUs
	}
	f.ScoreAfter = float64(balancer.Score(servers)) / 1000
	return f
}
