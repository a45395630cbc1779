package drill

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// serversOf resolves the name of a server or a cell.
func (r *run) serversOf(name string) (out []HostServer, err error) {
	for _, s := range r.host.Servers() {
		if s.Name == name || s.Cell == name {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q is neither a cell (%s) nor a server (%s)", name, strings.Join(r.cells(), ", "), strings.Join(r.report.Servers, ", "))
	}
	return out, nil
}

// targets reads the names in front of a call. With extra, further named arguments are read.
func (r *run) targets(c call, extra ...any) (names []string, list []HostServer, err error) {
	if err := starlark.UnpackArgs(c.name, nil, c.kwargs, extra...); err != nil {
		return nil, nil, err
	}
	for _, a := range c.args {
		name, ok := starlark.AsString(a)
		if !ok {
			return nil, nil, fmt.Errorf("%s() takes names of servers and cells, not a %s", c.name, a.Type())
		}
		servers, err := r.serversOf(name)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, name)
		for _, s := range servers {
			if !slices.Contains(list, s) {
				list = append(list, s)
			}
		}
	}
	if len(list) == 0 {
		return nil, nil, fmt.Errorf("%s() needs the name of a server or a cell", c.name)
	}
	return names, list, nil
}

// radius refuses what would break more cells at a time than the drill declares.
func (r *run) radius(servers []HostServer) error {
	broken := r.journal.brokenCells()
	for _, s := range servers {
		cell := s.Cell
		if cell == "" {
			cell = s.Name
		}
		if !slices.Contains(broken, cell) {
			broken = append(broken, cell)
		}
	}
	if len(broken) > r.prog.MaxCells {
		return fmt.Errorf("blast radius: %s would be broken at a time, max_cells allows %d", strings.Join(broken, ", "), r.prog.MaxCells)
	}
	return nil
}

func doKill(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var only string
	names, servers, err := r.targets(c, "only?", &only)
	if err != nil {
		return nil, err
	}
	if only != "" && only != "serve" {
		return nil, fmt.Errorf("kill(only=%q): the only choice is \"serve\", which spares the workers", only)
	}
	text := "kill -9 of " + strings.Join(names, ", ")
	if only != "" {
		text += ", workers spared"
	}
	hit, err := r.inject(faultKill, text, servers, syscall.SIGKILL, func(p Process) bool { return only == "" || !p.Worker })
	if err != nil {
		return nil, err
	}
	return nil, finish(r.clock, r.host, hit)
}

func doStopProcess(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	names, servers, err := r.targets(c)
	if err != nil {
		return nil, err
	}
	_, err = r.inject(faultStop, "SIGSTOP to "+strings.Join(names, ", "), servers, syscall.SIGSTOP, func(Process) bool { return true })
	return nil, err
}

// inject journals a fault on each server and then sends the signal to all chosen processes at once.
func (r *run) inject(kind, text string, servers []HostServer, sig syscall.Signal, choose func(Process) bool) ([]Process, error) {
	if err := r.radius(servers); err != nil {
		return nil, err
	}
	running, err := r.host.Processes()
	if err != nil {
		return nil, err
	}
	var hit []Process
	for _, s := range servers {
		f := fault{Kind: kind, Server: s.Name, Cell: s.Cell}
		for _, p := range running {
			if p.Server == s.Name && choose(p) {
				f.Processes = append(f.Processes, p)
			}
		}
		if len(f.Processes) == 0 {
			return nil, fmt.Errorf("%s: no process of server %s runs", text, s.Name)
		}
		if err := r.journal.addFault(f); err != nil {
			return nil, err
		}
		hit = append(hit, f.Processes...)
	}
	r.step("fault", "%s (processes %v)", text, pids(hit))
	err = r.host.Signal(sig, hit...)
	r.acted = r.clock.Now()
	return hit, err
}

func doCont(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	wait, within := true, starlark.Value(starlark.None)
	names, servers, err := r.targets(c, "wait?", &wait, "within?", &within)
	if err != nil {
		return nil, err
	}
	r.step("undo", "SIGCONT to %s", strings.Join(names, ", "))
	for _, s := range servers {
		for _, f := range r.journal.Faults {
			if f.Kind != faultStop || f.Server != s.Name {
				continue
			}
			if err := r.host.Signal(syscall.SIGCONT, f.Processes...); err != nil {
				return nil, err
			}
		}
	}
	return nil, r.undone(t, faultStop, servers, wait, within)
}

func doRestart(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	wait, within := true, starlark.Value(starlark.None)
	names, servers, err := r.targets(c, "wait?", &wait, "within?", &within)
	if err != nil {
		return nil, err
	}
	r.step("undo", "start of %s", strings.Join(names, ", "))
	for _, s := range servers {
		started, err := startIfDead(r.host, s.Name)
		if err != nil {
			return nil, err
		}
		if !started {
			return nil, fmt.Errorf("restart: server %s runs; kill it first", s.Name)
		}
	}
	return nil, r.undone(t, faultKill, servers, wait, within)
}

// undone waits until the servers are live and takes their faults out of the journal. Without waiting the journal keeps them: healing looks
// after them again.
func (r *run) undone(t *starlark.Thread, kind string, servers []HostServer, wait bool, within starlark.Value) error {
	r.acted = r.clock.Now()
	if !wait {
		return nil
	}
	limit, err := r.within(within, defaultWithin)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if err := r.demand(t, membership(s.Name, api.ServerState_SERVER_STATE_LIVE), "", limit); err != nil {
			return err
		}
		if err := r.journal.dropFaults(kind, s.Name); err != nil {
			return err
		}
	}
	return nil
}

// doKillWorker kills the process that holds a VM's part on a server; without a server, on its home. Nothing is to be healed: whatever the
// cluster makes of it is what the drill is about, and the VM is removed at the end.
func doKillWorker(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm starlark.Value
	var server string
	if err := c.unpack("vm", &vm, "server?", &server); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	s, err := r.see()
	if err != nil {
		return nil, err
	}
	v := s.vm(name)
	if server == "" {
		server = v.GetHome()
	}
	i := slices.IndexFunc(v.GetWorkers(), func(w *api.Worker) bool { return w.GetServer() == server && !w.GetLost() && w.GetPid() != 0 })
	if i < 0 {
		return nil, fmt.Errorf("VM %s has no worker on server %q; it is on %s", name, server, strings.Join(append(hosts(v, false), hosts(v, true)...), ", "))
	}
	w := v.GetWorkers()[i]
	if err := r.radius([]HostServer{{Name: server, Cell: w.GetCell()}}); err != nil {
		return nil, err
	}
	p := Process{PID: int(w.GetPid()), StartTicks: w.GetPidStartTicks(), Server: server, Worker: true}
	r.step("fault", "kill -9 of VM %s's worker on %s (process %d)", name, server, p.PID)
	err = finish(r.clock, r.host, []Process{p})
	r.acted = r.clock.Now()
	return nil, err
}
