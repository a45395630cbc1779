package recover

import (
	"slices"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/cluster"
)

// What the worlds with disks are, and what befalls them.

// diskFault plans a fault of the scenario with disks, besides those of the other, and returns when it is over.
func (w *world) diskFault(from ident.Micros) (over ident.Micros) {
	long := w.Between(10*ident.Millisecond, 4*ident.Second)
	i := w.Rand().IntN(len(w.Servers))
	s := w.Servers[i]
	restart := func(at ident.Micros, servers []*cluster.Server) {
		for _, o := range servers {
			w.At(at+w.Between(0, 100*ident.Millisecond), o.Restart)
		}
	}
	lone := []*cluster.Server{s}
	switch w.Rand().IntN(5) {
	case 0: // all power
		w.At(from, func() { w.losePower(w.Servers) })
		restart(from+long, w.Servers)
	case 1: // that of a server, whose copies are damaged while it is down
		w.At(from, func() { w.losePower(lone) })
		w.At(from+long/2, func() { w.tamper(s) })
		restart(from+long, lone)
	case 2: // twice all power, and then a copy is one of before the first
		again := from + long + w.Between(2*ident.Second, 4*ident.Second)
		w.At(w.Between(2*ident.Second, from), w.backUp)
		w.At(from, func() { w.losePower(w.Servers) })
		restart(from+long, w.Servers)
		w.At(again, func() { w.losePower(w.Servers) })
		w.At(again+50*ident.Millisecond, func() { w.tamper(s) })
		restart(again+100*ident.Millisecond, w.Servers)
		return again + ident.Second
	case 3: // a mirror is damaged while its server is down; when it is back a home is lost
		then := from + 100*ident.Millisecond + w.Between(ident.Second, 4*ident.Second)
		w.At(from, func() { w.KillAll(s) })
		w.At(from+50*ident.Millisecond, func() { w.tamper(s) })
		restart(from+100*ident.Millisecond, lone)
		w.At(then, func() { w.loseHome(i, (i+1)%len(w.Servers), ident.Second) })
		return then + ident.Second
	default:
		w.At(from, func() { w.losePower(lone) })
		restart(from+long, lone)
	}
	return from + long
}

// diskSpec gives a VM its disk.
func (w *world) diskSpec(spec *cells.VMSpec) {
	spec.Disks = []cells.DiskSpec{{Name: "disk-" + spec.Name, Bytes: diskBlocks * cells.DiskBlockBytes}}
	if w.Chance(700) {
		spec.Restart = cells.RestartAlways
	}
	if !w.gentle && w.Chance(300) {
		spec.Protect, spec.Replicas = cells.ProtectNone, 0
		if w.Chance(700) && !w.pages {
			spec.Disks[0].Mirrors, spec.Restart, spec.Span = 1+w.Rand().IntN(2), cells.RestartAlways, nil // it may start again at a mirror
		}
	}
}

// diskJustified tells whether a VM with a disk may have ended as it has.
func (w *world) diskJustified(vm *cells.VM) bool {
	return vm.Reason != "" && slices.Contains([]cells.VMState{cells.VMLost, cells.VMFailed}, vm.State)
}
