package rehearsal

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/cluster"
)

// host is the machine that the world's processes run on, to a drill.
type host struct{ w *world }

// Dir implements drill.Host: nothing outlasts the runner.
func (host) Dir() string { return "" }

// Servers implements drill.Host.
func (h host) Servers() (out []drill.HostServer) {
	for _, s := range h.w.Servers {
		out = append(out, drill.HostServer{Name: string(s.Name()), Cell: string(s.Cell())})
	}
	return out
}

// Processes implements drill.Host.
func (h host) Processes() (out []drill.Process, err error) {
	for _, s := range h.w.Servers {
		if pid := h.w.PID(s); pid != 0 {
			out = append(out, process(s, pid, false))
		}
		for _, pid := range h.w.WorkerPIDs(s) {
			out = append(out, process(s, pid, true))
		}
	}
	return out, nil
}

func process(s *cluster.Server, pid int, worker bool) drill.Process {
	return drill.Process{PID: pid, StartTicks: uint64(pid), Server: string(s.Name()), Worker: worker}
}

// Signal implements drill.Host. A server whose serve process is hit is hit as a whole if its workers are, too.
func (h host) Signal(sig syscall.Signal, to ...drill.Process) error {
	for _, s := range h.w.Servers {
		serve := slices.ContainsFunc(to, func(p drill.Process) bool { return !p.Worker && p.PID == h.w.PID(s) && p.PID != 0 })
		var workers []int
		for _, pid := range h.w.WorkerPIDs(s) {
			if slices.ContainsFunc(to, func(p drill.Process) bool { return p.PID == pid }) {
				workers = append(workers, pid)
			}
		}
		switch {
		case sig == syscall.SIGKILL && serve:
			h.w.Kill(s, len(workers) < len(h.w.WorkerPIDs(s)))
		case sig == syscall.SIGKILL:
			for _, pid := range workers {
				h.w.KillWorker(pid)
			}
		case sig == syscall.SIGSTOP && serve:
			h.w.Stop(s)
		case sig == syscall.SIGCONT && serve:
			h.w.Continue(s)
		case sig == syscall.SIGSTOP || sig == syscall.SIGCONT:
			for _, pid := range workers {
				h.w.StopWorker(pid, sig == syscall.SIGSTOP)
			}
		}
	}
	return nil
}

// Start implements drill.Host.
func (h host) Start(server string) error {
	s := h.w.Named(ident.ServerName(server))
	if s == nil {
		return fmt.Errorf("no server is called %s", server)
	}
	h.w.World.Start(s)
	return nil
}

// Self implements drill.Host.
func (host) Self() drill.Process { return drill.Process{PID: 1} }

// Alive implements drill.Host.
func (h host) Alive(p drill.Process) bool {
	all, _ := h.Processes()
	return slices.ContainsFunc(all, func(o drill.Process) bool { return o.PID == p.PID })
}
