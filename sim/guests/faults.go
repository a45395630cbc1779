package guests

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/sim/kernel"
	"github.com/cellvisor/cellvisor/wire"
)

// What can be done to the world. Each is what a drill does to real processes, sockets and disks.

// Kill ends all processes of a server, or its serve process only.
func (w *World) Kill(s *cluster.Server, serveOnly bool) {
	if serveOnly {
		s.Crash(false)
	} else {
		w.KillAll(s)
	}
}

// Stop stops all processes of a server as SIGSTOP does.
func (w *World) Stop(s *cluster.Server) { w.Still(s, true) }

// Continue is the end of Stop.
func (w *World) Continue(s *cluster.Server) { w.GoOn(s) }

// Start starts a server's serve process. While its disk takes no writes it ends again at once.
func (w *World) Start(s *cluster.Server) {
	s.Restart()
	if w.broken[s.ID] {
		w.DiskFails(s)
	}
}

// PID is the process number of a server's serve process, 0 while there is none.
func (w *World) PID(s *cluster.Server) int {
	if s.Core == nil {
		return 0
	}
	return 1_000_000 + s.Boots()*1000 + int(s.ID)
}

// WorkerPIDs lists the process numbers of a server's workers.
func (w *World) WorkerPIDs(s *cluster.Server) (pids []int) {
	for _, x := range w.On(s) {
		pids = append(pids, x.PID)
	}
	return pids
}

// KillWorker kills the worker with this process number; false if there is none.
func (w *World) KillWorker(pid int) bool {
	for _, x := range w.Workers {
		if x.PID == pid {
			w.Die(x, "killed by signal 9")
			return true
		}
	}
	return false
}

// StopWorker stops or continues one worker.
func (w *World) StopWorker(pid int, on bool) {
	for _, x := range w.Workers {
		if x.PID == pid {
			x.Paused = on
		}
	}
}

// CutLink cuts the connections between two servers, or mends them.
func (w *World) CutLink(a, b *cluster.Server, on bool) {
	if on {
		w.Cut(a.Node(), b.Node())
	} else {
		w.Heal(a.Node(), b.Node())
	}
	w.cuts[pair(a.ID, b.ID)] = on
}

// ShapeLink slows the connections between two servers down: every message takes longer by delay to delay+jitter, and one of a thousand, lossPermille
// times, as long as TCP needs to send it again. All zero mends.
func (w *World) ShapeLink(a, b *cluster.Server, delay, jitter ident.Micros, lossPermille int) {
	var net *kernel.Network
	if delay+jitter > 0 || lossPermille > 0 {
		net = &kernel.Network{DelayMin: 50 + delay, DelayMax: 500 + delay + jitter, TailShare: lossPermille, TailMax: delay + 2*Resend, InOrder: true}
	}
	w.SetLink(a.Node(), b.Node(), net)
	w.SetLink(b.Node(), a.Node(), net)
}

// Resend is how long TCP waits before it sends a lost segment again.
const Resend = 200 * ident.Millisecond

// DiskFails lets writes of a server's disk fail from now on. Its serve process ends at the next one, and takes its workers along.
func (w *World) DiskFails(s *cluster.Server) {
	w.broken[s.ID] = true
	boot := s.Boot()
	w.At(w.Now()+w.Between(ident.Millisecond, 300*ident.Millisecond), func() {
		if w.broken[s.ID] && s.Boot() == boot && s.Running() {
			w.Kill(s, false)
		}
	})
}

// DiskMends ends DiskFails.
func (w *World) DiskMends(s *cluster.Server) { w.broken[s.ID] = false }

// Wedge lets a server handle nothing that comes from others for a while: it arrives late.
func (w *World) Wedge(s *cluster.Server, span ident.Micros) {
	end := w.Now() + span
	for _, o := range w.Servers {
		if o != s {
			w.HoldLink(o.Node(), s.Node(), end)
		}
	}
}

// Unwedge ends Wedge for what is sent from now on.
func (w *World) Unwedge(s *cluster.Server) {
	for _, o := range w.Servers {
		if o != s {
			w.HoldLink(o.Node(), s.Node(), 0)
		}
	}
}

// Panic lets a VM's guest crash.
func (w *World) Panic(vm ident.VMID) error {
	for _, x := range w.Workers {
		if x.VM == vm && x.home && x.acts() {
			x.end(wire.WorkerEnded{State: "failed", Reason: "guest failed: triple fault", Registers: "simulated", Crash: true, Booted: max(x.members.Booted, x.first), UpMicros: x.guest.ran})
			return nil
		}
	}
	return fmt.Errorf("vm %d runs nowhere now", vm)
}
