// Package agree simulates who is alive: three to seven servers in two or three cells, perhaps with a witness, that crash, lose power, are
// paused and cut off, come back, suspect each other wrongly, and get proposals from clients all the while.
//
// What must hold after every event is listed in sim/cluster. At the end faults stop, and then it must hold that
//   - there is one leader, and every server is back in the view, acting, under a lease, with the same state;
//   - proposals are agreed on again;
//   - every proposal that was said to be agreed on is in the log once, every other one at most once.
package agree

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

func init() {
	sim.Register(sim.Scenario{
		Name: "agree",
		Doc:  "view, leases and log over 3 to 7 servers that crash, pause, are cut off and return",
		Run:  Run,
		Canaries: []string{
			cells.CanaryReadUnapplied, cells.CanaryReadNotRefused, cells.CanaryExcludeEarly, cells.CanaryNoGrace, cells.CanaryLeaseFromReply,
			cells.CanaryLeaseIgnored, cells.CanaryIncarnation, cells.CanaryTwice, cells.CanaryProofAnyProcess,
		},
	})
}

// Spans of a run.
const (
	faultsBegin = 1500 * ident.Millisecond
	settleTime  = 20 * ident.Second
)

// Run runs the world of a seed.
func Run(seed uint64, canary string) error {
	return cluster.Retell(seed, func(k *kernel.World) error { return play(build(k, canary)) })
}

var shapes = []cluster.Config{
	{Cells: []int{1, 1, 1}},
	{Cells: []int{1, 1}, Witness: true},
	{Cells: []int{2, 2}, Witness: true},
	{Cells: []int{2, 2, 1}},
	{Cells: []int{2, 2, 2}},
}

func build(k *kernel.World, canary string) *cluster.World {
	r := k.Rand()
	cfg := shapes[r.IntN(len(shapes))]
	cfg.Canary = canary
	cfg.OneHost = r.IntN(2) == 0
	cfg.SnapshotEvery = uint64(20 + r.IntN(200))
	if r.IntN(2) == 0 {
		cfg.DiskMax = k.Between(0, 10*ident.Millisecond)
	}
	if r.IntN(10) == 0 {
		cfg.DiskMax = 60 * ident.Millisecond
	}
	if r.IntN(4) == 0 { // candidates that meet often
		cfg.Timing = cells.DefaultTiming()
		cfg.Timing.ElectionMin, cfg.Timing.ElectionMax = 100*ident.Millisecond, 115*ident.Millisecond
	}
	return cluster.New(k, cfg)
}

func play(w *cluster.World) error {
	w.Start()
	if err := w.Run(faultsBegin); err != nil {
		return err
	}
	end := faultsBegin + w.Between(3, 7)*ident.Second
	network(w)
	for range 2 + w.Rand().IntN(6) {
		fault(w, faultsBegin, end)
	}
	if w.Chance(250) { // one disk at most: a group of three survives no second loss
		s := w.Servers[w.Rand().IntN(len(w.Servers))]
		at := w.Between(faultsBegin, end-100*ident.Millisecond)
		w.At(at, func() { crash(w, s, true); s.LoseDisk() })
		w.At(at+w.Between(ident.Millisecond, 2*ident.Second), s.Restart)
	}
	clients(w, end)
	if err := w.Run(end); err != nil {
		return err
	}
	w.SetNetwork(kernel.Reliable())
	w.CalmDown()
	return settle(w)
}

// network draws how bad the network is.
func network(w *cluster.World) {
	net := kernel.Network{DelayMin: 50, DelayMax: w.Between(200, 4000)}
	switch w.Rand().IntN(4) {
	case 0:
		net.InOrder = true
	case 1:
		net.LossShare, net.RepeatShare = w.Rand().IntN(50), w.Rand().IntN(50)
	default:
		net.LossShare, net.RepeatShare = w.Rand().IntN(200), w.Rand().IntN(100)
		net.TailShare, net.TailMax = w.Rand().IntN(200), w.Between(10*ident.Millisecond, 600*ident.Millisecond)
	}
	w.SetNetwork(net)
}

// rollingCrashes crashes every process, one after the other, and again soon after it is back.
func rollingCrashes(w *cluster.World, from ident.Micros) {
	for _, x := range w.Servers {
		at := from + w.Between(0, 400*ident.Millisecond)
		w.At(at, func() { crash(w, x, w.Chance(500)) })
		w.At(at+w.Between(1000, 60*ident.Millisecond), x.Restart)
		again := at + w.Between(100*ident.Millisecond, 300*ident.Millisecond)
		w.At(again, func() { crash(w, x, false) })
		w.At(again+w.Between(100, 5*ident.Millisecond), x.Restart)
	}
}

// forgetfulGoBetween cuts two servers from each other and keeps crashing a third that both reach.
func forgetfulGoBetween(w *cluster.World, from ident.Micros, s, o *cluster.Server) {
	x := w.Servers[w.Rand().IntN(len(w.Servers))]
	if s == o || x == s || x == o {
		return
	}
	w.At(from, func() { w.Cut(s.Node(), o.Node()); crash(w, s, false); crash(w, o, false) })
	w.At(from+ident.Millisecond, func() { s.Restart(); o.Restart() })
	for at := from; at < from+2*ident.Second; at += w.Between(4*ident.Millisecond, 40*ident.Millisecond) {
		w.At(at, func() { crash(w, x, false) })
		w.At(at+w.Between(100, ident.Millisecond), x.Restart)
	}
	w.At(from+2*ident.Second, func() { w.Heal(s.Node(), o.Node()) })
}

// fault plans one fault between two times.
func fault(w *cluster.World, begin, end ident.Micros) {
	from := w.Between(begin, end)
	s := w.Servers[w.Rand().IntN(len(w.Servers))]
	o := w.Servers[w.Rand().IntN(len(w.Servers))]
	long := w.Between(10*ident.Millisecond, 3*ident.Second)
	switch w.Rand().IntN(11) {
	case 0, 1: // a process
		power := w.Chance(300)
		w.At(from, func() { crash(w, s, power) })
		w.At(from+long, s.Restart)
	case 2: // one that comes back before anyone noticed
		w.At(from, func() { crash(w, s, false) })
		w.At(from+w.Between(1000, 100*ident.Millisecond), s.Restart)
	case 3: // a whole cell
		for _, x := range w.Cell(s.Cell()) {
			w.At(from+w.Between(0, 5*ident.Millisecond), func() { crash(w, x, false) })
			w.At(from+long+w.Between(0, ident.Second), x.Restart)
		}
	case 4, 5: // paused
		w.At(from, s.Pause)
		w.At(from+long, s.Resume)
	case 6: // one server cut off, one way or both
		for _, x := range w.Servers {
			if x == s {
				continue
			}
			w.At(from, func() {
				if o == s {
					w.CutOneWay(s.Node(), x.Node())
				} else {
					w.Cut(s.Node(), x.Node())
				}
			})
			w.At(from+long, func() { w.Heal(s.Node(), x.Node()) })
		}
	case 7: // one link
		if s != o {
			w.At(from, func() { w.Cut(s.Node(), o.Node()) })
			w.At(from+long, func() { w.Heal(s.Node(), o.Node()) })
		}
	case 8: // a cell cut off
		for _, x := range w.Cell(s.Cell()) {
			for _, y := range w.Servers {
				if y.Cell() != s.Cell() {
					w.At(from, func() { w.Cut(x.Node(), y.Node()) })
					w.At(from+long, func() { w.Heal(x.Node(), y.Node()) })
				}
			}
		}
	case 9: // all processes, one after the other, while they elect
		rollingCrashes(w, from)
	case 10: // two that cannot hear each other, and one between them that forgets what it does not write down
		forgetfulGoBetween(w, from, s, o)
	}
	if w.Chance(300) { // a wrong suspicion
		w.At(from, func() { o.Step(monitor.Hint{Server: s.ID, Source: "gossip"}) })
	}
}

func crash(w *cluster.World, s *cluster.Server, power bool) {
	s.Crash(power)
	for _, o := range w.Servers {
		if o != s && w.Chance(600) {
			o.After(w.Between(500, 20*ident.Millisecond), func() monitor.Event { return monitor.Hint{Server: s.ID, Source: "connection reset"} })
		}
	}
}

// clients plan proposals at random servers.
func clients(w *cluster.World, end ident.Micros) {
	for range 10 + w.Rand().IntN(20) {
		s := w.Servers[w.Rand().IntN(len(w.Servers))]
		w.At(w.Between(faultsBegin, end), func() { w.Propose(s, w.Between(500*ident.Millisecond, 4*ident.Second)) })
	}
}

// settle waits until all is well again, and checks what must hold then.
func settle(w *cluster.World) error {
	limit := w.Now() + settleTime
	if err := w.RunUntil(limit, func() bool { return w.Settled() == nil }); err != nil {
		return err
	}
	if err := w.Settled(); err != nil {
		return fmt.Errorf("not settled %d us after the last fault: %w", settleTime, err)
	}
	agreed := w.Agreed()
	for _, s := range w.Servers {
		w.Propose(s, 5*ident.Second)
	}
	want := agreed + len(w.Servers)
	if err := w.RunUntil(w.Now()+6*ident.Second, func() bool { return w.Agreed() >= want && w.Settled() == nil }); err != nil {
		return err
	}
	if got := w.Agreed(); got < want {
		return fmt.Errorf("of %d proposals after the last fault %d were agreed on", len(w.Servers), got-agreed)
	}
	if err := w.Settled(); err != nil {
		return fmt.Errorf("not settled at the end: %w", err)
	}
	return w.ExactlyOnce()
}
