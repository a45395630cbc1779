// Package balance simulates the balancers: servers in cells whose VMs idle and wake, load reports that are lost, servers that die, cells that are cordoned
// while VMs and single vCPUs move. The reporters, the plans and the replicated state are the production ones; what workers and the agreement take is only time here.
//
// It holds, at any time
//   - nobody in the load tree counts a server twice, or one that is not in the view;
//   - a move begins only to a server that is live, open, large enough and runs no sibling, and leaves a VM in its span and in no more cells;
//   - a vCPU goes only to a part of its VM that is on such a server, with a slot for it, and never leaves a cell of the VM's span without one;
//   - what the idle balancer takes stays in its cell, and has slots for all of its VM's work then;
//   - every vCPU is on exactly one part;
//   - no VM is moved twice within the time that it is to settle, but for several vCPUs of one move.
//
// Once nothing changes any more, the root knows of every live server, the registry has the true loads, and no move is left that would make them more even.
package balance

import (
	"fmt"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "balance",
		Doc:      "loads that shift, reports that are lost, servers that die: the tree's sums are right, moves only where they may, no ping-pong",
		Run:      Run,
		Canaries: append([]string{cells.CanaryStaleMove, balancer.CanaryBareCell, cells.CanaryTwinVCPU}, balancer.Canaries...),
	})
}

// Run runs the world of a seed. If it fails, it runs it again to tell the end of its story.
func Run(seed uint64, canary string) error {
	if err := run(seed, canary, false); err == nil {
		return nil
	}
	return run(seed, canary, true)
}

// Spans of a run.
const (
	restless   = 60 * ident.Second // faults and shifts until then
	runTime    = 360 * ident.Second
	detectTime = 1700 * ident.Millisecond
	settle     = 30 * ident.Second
	scanTime   = 100 * ident.Millisecond
)

func run(seed uint64, canary string, tracing bool) error {
	k := kernel.New(seed, kernel.Network{DelayMin: 30, DelayMax: 2 * ident.Millisecond, LossShare: 100, RepeatShare: 20, TailShare: 20, TailMax: 800 * ident.Millisecond})
	k.Tracing = tracing
	w := &world{World: k, canary: canary, watch: monitor.BalanceWatch{Canary: canary}, moved: map[ident.VMID]lastMove{}, idle: map[key]int{}}
	if err := w.build(); err != nil {
		return fmt.Errorf("the world cannot be built: %w", err)
	}
	w.scan()
	w.shift()
	for range k.Rand().IntN(4) {
		k.At(k.Between(5*ident.Second, restless), w.fault)
	}
	err := w.Run(runTime)
	if err == nil {
		err = w.checkEnd()
	}
	if err != nil && tracing {
		err = fmt.Errorf("%w\n%s", err, k.Trace())
	}
	return err
}

type world struct {
	*kernel.World
	canary  string
	fsm     *cells.FSM
	index   uint64
	watch   monitor.BalanceWatch
	servers []*server
	idle    map[key]int // the truth
	moved   map[ident.VMID]lastMove
	handed  int // vCPUs that went from part to part
}

// lastMove is when a VM, or one of its vCPUs, was last moved, and by what.
type lastMove struct {
	at ident.Micros
	op cells.OpID
}

// key names a VM's vCPUs wherever they are: idling is the guest's.
type key struct {
	vm   ident.VMID
	vcpu ident.VCPU
}

// server is a serve process as far as load goes.
type server struct {
	w        *world
	id       ident.ServerID
	node     kernel.NodeID
	reporter *balancer.Reporter
	dead     bool
}

type envelope struct {
	from    ident.ServerID
	message balancer.LoadMessage
}

const term = 1

// apply puts a command into the log.
func (w *world) apply(c cells.Command) (cells.Applied, error) {
	w.index++
	c.Version, c.Request, c.UnixMs = cells.CommandVersion, cells.RequestID(fmt.Sprint("r-", w.index)), int64(w.Now()/ident.Millisecond)+1
	data, err := cells.EncodeCommand(&c)
	if err != nil {
		return cells.Applied{}, err
	}
	before := w.fsm.State().Clone()
	a := w.fsm.Apply(w.index, term, data)
	w.fsm.Check()
	if a.Fault != nil {
		return a, a.Fault
	}
	for i := range a.Events {
		w.Tracef("%s", a.Events[i].Text)
	}
	if err := w.checkMoves(&before, w.fsm.State()); err != nil {
		w.Fail(err)
	}
	return a, nil
}

func (w *world) build() error {
	w.fsm = monitor.NewFSM("sim", w.canary)
	r := w.Rand()
	count := 2 + r.IntN(9)
	for i := range count {
		cell := ident.CellName(rune('a' + i*(1+r.IntN(4))/count))
		info := cells.ServerInfo{Name: ident.ServerName(fmt.Sprintf("%s-%d", cell, i+1)), Cell: cell, Role: cells.RoleServer, Process: cells.Process{PID: i + 1, Boot: fmt.Sprint("boot-", i)},
			Slots: 1 + r.IntN(8), MemoryBytes: ident.GiB}
		a, err := w.apply(cells.Command{AddServer: &cells.AddServer{Info: info}})
		if err != nil {
			return err
		}
		sv := w.fsm.State().ServerNamed(info.Name)
		if _, err := w.apply(cells.Command{Admit: &cells.Admit{Server: sv.ID, BaseIncarnation: sv.Incarnation, BaseBoot: sv.Process.Boot, Info: info}}); err != nil {
			return fmt.Errorf("%w after %s", err, a.Result)
		}
		s := &server{w: w, id: sv.ID}
		s.node = w.Add(s)
		s.reporter = balancer.NewReporter(sv.ID, 1, w.canary)
		w.servers = append(w.servers, s)
	}
	for i := range 2 + r.IntN(16) {
		w.addVM(i)
	}
	for range r.IntN(13) {
		w.At(w.Between(ident.Second, restless), w.spread)
	}
	if _, err := w.apply(cells.Command{SetBalance: &cells.SetBalance{Mode: cells.BalanceAuto}}); err != nil {
		return err
	}
	for _, s := range w.servers {
		s.learn()
		w.WakeAt(s.node, w.Between(ident.Millisecond, balancer.ReportGap))
	}
	return nil
}

// addVM starts a VM if it fits; some are asked to lie in several cells.
func (w *world) addVM(i int) {
	r := w.Rand()
	spec := cells.VMSpec{Name: fmt.Sprint("vm-", i), Builtin: "hello", VCPUs: 1 + r.IntN(5), MemoryBytes: ident.Bytes(1+r.IntN(200)) * ident.MiB}
	if all := w.fsm.State().Cells(); r.IntN(3) == 0 && len(all) > 1 && spec.VCPUs > 1 {
		spec.Span = all[:2]
	}
	secret := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	if _, err := w.apply(cells.Command{CreateVM: &cells.CreateVM{Spec: spec, Secret: secret}}); err != nil {
		return
	}
	vm := w.fsm.State().VMNamed(spec.Name)
	for _, p := range vm.Parts {
		w.ready(vm.ID, p)
	}
}

func (w *world) ready(vm ident.VMID, p cells.VMPart) {
	_, _ = w.apply(cells.Command{PartReady: &cells.PartReady{VM: vm, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, PID: 1, Addr: "x"}})
}
