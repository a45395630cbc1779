package balance

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/kernel"
	"github.com/cellvisor/cellvisor/wire"
)

// ScaleReport is what a large cluster costs and how soon it is even. Names of fields are an interface: see docs/json.md.
type ScaleReport struct {
	Servers int `json:"servers"`
	Cells   int `json:"cells"`
	VCPUs   int `json:"vcpus"`
	Depth   int `json:"depth"`

	MessagesPerServerSecond float64 `json:"messages_per_server_second"` // sent, on average over the run
	MostPerSecond           float64 `json:"most_received_per_second"`   // by one server
	BytesPerServerSecond    float64 `json:"bytes_per_server_second"`    // sent
	SeenSeconds             float64 `json:"seen_seconds"`               // from the shock until the registry has the true loads
	EvenSeconds             float64 `json:"even_seconds"`               // from the shock until no move is left
	Moves                   int     `json:"moves"`
	ScoreBefore             float64 `json:"score_before"` // right after the shock
	ScoreAfter              float64 `json:"score_after"`
}

// Times of a scale run.
const (
	shockAt  = 20 * ident.Second
	moveTime = ident.Second
	scaleEnd = 600 * ident.Second
	lookTime = 2 * ident.Second
)

// scaled is a large cluster: the reporters are the production ones, the registry is a table, and its moves take a second each.
type scaled struct {
	*kernel.World
	servers  []balancer.Server
	nodes    []*scaleNode
	vms      []balancer.Running
	idle     []bool // by VM: the truth
	shares   [][]int
	rep      ScaleReport
	seen     bool
	moving   int
	sent     int
	bytes    int
	received []int
}

// scaleNode is a server.
type scaleNode struct {
	w        *scaled
	at       int
	node     kernel.NodeID
	reporter *balancer.Reporter
}

// Scale runs a cluster whose VMs work on one half of the servers only, from a moment on, until it is even again.
func Scale(seed uint64, servers, cells, vcpus int) (ScaleReport, error) {
	w := &scaled{World: kernel.New(seed, kernel.Network{DelayMin: 50, DelayMax: 500, LossShare: 1}), rep: ScaleReport{Servers: servers, Cells: cells, VCPUs: vcpus}, received: make([]int, servers)}
	for i := range servers {
		cell := ident.CellName(fmt.Sprintf("c%04d", i*cells/servers))
		w.servers = append(w.servers, balancer.Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(fmt.Sprintf("%s-%d", cell, i+1)), Cell: cell, Open: true, Slots: 16, MemoryBytes: 512 * ident.GiB})
	}
	for at, n := 0, 0; n < vcpus; at++ {
		k := min(1+at%4, vcpus-n)
		w.vms = append(w.vms, balancer.Running{VM: ident.VMID(at + 1), Parts: []balancer.RunningPart{{Server: ident.ServerID(at%servers + 1), VCPUs: k, Bytes: ident.GiB}}})
		n += k
	}
	w.idle = make([]bool, len(w.vms))
	for i := range w.servers {
		n := &scaleNode{w: w, at: i, reporter: balancer.NewReporter(w.servers[i].ID, 1, "")}
		n.node = w.Add(n)
		w.nodes = append(w.nodes, n)
		w.WakeAt(n.node, w.Between(ident.Millisecond, balancer.ReportGap))
	}
	w.tell()
	w.At(shockAt, w.shock)
	if err := w.RunUntil(scaleEnd, func() bool { return w.rep.EvenSeconds > 0 }); err != nil {
		return w.rep, err
	}
	if w.rep.EvenSeconds == 0 {
		return w.rep, fmt.Errorf("%d servers are not even after %d s", servers, scaleEnd/ident.Second)
	}
	seconds := float64(w.Now()) / float64(ident.Second)
	w.rep.MessagesPerServerSecond = float64(w.sent) / seconds / float64(servers)
	w.rep.BytesPerServerSecond = float64(w.bytes) / seconds / float64(servers)
	w.rep.MostPerSecond = float64(slices.Max(w.received)) / seconds
	_, w.rep.Depth = w.nodes[0].reporter.Place()
	return w.rep, nil
}

// shock lets all VMs of every second server idle.
func (w *scaled) shock() {
	for i := range w.vms {
		w.idle[i] = w.vms[i].Parts[0].Server%2 == 0
	}
	truth := slices.Clone(w.vms)
	for i := range truth {
		truth[i].Parts = slices.Clone(truth[i].Parts)
		if w.idle[i] {
			truth[i].Parts[0].Idle = truth[i].Parts[0].VCPUs
		}
	}
	w.rep.ScoreBefore = float64(balancer.Score(loaded(w.servers, truth))) / 1000
	w.At(w.Now()+lookTime, w.look)
}

// loaded counts the vCPUs that have work.
func loaded(servers []balancer.Server, vms []balancer.Running) []balancer.Server {
	out := slices.Clone(servers)
	for i := range vms {
		for _, p := range vms[i].Parts {
			out[p.Server-1].UsedVCPUs += p.VCPUs - p.Idle
			out[p.Server-1].UsedBytes += p.Bytes
		}
	}
	return out
}

// look is the leader's: it plans on what the registry has, and begins an operation if none is under way.
func (w *scaled) look() {
	since := float64(w.Now()-shockAt) / float64(ident.Second)
	if right := w.right(); right && !w.seen {
		w.seen, w.rep.SeenSeconds = true, since
	}
	if w.moving == 0 && w.Now() < scaleEnd {
		moves, atOnce := monitor.BalanceBounds(len(w.servers))
		plan := balancer.Rebalance(loaded(w.servers, w.vms), w.vms, moves)
		if len(plan) == 0 && w.seen {
			w.rep.EvenSeconds, w.rep.ScoreAfter = since, float64(balancer.Score(loaded(w.servers, w.vms)))/1000
			return
		}
		for i, t := range plan {
			w.moving++
			w.At(w.Now()+ident.Micros(i/atOnce+1)*moveTime, func() {
				w.moving--
				w.rep.Moves++
				w.move(t.VM, t.From, t.To)
				if t.With != 0 {
					w.rep.Moves++
					w.move(t.With, t.To, t.From)
				}
				if w.moving == 0 {
					w.tell()
				}
			})
		}
	}
	w.At(w.Now()+lookTime, w.look)
}

// right tells whether the registry has the true loads.
func (w *scaled) right() bool {
	for i := range w.vms {
		if p := w.vms[i].Parts[0]; (p.Idle == p.VCPUs) != w.idle[i] {
			return false
		}
	}
	return true
}

func (w *scaled) move(vm ident.VMID, from, to ident.ServerID) {
	if p := &w.vms[vm-1].Parts[0]; p.Server == from {
		p.Server = to
	}
}

// tell lets all servers know what the registry has.
func (w *scaled) tell() {
	v := balancer.ReportView{Epoch: 1}
	for _, s := range w.servers {
		v.Servers = append(v.Servers, balancer.TreeServer{ID: s.ID, Cell: s.Cell})
	}
	w.shares = make([][]int, len(w.servers))
	for i := range w.vms {
		p := w.vms[i].Parts[0]
		v.Parts = append(v.Parts, balancer.PartLoad{VM: w.vms[i].VM, Server: p.Server, VCPUs: p.VCPUs, Idle: p.Idle})
		w.shares[p.Server-1] = append(w.shares[p.Server-1], i)
	}
	for _, n := range w.nodes {
		n.reporter.SetView(w.Now()+1, v)
		n.flush()
	}
}

// Receive implements kernel.Node.
func (n *scaleNode) Receive(_ ident.Micros, from kernel.NodeID, msg any) {
	n.w.received[n.at]++
	n.reporter.Receive(n.w.Now()+1, balancer.LoadMessage{Peer: n.w.servers[from].ID, Epoch: 1, Report: msg.(*wire.LoadReport)})
	n.flush()
}

// Wake implements kernel.Node.
func (n *scaleNode) Wake(ident.Micros) {
	w := n.w
	var sample balancer.Sample
	for _, i := range w.shares[n.at] {
		p := balancer.PartSample{VM: w.vms[i].VM}
		if w.idle[i] {
			p.IdlePermille = 1000 * w.vms[i].Parts[0].VCPUs
		}
		sample.Parts = append(sample.Parts, p)
	}
	n.reporter.Take(w.Now()+1, sample)
	n.flush()
	w.WakeAt(n.node, w.Now()+balancer.ReportGap)
}

func (n *scaleNode) flush() {
	w := n.w
	for _, m := range n.reporter.Messages() {
		w.sent++
		w.bytes += len(wire.AppendLoadReport(nil, m.Report))
		w.Send(n.node, kernel.NodeID(m.Peer-1), m.Report)
	}
	for _, changes := range n.reporter.Proposals() {
		w.At(w.Now()+10*ident.Millisecond, func() {
			for _, c := range changes {
				if p := &w.vms[c.VM-1].Parts[0]; p.Server == c.Server {
					p.Idle = c.Idle
				}
			}
			w.tell()
		})
	}
}
