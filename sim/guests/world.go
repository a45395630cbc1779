// Package guests is a simulated cluster that runs VMs: the cluster of sim/cluster, whose production cores decide, with worker processes that run
// models of the built-in payloads, cut checkpoints, ship them to standbys, let output leave only when it is safe, and move when they are asked to.
// It is driven from outside: by drills, which break it as they break a real one.
//
// Besides what sim/cluster checks it holds after every event that
//   - what the outside has seen of a VM never changes (output commit);
//   - no two workers of one VM act as home in the same VM epoch, and none acts for an incarnation that a view has excluded.
package guests

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// Planted bugs of the simulated workers.
const (
	CanaryReleaseEarly = "release-before-ack" // output leaves when a checkpoint is cut, not when it is safe
	CanaryStaleReplica = "stale-replica"      // a standby takes over with the checkpoint before the last
)

// World is a simulated cluster with workers.
type World struct {
	*cluster.Processes[*worker]
	Canary string

	seen   map[ident.VMID][]record // what the outside has seen
	cuts   map[[2]ident.ServerID]bool
	broken map[ident.ServerID]bool // servers whose disk takes no writes
}

// New builds a cluster of cells with the same number of servers each; two cells get a witness. Nothing runs before Start.
func New(seed uint64, count, perCell int, tracing bool) *World {
	k := kernel.New(seed, kernel.Reliable())
	k.Tracing = tracing
	r := k.Rand()
	cfg := cluster.Config{OneHost: r.IntN(2) == 0, Slots: 16, SnapshotEvery: uint64(50 + r.IntN(500)), DiskMax: ident.Micros(r.IntN(3000)), Witness: count == 2}
	for range count {
		cfg.Cells = append(cfg.Cells, perCell)
	}
	w := &World{seen: make(map[ident.VMID][]record), cuts: make(map[[2]ident.ServerID]bool), broken: make(map[ident.ServerID]bool)}
	w.Processes = cluster.NewProcesses(cluster.New(k, cfg), cluster.Shell[*worker]{Within: 100 * ident.Millisecond, New: w.begin, Do: w.do, Stopping: w.stopping})
	w.Check = w.check
	if w.Chance(500) { // a network that is worse than a rack's
		w.SetNetwork(kernel.Network{DelayMin: 50, DelayMax: w.Between(200, 3000), TailShare: r.IntN(20), TailMax: 50 * ident.Millisecond, InOrder: true})
	}
	return w
}

// Output is what the outside has seen of a VM, from an index on.
func (w *World) Output(vm ident.VMID, from uint64) []uint32 {
	seen := w.seen[vm]
	var out []uint32
	for _, r := range seen[min(from, uint64(len(seen))):] {
		out = append(out, r.value)
	}
	return out
}

// Best returns the running server that knows most: one under a lease before one without. Nil if none runs.
func (w *World) Best() *cluster.Server {
	var best *cluster.Server
	rank := func(s *cluster.Server) (bool, uint64) {
		return s.Core.Status(s.Clock()).Quorum && s.Clock() < s.Lease.Until, s.Core.Peek().Applied
	}
	for _, s := range w.Servers {
		if !s.Running() {
			continue
		}
		if best == nil {
			best = s
			continue
		}
		leased, applied := rank(s)
		if l, a := rank(best); leased != l && leased || leased == l && applied > a {
			best = s
		}
	}
	return best
}

// Named returns the server of this name, or nil.
func (w *World) Named(name ident.ServerName) *cluster.Server {
	for _, s := range w.Servers {
		if s.Name() == name {
			return s
		}
	}
	return nil
}

// check holds after every event.
func (w *World) check() error {
	for i, x := range w.Workers {
		if !x.acts() {
			continue
		}
		if e, out := w.Excluded(cells.Member{Server: x.Server.ID, Incarnation: x.Incarnation}); out {
			return fmt.Errorf("vm %d part %d runs on server %s as incarnation %d, which epoch %d excluded", x.VM, x.Part, x.Server.Name(), x.Incarnation, e)
		}
		for _, y := range w.Workers[:i] {
			if y.VM == x.VM && y.epoch == x.epoch && y.home && x.home && y.acts() {
				return fmt.Errorf("vm %d has two homes in epoch %d: part %d and part %d", x.VM, x.epoch, y.Part, x.Part)
			}
		}
	}
	return nil
}

// release lets the first n records of a home's log be seen.
func (w *World) release(x *worker, n int) {
	if n <= x.released {
		return
	}
	from := x.released
	x.released = n
	seen := w.seen[x.VM]
	for i := from; i < min(n, len(seen)); i++ {
		if x.guest.log[i] != seen[i] {
			w.Fail(fmt.Errorf("vm %d part %d: the outside saw record %d as made in epoch %d, now it is one of epoch %d", x.VM, x.Part, i, seen[i].epoch, x.guest.log[i].epoch))
			return
		}
	}
	if n > len(seen) {
		w.seen[x.VM] = append(seen, x.guest.log[len(seen):n]...)
	}
}
