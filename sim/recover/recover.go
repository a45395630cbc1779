// Package recover simulates protection by replicas: the cluster of sim/cluster, with workers that run a counting guest, cut checkpoints,
// ship them to standbys and let output leave only when they are safe, and the production cores that decide who is protected, who is lost, and
// who takes over.
//
// A record is named by the VM epoch in which it was made, so that a guest that goes back and runs again makes other records than before. After
// every event it holds that
//   - what the outside has seen of a VM never changes: every later home's log begins with it (output commit);
//   - no two workers of one VM act as home in the same VM epoch, and none acts without its server's lease.
//
// At the end faults stop, and it must hold that every VM that still runs is safe again and emits records, and that every other one is lost with a
// reason. Where at most one cell was struck at a time, and the next only after protection was safe again, no VM is lost at all; nor where two were,
// together or one in the recovery from the other, and all VMs have two replicas.
package recover

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// Planted bugs of the simulated workers.
const (
	canaryReleaseEarly   = "release-before-ack"   // output leaves when a checkpoint is cut, not when it is safe
	canaryStaleReplica   = "stale-replica"        // a standby takes over with the checkpoint before the last
	canarySafeEarly      = "safe-before-ack"      // home says that the VM is safe when the first checkpoint is cut
	canaryHoldSkipped    = "hold-skipped"         // output is not held back at all
	canaryFallback       = "fallback-forgotten"   // a new home lets output leave that the other replicas do not know of
	canaryLeaseForgotten = "worker-lease-ignored" // a worker runs on when its server's lease has lapsed
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "recover",
		Doc:      "protected VMs that lose cells, servers and workers at any moment: nothing seen is taken back, nothing runs twice, safe again",
		Run:      Run,
		Canaries: []string{canaryReleaseEarly, canaryStaleReplica, canarySafeEarly, canaryHoldSkipped, canaryFallback, canaryLeaseForgotten},
	})
}

// Spans of a run.
const (
	faultsBegin = 3 * ident.Second
	settleTime  = 30 * ident.Second
)

// Run runs the world of a seed.
func Run(seed uint64, canary string) error { return play(seed, canary, func(*world) {}) }

// play runs the world of a seed as shape makes it.
func play(seed uint64, canary string, shape func(*world)) error {
	return cluster.Retell(seed, func(k *kernel.World) error {
		w := build(k, canary)
		shape(w)
		return w.play()
	})
}

var shapes = []cluster.Config{
	{Cells: []int{1, 1, 1}},
	{Cells: []int{2, 1, 1}},
	{Cells: []int{1, 1, 1, 1}},
	{Cells: []int{1, 1, 1, 1, 1}},
}

// world is a cluster with workers.
type world struct {
	*cluster.Processes[*worker]
	canary string
	gentle bool // one cell at a time, the next when all are safe again
	double bool // gentle, with two cells in turn or together, and VMs that have two replicas each
	names  int
	seen   map[ident.VMID][]record // what the outside has seen
	cutOff map[ident.ServerID]bool

	disks    bool // VMs have disks
	pages    bool // and memory of which checkpoints name blocks
	writes   uint32
	images   map[place]*image
	promised map[string]*promised // by directory of a disk: what the outside was told
}

func build(k *kernel.World, canary string) *world {
	r := k.Rand()
	cfg := shapes[r.IntN(len(shapes))]
	cfg.OneHost = r.IntN(2) == 0
	cfg.SnapshotEvery = uint64(20 + r.IntN(200))
	gentle := r.IntN(3) == 0
	double := gentle && len(cfg.Cells) == 5 // two are lost and a majority is left
	w := &world{canary: canary, gentle: gentle, double: double, seen: make(map[ident.VMID][]record), cutOff: make(map[ident.ServerID]bool),
		images: make(map[place]*image), promised: make(map[string]*promised)}
	w.Processes = cluster.NewProcesses(cluster.New(k, cfg), cluster.Shell[*worker]{Within: 30 * ident.Millisecond, New: w.begin, Do: w.do})
	return w
}

func (w *world) play() error {
	w.Start()
	w.Check = w.checkAll
	for range 1 + w.Rand().IntN(3) {
		w.At(w.Between(ident.Second, 2*ident.Second), w.create)
	}
	if err := w.Run(faultsBegin); err != nil {
		return err
	}
	if err := w.strike(); err != nil {
		return err
	}
	w.SetNetwork(kernel.Reliable())
	clear(w.cutOff)
	w.CalmDown()
	w.AllGoOn()
	done := func() bool { return w.Settled() == nil && w.unsettled() == nil }
	if err := w.RunUntil(w.Now()+settleTime, done); err != nil {
		return err
	}
	if err := w.Settled(); err != nil {
		return fmt.Errorf("not settled %d us after the last fault: %w", settleTime, err)
	}
	if err := w.unsettled(); err != nil {
		return fmt.Errorf("not settled %d us after the last fault: %w", settleTime, err)
	}
	return w.justified()
}

// strike lets faults happen: in a gentle run one cell after the other, else whatever comes.
func (w *world) strike() error {
	if !w.gentle {
		end := faultsBegin + w.Between(3, 6)*ident.Second
		w.network()
		for range 1 + w.Rand().IntN(4) {
			at := w.Between(faultsBegin, end)
			if w.disks && w.Chance(600) {
				end = max(end, w.diskFault(at))
			} else {
				w.fault(at)
			}
		}
		return w.Run(end)
	}
	for range 1 + w.Rand().IntN(3) {
		quiet := func() bool { return w.Settled() == nil && w.unsettled() == nil }
		if err := w.RunUntil(w.Now()+settleTime, quiet); err != nil {
			return err
		}
		if !quiet() {
			return fmt.Errorf("not safe again %d us after the last fault: %v, %v", settleTime, w.Settled(), w.unsettled())
		}
		first := w.Rand().IntN(len(w.Servers))
		at := w.Now() + w.Between(0, 300*ident.Millisecond)
		end := w.loseCell(first, at)
		if w.double { // the other one at any moment of the recovery, or just after
			when, long := at+w.Between(0, 1500*ident.Millisecond), w.Between(10*ident.Millisecond, 4*ident.Second)
			other := (first + 1 + w.Rand().IntN(len(w.Servers)-1)) % len(w.Servers)
			if w.Chance(500) {
				w.At(when, func() { w.loseHome(first, other, long) })
			} else { // whoever takes over from the first, as soon as it has
				when += 2 * ident.Second
				w.At(at, func() { w.loseHeir(first, other, when, long) })
			}
			end = max(end, when+long)
		}
		if err := w.Run(end + ident.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// loseCell plans the loss of the cell of server i, and returns when it is back.
func (w *world) loseCell(i int, at ident.Micros) ident.Micros {
	long := w.Between(10*ident.Millisecond, 4*ident.Second)
	for _, s := range w.Cell(w.Servers[i].Cell()) {
		w.At(at, func() { w.KillAll(s) })
		w.At(at+long, s.Restart)
	}
	return at + long
}

// loseHeir kills a home that has just taken over, or, if none has by then, the other server.
func (w *world) loseHeir(not, other int, by, long ident.Micros) {
	for _, x := range w.Workers {
		if x.home && x.ran && x.Server != w.Servers[not] && x.acts() {
			w.At(min(by, w.Now()+w.Between(0, 60*ident.Millisecond)), func() { w.loseHome(not, slices.Index(w.Servers, x.Server), long) })
			return
		}
	}
	if w.Now()+5*ident.Millisecond >= by {
		w.loseHome(not, other, long)
		return
	}
	w.At(w.Now()+5*ident.Millisecond, func() { w.loseHeir(not, other, by, long) })
}

// loseHome kills the cell of a home that lives, as often as not the one that has just taken over; or else the other one.
func (w *world) loseHome(not, other int, long ident.Micros) {
	for _, x := range w.Workers {
		if x.home && x.Server != w.Servers[not] && w.Chance(700) {
			other = slices.Index(w.Servers, x.Server)
		}
	}
	s := w.Servers[other]
	w.KillAll(s)
	w.At(w.Now()+long, s.Restart)
}

func (w *world) network() {
	net := kernel.Network{DelayMin: 50, DelayMax: w.Between(200, 4000)}
	if w.Chance(500) {
		net.LossShare, net.TailShare, net.TailMax = w.Rand().IntN(60), w.Rand().IntN(60), w.Between(10*ident.Millisecond, 200*ident.Millisecond)
	}
	w.SetNetwork(net)
}

// create has a client ask for a protected VM over one or two cells.
func (w *world) create() {
	w.names++
	spec := cells.VMSpec{Name: fmt.Sprintf("vm-%d", w.names), Builtin: "count", VCPUs: 1 + w.Rand().IntN(2), MemoryBytes: 64 * ident.MiB, Protect: cells.ProtectReplica, Replicas: 1}
	spec.Span = []ident.CellName{w.Servers[0].Cell()}
	if spec.VCPUs == 2 && w.Chance(700) {
		spec.Span = append(spec.Span, w.Servers[len(w.Servers)-1].Cell())
	}
	if len(w.Config.Cells) > 3 && w.Chance(400) || w.double {
		spec.Replicas = 2
	}
	if w.disks {
		w.diskSpec(&spec)
	}
	s := w.Servers[w.Rand().IntN(len(w.Servers))]
	w.Command(s, cells.Command{CreateVM: &cells.CreateVM{Spec: spec, Secret: strings.Repeat("0", 64)}}, 5*ident.Second, func(r monitor.Response) {
		if r.Fault != nil && r.Fault.Code == cells.CodeInvalid {
			w.Fail(fmt.Errorf("%s was refused: %s", spec.Name, r.Fault.Text))
		}
	})
}

// fault plans the loss of a server or cell, of a serve process only, of a worker, or of connections.
func (w *world) fault(from ident.Micros) {
	s := w.Servers[w.Rand().IntN(len(w.Servers))]
	long := w.Between(10*ident.Millisecond, 4*ident.Second)
	switch w.Rand().IntN(6) {
	case 0, 1: // everything of a cell
		for _, x := range w.Cell(s.Cell()) {
			w.At(from, func() { w.KillAll(x) })
			w.At(from+long, x.Restart)
		}
	case 2: // serve only: its workers go on
		w.At(from, func() { s.Crash(false) })
		w.At(from+long, s.Restart)
	case 3: // everything of a server stands still, or serve only
		all := w.Chance(700)
		w.At(from, func() { w.Still(s, all) })
		w.At(from+long, func() { w.GoOn(s) })
	case 4: // cut off
		w.At(from, func() { w.cutOff[s.ID] = !w.Calm() })
		w.At(from+long, func() { w.cutOff[s.ID] = false })
		for _, x := range w.Servers {
			if x != s {
				w.At(from, func() { w.Cut(s.Node(), x.Node()) })
				w.At(from+long, func() { w.Heal(s.Node(), x.Node()) })
			}
		}
	case 5: // one worker
		w.At(from, func() {
			if on := w.On(s); len(on) > 0 && !w.Calm() {
				w.Die(on[w.Rand().IntN(len(on))], "killed by signal 9")
			}
		})
	}
}
