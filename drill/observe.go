package drill

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// How often the cluster is looked at. A look at a healthy cluster takes milliseconds.
const (
	lookPause    = 50 * time.Millisecond
	lookPatience = 4 * time.Second // while a server is stopped, until the client has found another one
)

// snapshot is what the cluster looked like at one moment. It is never changed after it was published.
type snapshot struct {
	begun      time.Time // when the look began: nothing in it is older
	reached    bool      // a server answered
	quorum     bool
	epoch      uint64
	leader     string
	servers    []*api.Server
	vms        []*api.VM
	operations map[uint64]*api.Operation // those that are waited for
	dependents map[string][]string       // on the cells and servers that a condition asks about
	err        error                     // of a look that failed; servers and vms are then those of the last one that did not
}

func (s *snapshot) vm(name string) *api.VM {
	i := slices.IndexFunc(s.vms, func(v *api.VM) bool { return v.GetName() == name })
	if i < 0 {
		return nil
	}
	return s.vms[i]
}

// members returns the servers of a server's or cell's name.
func (s *snapshot) members(name string) (out []*api.Server) {
	for _, v := range s.servers {
		if v.GetName() == name || v.GetCell() == name {
			out = append(out, v)
		}
	}
	return out
}

// observer looks at the cluster again and again.
type observer struct {
	cluster Cluster
	clock   Clock
	start   time.Time

	mu      sync.Mutex // protects what follows
	last    *snapshot
	changed chan struct{} // closed and replaced at each new snapshot
	tracks  map[trackKey]*Track
	ops     []uint64 // to look at, too
	stops   []string // likewise: what depends on these
}

type trackKey struct{ kind, name string }

func newObserver(c Cluster, clock Clock) *observer {
	return &observer{cluster: c, clock: clock, start: clock.Now(), last: &snapshot{}, changed: make(chan struct{}), tracks: make(map[trackKey]*Track)}
}

// run looks until ctx ends.
func (o *observer) run(ctx context.Context) {
	for ctx.Err() == nil {
		o.publish(o.look(ctx))
		select {
		case <-ctx.Done():
		case <-time.After(lookPause):
		}
	}
}

// looksAtOnce is how often a look is repeated during which the view has changed: what was asked first is of another view than what was asked last.
const looksAtOnce = 5

func (o *observer) look(ctx context.Context) *snapshot {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	var s *snapshot
	for range looksAtOnce {
		s = &snapshot{begun: o.clock.Now()}
		s.err = o.lookOnce(ctx, s)
		if s.err != nil {
			break
		}
		if st, err := o.cluster.Status(ctx); err != nil || st.GetEpoch() == s.epoch {
			break
		}
	}
	if s.err != nil {
		old := o.now()
		s.servers, s.vms = old.servers, old.vms
	}
	return s
}

// lookOnce fills in a snapshot.
func (o *observer) lookOnce(ctx context.Context, s *snapshot) error {
	st, err := o.cluster.Status(ctx)
	if err != nil {
		return err
	}
	s.reached, s.quorum, s.epoch, s.leader = true, st.GetQuorum(), st.GetEpoch(), st.GetLeader()
	if s.servers, err = o.cluster.Servers(ctx); err != nil {
		return err
	}
	if s.vms, err = o.cluster.VMs(ctx); err != nil {
		return err
	}
	return o.lookCloser(ctx, s)
}

// lookCloser looks at what conditions ask for beyond the usual.
func (o *observer) lookCloser(ctx context.Context, s *snapshot) error {
	o.mu.Lock()
	ops, stops := slices.Clone(o.ops), slices.Clone(o.stops)
	o.mu.Unlock()
	for _, id := range ops {
		op, err := o.cluster.Operation(ctx, id)
		if err != nil {
			return err
		}
		if s.operations == nil {
			s.operations = make(map[uint64]*api.Operation)
		}
		s.operations[id] = op
	}
	for _, name := range stops {
		list, err := o.cluster.Dependents(ctx, name)
		if err != nil {
			return err
		}
		if s.dependents == nil {
			s.dependents = make(map[string][]string)
		}
		s.dependents[name] = list
	}
	return nil
}

// watchOperation and watchDependents add to what is looked at.
func (o *observer) watchOperation(id uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ops = append(o.ops, id)
}

func (o *observer) watchDependents(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.stops, name) {
		o.stops = append(o.stops, name)
	}
}

func (o *observer) publish(s *snapshot) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = s
	close(o.changed)
	o.changed = make(chan struct{})
	if s.err != nil {
		return
	}
	at := o.clock.Now().Sub(o.start).Milliseconds()
	for _, v := range s.servers {
		o.track("server", v.GetName(), v.GetState().Word(), at)
	}
	for _, v := range s.vms {
		state := v.GetState().Word()
		if p := v.GetProtection(); state == "running" && p != "" && p != "none" {
			state += ", " + p
		}
		o.track("vm", v.GetName(), state, at)
	}
}

// track extends the state that a thing is in, or begins a new one. The caller holds mu.
func (o *observer) track(kind, name, state string, atMs int64) {
	key := trackKey{kind, name}
	t := o.tracks[key]
	if t == nil {
		t = &Track{Kind: kind, Name: name}
		o.tracks[key] = t
	}
	if n := len(t.Spans); n > 0 {
		t.Spans[n-1].ToMs = atMs
		if t.Spans[n-1].State == state {
			return
		}
	}
	t.Spans = append(t.Spans, Span{FromMs: atMs, ToMs: atMs, State: state})
}

// now returns the newest snapshot.
func (o *observer) now() *snapshot {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// next returns a channel that is closed when there is a newer snapshot than now's.
func (o *observer) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// timeline returns what was seen: servers first, then VMs, each by name.
func (o *observer) timeline() []Track {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]Track, 0, len(o.tracks))
	for _, t := range o.tracks {
		out = append(out, Track{Kind: t.Kind, Name: t.Name, Spans: slices.Clone(t.Spans)})
	}
	slices.SortFunc(out, func(a, b Track) int {
		if a.Kind != b.Kind {
			return strings.Compare(a.Kind, b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}
