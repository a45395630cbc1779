package drill

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// injection is a fault that a server does to itself, as the journal keeps it.
type injection struct {
	Kind string `json:"kind"`
	Peer string `json:"peer,omitempty"`
	Far  bool   `json:"far,omitempty"` // the other end of a link: its cell does not count as broken
}

// ends reads the two ends of a link: names of servers or cells. Without the second it is all others.
func (r *run) ends(a, b string) (near, far []HostServer, err error) {
	if near, err = r.serversOf(a); err != nil {
		return nil, nil, err
	}
	far = r.host.Servers()
	if b != "" {
		if far, err = r.serversOf(b); err != nil {
			return nil, nil, err
		}
	}
	far = slices.DeleteFunc(slices.Clone(far), func(s HostServer) bool { return slices.Contains(near, s) })
	if len(far) == 0 {
		return nil, nil, fmt.Errorf("there is no link from %s to itself", a)
	}
	return near, far, nil
}

// breakLink journals a fault at both ends of each link, and has both servers do it to what they send. The near end's cell counts as broken.
func (r *run) breakLink(word, text, a, b string, fault *api.Fault) error {
	near, far, err := r.ends(a, b)
	if err != nil {
		return err
	}
	if err := r.radius(near); err != nil {
		return err
	}
	if b == "" {
		b = "all others"
	}
	r.step("fault", "%s", fmt.Sprintf(text, a, b))
	for _, n := range near {
		for _, f := range far {
			err := errors.Join(r.injectAt(n, f.Name, word, false, fault), r.injectAt(f, n.Name, word, true, fault))
			if err != nil {
				return err
			}
		}
	}
	r.acted = r.clock.Now()
	return nil
}

// injectAt journals a fault and has the server do it to itself.
func (r *run) injectAt(s HostServer, peer, word string, far bool, fault *api.Fault) error {
	if err := r.journal.addFault(injected(s, injection{Kind: word, Peer: peer, Far: far})); err != nil {
		return err
	}
	f := &api.Fault{Kind: fault.GetKind(), Peer: peer, DelayMs: fault.GetDelayMs(), JitterMs: fault.GetJitterMs(), LossPermille: fault.GetLossPermille(), LastsMs: fault.GetLastsMs()}
	if err := r.injector.add(r.ctx, s.Name, f); err != nil {
		return fmt.Errorf("%s at server %s: %s", word, s.Name, api.Message(err))
	}
	return nil
}

func injected(s HostServer, in injection) fault {
	return fault{Kind: faultInject, Server: s.Name, Cell: s.Cell, Inject: &in}
}

func doCut(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var a, b string
	if err := c.unpack("a", &a, "b?", &b); err != nil {
		return nil, err
	}
	return nil, r.breakLink("cut", "cut between %s and %s", a, b, &api.Fault{Kind: api.FaultKind_FAULT_KIND_CUT})
}

func doDelay(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var a, b string
	var wait, jitter starlark.Value
	if err := c.unpack("a", &a, "b", &b, "time", &wait, "jitter?", &jitter); err != nil {
		return nil, err
	}
	d, err := duration(wait)
	var j time.Duration
	if err == nil && jitter != nil {
		j, err = duration(jitter)
	}
	switch {
	case err != nil:
		return nil, err
	case d > time.Minute || j > time.Minute:
		return nil, fmt.Errorf("a delay of %v and up to %v is too long: at most a minute", d, j)
	}
	return nil, r.breakLink("delay", fmt.Sprintf("delay of %v and up to %v between %%s and %%s", d, j), a, b,
		&api.Fault{Kind: api.FaultKind_FAULT_KIND_SHAPE, DelayMs: uint32(d.Milliseconds()), JitterMs: uint32(j.Milliseconds())})
}

func doLoss(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var a, b string
	var permille int
	if err := c.unpack("a", &a, "b", &b, "permille", &permille); err != nil {
		return nil, err
	}
	if permille < 0 || permille > 1000 {
		return nil, fmt.Errorf("loss of %d of a thousand: 0 to 1000", permille)
	}
	return nil, r.breakLink("loss", fmt.Sprintf("loss of %d of a thousand between %%s and %%s", permille), a, b,
		&api.Fault{Kind: api.FaultKind_FAULT_KIND_SHAPE, LossPermille: uint32(permille)})
}

// doDisk makes the word for a fault of the servers' disks.
func doDisk(kind api.FaultKind, text string) func(*run, *starlark.Thread, call) (starlark.Value, error) {
	return func(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
		names, servers, err := r.targets(c)
		if err != nil {
			return nil, err
		}
		return nil, r.breakServers("disk", text+strings.Join(names, ", "), servers, &api.Fault{Kind: kind})
	}
}

func doWedge(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var name string
	var span starlark.Value
	if err := c.unpack("name", &name, "time", &span); err != nil {
		return nil, err
	}
	d, err := duration(span)
	if err != nil {
		return nil, err
	}
	if d <= 0 || d > time.Minute {
		return nil, fmt.Errorf("wedge_rpc(%q, %v): from 1ms to a minute", name, d)
	}
	servers, err := r.serversOf(name)
	if err != nil {
		return nil, err
	}
	return nil, r.breakServers("wedge", fmt.Sprintf("%s handles nothing that others send, for %v", name, d), servers,
		&api.Fault{Kind: api.FaultKind_FAULT_KIND_WEDGE, LastsMs: uint32(d.Milliseconds())})
}

func (r *run) breakServers(word, text string, servers []HostServer, f *api.Fault) error {
	if err := r.radius(servers); err != nil {
		return err
	}
	r.step("fault", "%s", text)
	for _, s := range servers {
		if err := r.injectAt(s, "", word, false, f); err != nil {
			return err
		}
	}
	r.acted = r.clock.Now()
	return nil
}

// doMend ends what servers and their links were made to do to themselves, and starts those that ended of it. Two names are the ends of a link.
func doMend(r *run, t *starlark.Thread, c call) (starlark.Value, error) {
	var a, b string
	wait, within := true, starlark.Value(starlark.None)
	if err := c.unpack("a", &a, "b?", &b, "wait?", &wait, "within?", &within); err != nil {
		return nil, err
	}
	near, err := r.serversOf(a)
	var far []HostServer
	if err == nil && b != "" {
		near, far, err = r.ends(a, b)
	}
	if err != nil {
		return nil, err
	}
	r.step("undo", "mending %s", strings.TrimSuffix(a+" to "+b, " to "))
	named := func(list []HostServer, name string) bool {
		return slices.ContainsFunc(list, func(s HostServer) bool { return s.Name == name })
	}
	matches := func(server, peer string) bool {
		if b == "" {
			return named(near, server) || named(near, peer)
		}
		return named(near, server) && named(far, peer) || named(far, server) && named(near, peer)
	}
	for _, s := range r.host.Servers() {
		if err := r.injector.drop(r.ctx, s.Name, func(f *api.Fault) bool { return matches(s.Name, f.GetPeer()) }); err != nil {
			return nil, fmt.Errorf("mending server %s: %s", s.Name, api.Message(err))
		}
	}
	var restarted []HostServer
	for _, s := range near {
		if slices.ContainsFunc(r.journal.Faults, func(f fault) bool { return f.Server == s.Name && f.Inject != nil && f.Inject.Kind == "disk" }) && b == "" {
			if _, err := startIfDead(r.host, s.Name); err != nil {
				return nil, err
			}
			restarted = append(restarted, s)
		}
	}
	if err := r.journal.dropInjections(matches); err != nil {
		return nil, err
	}
	r.acted = r.clock.Now()
	if !wait {
		for _, s := range restarted { // healing looks after it again
			if err := r.journal.addFault(fault{Kind: faultKill, Server: s.Name, Cell: s.Cell}); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	return nil, r.undone(t, faultInject, near, true, within)
}

// doPanicGuest crashes a VM's guest. Nothing is to be healed: the VM is removed at the end.
func doPanicGuest(r *run, _ *starlark.Thread, c call) (starlark.Value, error) {
	var vm starlark.Value
	if err := c.unpack("vm", &vm); err != nil {
		return nil, err
	}
	name, err := r.vmName(vm)
	if err != nil {
		return nil, err
	}
	r.step("fault", "crash of VM %s's guest", name)
	err = r.cluster.CrashGuest(r.ctx, name)
	r.acted = r.clock.Now()
	if err != nil {
		return nil, fmt.Errorf("panic_guest: %s", api.Message(err))
	}
	return nil, nil
}
