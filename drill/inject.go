package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// How long a server stays broken when nobody asks for it any more, and how often the runner does.
const (
	faultLease = 5 * time.Second
	renewEvery = time.Second
)

// injector keeps the faults in force that servers do to themselves. Each has a lease: when the runner dies they end by themselves.
type injector struct {
	cluster Cluster
	seed    uint64

	mu    sync.Mutex
	wants map[string][]*api.Fault // protected by mu; by server
}

func newInjector(c Cluster, seed uint64) *injector {
	return &injector{cluster: c, seed: seed, wants: make(map[string][]*api.Fault)}
}

// run renews the leases until ctx ends.
func (in *injector) run(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		in.mu.Lock()
		var names []string
		for name, list := range in.wants {
			if len(list) > 0 {
				names = append(names, name)
			}
		}
		in.mu.Unlock()
		for _, name := range names {
			// A server that is down is told when it is back. A call that has begun is waited for: it must not come after the healing.
			_ = in.tell(context.WithoutCancel(ctx), name)
		}
	}
}

// add has a server break one thing more. One that does not run is told when it is back.
func (in *injector) add(ctx context.Context, server string, f *api.Fault) error {
	in.mu.Lock()
	in.wants[server] = append(in.wants[server], f)
	in.mu.Unlock()
	if err := in.tell(ctx, server); status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
		return err
	}
	return nil
}

// drop has a server mend what matches.
func (in *injector) drop(ctx context.Context, server string, match func(*api.Fault) bool) error {
	in.mu.Lock()
	in.wants[server] = slices.DeleteFunc(slices.Clone(in.wants[server]), match)
	in.mu.Unlock()
	if err := in.tell(ctx, server); status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
		return err
	}
	return nil
}

func (in *injector) tell(ctx context.Context, server string) error {
	in.mu.Lock()
	list := slices.Clone(in.wants[server])
	in.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return in.cluster.SetFaults(ctx, server, list, faultLease, in.seed)
}

// allowed refuses a cluster whose configuration does not let drills break it. A server that does not answer is asked when the drill begins to wait for
// it; one that refuses is enough.
func (r *run) allowed() error {
	asked := false
	var last error
	for _, s := range r.host.Servers() {
		ctx, cancel := context.WithTimeout(r.ctx, 2*time.Second)
		ok, _, err := r.cluster.Faults(ctx, s.Name)
		cancel()
		switch {
		case err != nil:
			last = err
		case !ok:
			return fmt.Errorf("server %s refuses drills: this cluster's configuration does not say drills = \"allow\"; "+
				"`cellvisor up --drills allow` starts a local one that does, --up gives the drill a cluster of its own", s.Name)
		default:
			asked = true
		}
	}
	if !asked {
		return errors.Join(errors.New("no server could be asked whether it allows drills"), last)
	}
	return nil
}

// mendAll ends what the journal's servers did to themselves. A server that does not run does nothing.
func mendAll(ctx context.Context, c Cluster, j *journal, h *Healing) error {
	var mended []string
	for _, f := range j.Faults {
		if f.Inject == nil || slices.Contains(mended, f.Server) {
			continue
		}
		mended = append(mended, f.Server)
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := c.SetFaults(ctx, f.Server, nil, 0, 0)
		cancel()
		if code := status.Code(err); err != nil && code != codes.Unavailable && code != codes.DeadlineExceeded {
			return fmt.Errorf("mending server %s: %w", f.Server, err)
		}
		h.Actions = append(h.Actions, "mended "+f.Server)
	}
	return nil
}

// faultsOf asks a server that is live what it does to itself. A connection to one that was down a moment ago may take seconds to come back.
func faultsOf(ctx context.Context, clock Clock, c Cluster, server string) (left []*api.Fault, err error) {
	for deadline := clock.Now().Add(20 * time.Second); ; {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, left, err = c.Faults(call, server)
		cancel()
		if err == nil || ctx.Err() != nil || clock.Now().After(deadline) {
			return left, err
		}
		if err := clock.Pause(ctx, 100*time.Millisecond, nil); err != nil {
			return nil, err
		}
	}
}

// nothingBroken checks that no server does anything to itself any more.
func nothingBroken(ctx context.Context, clock Clock, c Cluster, host Host) error {
	for _, s := range host.Servers() {
		left, err := faultsOf(ctx, clock, c, s.Name)
		if err != nil {
			return fmt.Errorf("whether server %s is whole: %w", s.Name, err)
		}
		if len(left) > 0 {
			return fmt.Errorf("server %s still has %d faults in force", s.Name, len(left))
		}
	}
	return nil
}
