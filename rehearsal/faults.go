package rehearsal

import (
	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	sim "github.com/cellvisor/cellvisor/sim/cluster"
)

// apply puts a server's faults in force.
func (w *world) apply(s *sim.Server, faults []*api.Fault) {
	for _, f := range faults {
		peer := w.Named(ident.ServerName(f.GetPeer()))
		switch f.GetKind() {
		case api.FaultKind_FAULT_KIND_CUT:
			w.CutLink(s, peer, true)
		case api.FaultKind_FAULT_KIND_SHAPE:
			w.ShapeLink(s, peer, millis(f.GetDelayMs()), millis(f.GetJitterMs()), int(f.GetLossPermille()))
		case api.FaultKind_FAULT_KIND_DISK_FULL, api.FaultKind_FAULT_KIND_DISK_ERROR:
			w.DiskFails(s)
		case api.FaultKind_FAULT_KIND_WEDGE:
			w.Wedge(s, millis(f.GetLastsMs()))
		}
	}
}

// mend ends a server's faults.
func (w *world) mend(s *sim.Server, faults []*api.Fault) {
	for _, f := range faults {
		peer := w.Named(ident.ServerName(f.GetPeer()))
		switch f.GetKind() {
		case api.FaultKind_FAULT_KIND_CUT:
			w.CutLink(s, peer, false)
		case api.FaultKind_FAULT_KIND_SHAPE:
			w.ShapeLink(s, peer, 0, 0, 0)
		case api.FaultKind_FAULT_KIND_DISK_FULL, api.FaultKind_FAULT_KIND_DISK_ERROR:
			w.DiskMends(s)
		case api.FaultKind_FAULT_KIND_WEDGE:
			w.Unwedge(s)
		}
	}
}

func millis(n uint32) ident.Micros { return ident.Micros(n) * ident.Millisecond }
