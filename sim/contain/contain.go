// Package contain simulates what the loss of servers does to virtual machines: the cluster of sim/cluster, with a simulated worker for
// each part of each VM. A worker runs its vCPUs while it has members and its server's lease, and outlives its serve process, as the real
// one does.
//
// After every event it holds, beside what sim/cluster checks, that
//   - no two workers run the same part of a VM, and so no vCPU runs twice;
//   - no worker runs under an incarnation that some applied view has excluded;
//   - no worker of a former incarnation is alive while its server acts as a later one.
//
// At the end faults stop, and it must hold that
//   - a VM ended only for a reason: it depended on an excluded incarnation, and its reason names what was lost and the epoch; or its
//     worker died, its guest ended, or an operator stopped it;
//   - every other VM runs, each of its parts with one worker that has the members of the VM's epoch;
//   - no worker is left that the registry does not want.
package contain

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

func init() {
	sim.Register(sim.Scenario{
		Name: "contain",
		Doc:  "VMs over several cells that lose servers, workers and serve processes: only dependants are hurt, nothing runs twice",
		Run:  Run,
		Canaries: []string{
			cells.CanaryBystander, cells.CanaryFenceSkipped, cells.CanaryLeaseIgnored, cells.CanaryExcludeEarly, cells.CanaryIncarnation,
			cells.CanaryNoGrace,
		},
	})
}

// Spans of a run.
const (
	faultsBegin = 2 * ident.Second
	settleTime  = 20 * ident.Second
)

// Run runs the world of a seed.
func Run(seed uint64, canary string) error {
	return cluster.Retell(seed, func(k *kernel.World) error { return build(k, canary).play() })
}

var shapes = []cluster.Config{
	{Cells: []int{1, 1, 1}},
	{Cells: []int{1, 1}, Witness: true},
	{Cells: []int{2, 2}, Witness: true},
	{Cells: []int{2, 1, 1}},
}

// world is a cluster with workers.
type world struct {
	*cluster.Processes[*worker]
	ended map[ident.VMID]string // why a VM may end, besides losing a server
	names []string              // of VMs that clients asked for
}

func build(k *kernel.World, canary string) *world {
	r := k.Rand()
	cfg := shapes[r.IntN(len(shapes))]
	cfg.Canary = canary
	cfg.OneHost = r.IntN(2) == 0
	cfg.SnapshotEvery = uint64(20 + r.IntN(200))
	if r.IntN(3) == 0 {
		cfg.DiskMax = k.Between(0, 5*ident.Millisecond)
	}
	w := &world{ended: make(map[ident.VMID]string)}
	w.Processes = cluster.NewProcesses(cluster.New(k, cfg), cluster.Shell[*worker]{Within: 30 * ident.Millisecond, New: w.begin, Do: w.do})
	w.OnExclude = func(cells.Member) { w.check() }
	return w
}

func (w *world) play() error {
	w.Start()
	w.Check = w.checkAll
	for range 2 + w.Rand().IntN(4) {
		w.At(w.Between(ident.Second, faultsBegin), w.create)
	}
	if err := w.Run(faultsBegin); err != nil {
		return err
	}
	end := faultsBegin + w.Between(3, 6)*ident.Second
	w.network()
	for range 1 + w.Rand().IntN(4) {
		w.fault(faultsBegin, end)
	}
	for range w.Rand().IntN(5) {
		w.mishap(w.Between(faultsBegin, end))
	}
	if err := w.Run(end); err != nil {
		return err
	}
	w.SetNetwork(kernel.Reliable())
	w.CalmDown()
	w.AllGoOn()
	if err := w.RunUntil(w.Now()+settleTime, func() bool { return w.Settled() == nil && w.unsettled() == nil }); err != nil {
		return err
	}
	if err := w.Settled(); err != nil {
		return fmt.Errorf("not settled %d us after the last fault: %w", settleTime, err)
	}
	if err := w.unsettled(); err != nil {
		return fmt.Errorf("not settled %d us after the last fault: %w", settleTime, err)
	}
	return w.onlyDependants()
}

func (w *world) network() {
	net := kernel.Network{DelayMin: 50, DelayMax: w.Between(200, 4000)}
	if w.Chance(600) {
		net.LossShare, net.RepeatShare = w.Rand().IntN(100), w.Rand().IntN(50)
		net.TailShare, net.TailMax = w.Rand().IntN(100), w.Between(10*ident.Millisecond, 300*ident.Millisecond)
	}
	w.SetNetwork(net)
}

// create has a client ask for a VM.
func (w *world) create() {
	s := w.Servers[w.Rand().IntN(len(w.Servers))]
	name := fmt.Sprintf("vm-%d", len(w.names))
	w.names = append(w.names, name)
	spec := cells.VMSpec{Name: name, Builtin: "count", VCPUs: 1 + w.Rand().IntN(4), MemoryBytes: 64 * ident.MiB}
	names := w.cellNames()
	w.Rand().Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	if n := w.Rand().IntN(len(names) + 1); n > 0 {
		spec.Span = names[:n]
	}
	if w.Chance(400) {
		spec.OnLoss = cells.OnLossTouch
	}
	w.Command(s, cells.Command{CreateVM: &cells.CreateVM{Spec: spec, Secret: strings.Repeat("0", 64)}}, 5*ident.Second, func(r monitor.Response) {
		if r.Fault != nil && r.Fault.Code == cells.CodeInvalid {
			w.Fail(fmt.Errorf("%s was refused: %s", name, r.Fault.Text))
		}
	})
}

func (w *world) cellNames() []ident.CellName {
	var out []ident.CellName
	for _, s := range w.Servers {
		if c := s.Cell(); c != "" && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// fault plans the loss of a server or cell, of a serve process only, or of connections.
func (w *world) fault(begin, end ident.Micros) {
	from := w.Between(begin, end)
	s := w.Servers[w.Rand().IntN(len(w.Servers))]
	long := w.Between(10*ident.Millisecond, 4*ident.Second)
	switch w.Rand().IntN(6) {
	case 0: // everything of a server
		w.At(from, func() { w.KillAll(s) })
		w.At(from+long, s.Restart)
	case 1: // everything of a cell
		for _, x := range w.Cell(s.Cell()) {
			w.At(from, func() { w.KillAll(x) })
			w.At(from+long, x.Restart)
		}
	case 2: // serve only: its workers go on
		if w.Chance(600) {
			long = w.Between(ident.Millisecond, 300*ident.Millisecond)
		}
		w.At(from, func() { s.Crash(false) })
		w.At(from+long, s.Restart)
	case 3: // everything of a server stands still, or serve only
		all := w.Chance(500)
		w.At(from, func() { w.Still(s, all) })
		w.At(from+long, func() { w.GoOn(s) })
	case 4: // cut off
		for _, x := range w.Servers {
			if x != s {
				w.At(from, func() { w.Cut(s.Node(), x.Node()) })
				w.At(from+long, func() { w.Heal(s.Node(), x.Node()) })
			}
		}
	case 5: // serve comes back while its server is being given up
		w.At(from, func() { s.Crash(false) })
		w.At(from+w.Between(1300*ident.Millisecond, 2200*ident.Millisecond), s.Restart)
	}
}

// mishap plans something that ends one VM.
func (w *world) mishap(at ident.Micros) {
	kind := w.Rand().IntN(4)
	w.At(at, func() {
		if len(w.Workers) == 0 || w.Calm() {
			return
		}
		x := w.Workers[w.Rand().IntN(len(w.Workers))]
		switch kind {
		case 0:
			w.ended[x.VM] = "its worker died"
			w.Die(x, "killed by signal 9")
		case 1:
			if x.epoch > 0 && x.runs() {
				w.ended[x.VM] = "its guest ended"
				x.end()
			}
		case 2:
			s := w.Servers[w.Rand().IntN(len(w.Servers))]
			w.ended[x.VM] = "it was stopped"
			w.Command(s, cells.Command{StopVM: &cells.StopVM{VM: x.VM}}, 3*ident.Second, func(monitor.Response) {})
		case 3:
			w.create()
		}
	})
}
