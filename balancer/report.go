package balancer

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Times of load reports.
const (
	ReportGap     = ident.Second     // between reports of a server
	ReportRefresh = 4 * ident.Second // a report that has nothing new is sent again after so long: one may have been lost
	proposeGap    = ident.Second     // between changes of the registry
	proposeAgain  = 3 * ident.Second // if one came to nothing
)

// Bugs that can be planted, to prove that the simulator's checks find them.
const (
	CanaryStaleTree = "stale-tree" // what was told in a former view goes on counting
	CanaryOrphan    = "orphan"     // a server goes on reporting to a parent that has died
	CanaryNoSettle  = "no-settle"  // a VM may be moved again at once
)

// Canaries lists them.
var Canaries = []string{CanaryStaleTree, CanaryOrphan, CanaryNoSettle, CanaryHalfGang}

// ReportView is the replicated state as far as load reports go.
type ReportView struct {
	Epoch   ident.Epoch
	Servers []TreeServer // live ones that run VMs
	Parts   []PartLoad   // that run, by rising VM
}

// TreeServer is a server in the load tree.
type TreeServer struct {
	ID   ident.ServerID
	Cell ident.CellName
}

// PartLoad is a part and how many of its vCPUs idle.
type PartLoad struct {
	VM     ident.VMID
	Server ident.ServerID
	VCPUs  int
	Idle   int
}

// Sample says how much of the time the vCPUs of the parts here idled since the last one.
type Sample struct {
	Parts []PartSample
}

// PartSample is the sum over a part's vCPUs, in thousandths of one.
type PartSample struct {
	VM           ident.VMID
	IdlePermille int
}

// LoadMessage is a report that another server sent, or that is to be sent to one.
type LoadMessage struct {
	Peer   ident.ServerID // the sender, or the receiver
	Epoch  ident.Epoch
	Report *wire.LoadReport
}

// Reporter is one server's part in the load tree. Reports travel from servers to the first server of their cell, and from there to the first one of
// all, which is the root; the tree follows from the view, so that everybody works out the same one, and a new one when somebody dies:
//
//	a-1 ---------- b-1 ------ d-1      the first servers of cells, as a binomial tree: the parent of number i is i with its lowest bit cleared
//	 | \            |  \       |
//	a-2 a-3        b-2  c-1   d-2      the servers of a cell likewise
//
// A report says which vCPUs idle on the sender and all below it. It is sent when that has changed, at most once in ReportGap, and now and then anyway. So each server
// sends one message in ReportGap at most, however many there are, and has no more children than the tree is deep. The root compares what it is
// told with the registry, and has that changed.
//
//	serve --Sample--> server --LoadReport--> parent --LoadReport--> ... --> root --Proposal--> registry
//
// Which vCPUs idle is smoothed over some seconds and rounded with hysteresis, or the registry would change all the time.
//
// Invariant: what a server reports is what it and its children of this view last said, no more.
type Reporter struct {
	self   ident.ServerID
	canary string
	view   ReportView
	parent ident.ServerID // 0 at the root
	depth  int
	in     bool // this server is in the tree

	own    []ownPart // by rising VM
	below  []childReport
	number uint64
	sent   *wire.LoadReport // the last one to this parent
	sentAt ident.Micros

	proposed   []PartLoad
	proposedAt ident.Micros

	messages  []LoadMessage
	proposals [][]PartLoad
	refused   uint64
}

type ownPart struct {
	vm      ident.VMID
	average int // thousandths of idle vCPUs
	idle    int // as reported
}

type childReport struct {
	from   ident.ServerID
	number uint64
	loads  []wire.ServerLoad
}

// NewReporter returns one that knows no view. start is any time that is later with each start of the server: reports are numbered from it.
func NewReporter(self ident.ServerID, start ident.Micros, canary string) *Reporter {
	return &Reporter{self: self, number: uint64(max(0, start)), canary: canary}
}

// SetView takes the replicated state over.
func (r *Reporter) SetView(now ident.Micros, v ReportView) {
	again := v.Epoch != r.view.Epoch || !slices.Equal(v.Servers, r.view.Servers)
	r.view = v
	if again {
		r.place()
		if r.canary != CanaryStaleTree {
			r.below = nil
		}
		r.sent, r.proposed = nil, nil
	}
	var kept []ownPart
	for _, p := range v.Parts {
		if p.Server != r.self {
			continue
		}
		next := ownPart{vm: p.VM}
		if i := slices.IndexFunc(r.own, func(o ownPart) bool { return o.vm == p.VM }); i >= 0 {
			next = r.own[i]
		}
		kept = append(kept, next)
	}
	r.own = kept
	r.Tick(now)
}

// place finds this server's parent in the tree.
func (r *Reporter) place() {
	parent := r.parent
	r.in, r.parent, r.depth = false, 0, 0
	for _, p := range Tree(r.view.Servers) {
		r.depth = max(r.depth, p.Depth)
		if p.Server == r.self {
			r.in, r.parent = true, p.Parent
		}
	}
	if r.canary == CanaryOrphan && parent != 0 {
		r.parent = parent
	}
}

// TreePlace is a server's place in the tree of reports.
type TreePlace struct {
	Server ident.ServerID
	Parent ident.ServerID // 0 at the root
	Depth  int            // steps to the root
}

// Tree gives each server its place, by cell and ID.
func Tree(servers []TreeServer) []TreePlace {
	order := slices.Clone(servers)
	slices.SortFunc(order, func(a, b TreeServer) int { return cmp.Or(cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.ID, b.ID)) })
	var firsts []ident.ServerID // of cells
	out := make([]TreePlace, len(order))
	at := 0 // within the cell
	for i, s := range order {
		if at++; i == 0 || s.Cell != order[i-1].Cell {
			firsts, at = append(firsts, s.ID), 0
		}
		cell := len(firsts) - 1
		out[i] = TreePlace{Server: s.ID, Depth: bitsSet(at) + bitsSet(cell)}
		if at > 0 {
			out[i].Parent = order[i-at+at&(at-1)].ID
		} else if cell > 0 {
			out[i].Parent = firsts[cell&(cell-1)]
		}
	}
	return out
}

func bitsSet(n int) int {
	c := 0
	for ; n > 0; n &= n - 1 {
		c++
	}
	return c
}

// Take takes in how much the vCPUs here idled.
func (r *Reporter) Take(now ident.Micros, s Sample) {
	for _, p := range s.Parts {
		i := slices.IndexFunc(r.own, func(o ownPart) bool { return o.vm == p.VM })
		if i < 0 {
			continue
		}
		o := &r.own[i]
		o.average += (p.IdlePermille - o.average) / 4
		if off := o.average - 1000*o.idle; off >= 750 || off <= -750 {
			o.idle = max(0, (o.average+500)/1000)
		}
	}
	r.Tick(now)
}

// Receive takes in another server's report.
func (r *Reporter) Receive(now ident.Micros, m LoadMessage) {
	if m.Epoch != r.view.Epoch && r.canary != CanaryStaleTree {
		r.refused++
		return
	}
	i := slices.IndexFunc(r.below, func(c childReport) bool { return c.from == m.Peer })
	if i < 0 {
		i = len(r.below)
		r.below = append(r.below, childReport{from: m.Peer})
	}
	c := &r.below[i]
	if m.Report.Number <= c.number {
		r.refused++
		return
	}
	c.number, c.loads = m.Report.Number, m.Report.Servers
	r.Tick(now)
}

// Loads is what this server knows of itself and all below it, by rising server.
func (r *Reporter) Loads() []wire.ServerLoad {
	mine := wire.ServerLoad{Server: r.self}
	for _, o := range r.own {
		if o.idle > 0 {
			mine.Idle = append(mine.Idle, wire.PartIdle{VM: o.vm, VCPUs: o.idle})
		}
	}
	out := []wire.ServerLoad{mine}
	for _, c := range r.below {
		out = append(out, c.loads...)
	}
	slices.SortStableFunc(out, func(a, b wire.ServerLoad) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// Tick does what is due.
func (r *Reporter) Tick(now ident.Micros) {
	switch {
	case !r.in:
	case r.parent == 0:
		r.propose(now)
	case r.sent == nil || now >= r.sentAt+ReportGap:
		loads := r.Loads()
		if r.sent != nil && now < r.sentAt+ReportRefresh && reflect.DeepEqual(loads, r.sent.Servers) {
			return
		}
		r.number = max(r.number+1, uint64(max(0, now)))
		r.sent, r.sentAt = &wire.LoadReport{Number: r.number, Servers: loads}, now
		r.messages = append(r.messages, LoadMessage{Peer: r.parent, Epoch: r.view.Epoch, Report: r.sent})
	}
}

// propose has the registry changed where it is not what the servers say. It is silent about servers that have not said anything in this view.
func (r *Reporter) propose(now ident.Micros) {
	if now < r.proposedAt+proposeGap && r.proposedAt != 0 {
		return
	}
	said := make(map[ident.ServerID][]wire.PartIdle)
	for _, s := range r.Loads() {
		said[s.Server] = s.Idle
		if s.Idle == nil {
			said[s.Server] = []wire.PartIdle{}
		}
	}
	var changes []PartLoad
	for _, p := range r.view.Parts {
		idle := said[p.Server]
		if idle == nil {
			continue
		}
		now := p
		now.Idle = 0
		if i := slices.IndexFunc(idle, func(x wire.PartIdle) bool { return x.VM == p.VM }); i >= 0 {
			now.Idle = min(idle[i].VCPUs, p.VCPUs)
		}
		if now.Idle != p.Idle {
			changes = append(changes, now)
		}
	}
	if len(changes) == 0 || slices.Equal(changes, r.proposed) && now < r.proposedAt+proposeAgain {
		return
	}
	r.proposed, r.proposedAt = changes, now
	r.proposals = append(r.proposals, changes)
}

// NextDeadline is when to call Tick at the latest.
func (r *Reporter) NextDeadline(now ident.Micros) ident.Micros {
	if r.parent == 0 {
		return max(now, r.proposedAt) + proposeGap
	}
	return max(now+1, r.sentAt+ReportGap)
}

// Messages drains what is to be sent.
func (r *Reporter) Messages() []LoadMessage {
	out := r.messages
	r.messages = nil
	return out
}

// Proposals drains changes for the registry.
func (r *Reporter) Proposals() [][]PartLoad {
	out := r.proposals
	r.proposals = nil
	return out
}

// Place tells this server's parent (0: it is the root), and how many levels the tree has.
func (r *Reporter) Place() (parent ident.ServerID, depth int) { return r.parent, r.depth }

// Check tells where the invariant is broken.
func (r *Reporter) Check() error {
	loads := r.Loads()
	for i, s := range loads {
		switch {
		case i > 0 && loads[i-1].Server == s.Server:
			return fmt.Errorf("balancer: server %d counts server %d twice", r.self, s.Server)
		case r.in && !slices.ContainsFunc(r.view.Servers, func(o TreeServer) bool { return o.ID == s.Server }):
			return fmt.Errorf("balancer: server %d counts server %d, which is not in view %d", r.self, s.Server, r.view.Epoch)
		}
	}
	return nil
}
