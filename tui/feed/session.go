package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// errAstray ends a session with a server that has no contact with the others: it may be the only one that has not.
var errAstray = errors.New("the server is cut off from the others")

// session connects to a server and publishes what it says until the connection breaks.
func (f *Feed) session(ctx context.Context) error {
	client, err := f.connect()
	if err != nil {
		return err
	}
	ctx, watchdog := newWatchdog(ctx, f.config.CallTimeout)
	defer watchdog.stop()
	stream, err := client.Watch(ctx, &api.WatchRequest{EveryMs: uint32(f.config.Every.Milliseconds()), EventsMax: MaxEvents, Workers: true})
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	messages, broken := make(chan *api.WatchResponse), make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			watchdog.heard()
			select {
			case messages <- m:
			case <-ctx.Done():
				broken <- ctx.Err()
				return
			}
		}
	}()
	defer func() {
		watchdog.stop()
		<-broken
	}()
	return f.listen(ctx, client, messages, broken)
}

// listen publishes a snapshot for every message, and when details that were asked for have come.
func (f *Feed) listen(ctx context.Context, client api.CellvisorClient, messages <-chan *api.WatchResponse, broken chan error) error {
	details := time.NewTicker(f.config.Interval)
	defer details.Stop()
	var fetched chan detail
	fetch := func() {
		if fetched == nil && f.wanted() != (Want{}) {
			fetched = make(chan detail, 1)
			go func(out chan<- detail) { out <- fetchDetail(ctx, client, f.wanted()) }(fetched)
		}
	}
	for {
		select {
		case m := <-messages:
			if m.GetWhole() {
				f.world = world{}
				fetch()
			}
			f.world.take(m)
			f.takeEvents(m)
			f.succeed()
			if f.astray() {
				return errAstray
			}
		case d := <-fetched:
			fetched = nil
			f.detail = d
			if d.want != f.wanted() {
				fetch()
			}
			f.succeed()
		case <-details.C:
			fetch()
		case <-f.wake:
			fetch()
		case err := <-broken:
			broken <- err
			if ctx.Err() != nil && status.Code(err) == codes.Canceled {
				return status.Errorf(codes.Unavailable, "%s says nothing any more", f.conn.Addr)
			}
			return fmt.Errorf("watch: %w", err)
		}
	}
}

// succeed publishes what is known now.
func (f *Feed) succeed() {
	if f.world.status == nil {
		return
	}
	f.generation++
	s := f.world.snapshot()
	s.Generation, s.At = f.generation, time.Now()
	s.Events = f.events.published()
	if f.detail.want == f.wanted() {
		f.detail.into(s)
	}
	f.last = s
	f.conn = Conn{Addr: f.conn.Addr}
	f.learn(s)
	f.publish(Update{Snapshot: s, Conn: f.conn})
}

func (f *Feed) takeEvents(m *api.WatchResponse) {
	if m.GetStatus() != nil {
		f.events.restart(m.GetStatus().GetServer())
	}
	f.events.add(m.GetEvents())
}

// astray tells whether the server has been cut off from the others for too long, and there is another one to try.
func (f *Feed) astray() bool {
	st := f.world.status
	if st.GetQuorum() && st.GetServerState() == api.ServerState_SERVER_STATE_LIVE {
		f.astraySince = time.Time{}
		return false
	}
	if f.astraySince.IsZero() {
		f.astraySince = time.Now()
	}
	return len(f.addrs) > 1 && time.Since(f.astraySince) >= astrayPatience
}

// world is what the messages of one stream add up to. Its slices are never changed once they are in a snapshot.
type world struct {
	status  *api.StatusResponse
	servers []*api.Server
	cells   []*api.Cell
	vms     []*api.VM
	ops     []*api.Operation
	workers []*api.WorkerInfo
	load    *Load
}

func (w *world) take(m *api.WatchResponse) {
	if m.GetStatus() != nil {
		w.status = m.GetStatus()
	}
	w.servers = merge(w.servers, m.GetServers(), m.GetGoneServers())
	w.cells = merge(w.cells, m.GetCells(), m.GetGoneCells())
	w.vms = merge(w.vms, m.GetVms(), m.GetGoneVms())
	if len(m.GetOperations())+len(m.GetGoneOperations()) > 0 {
		w.takeOperations(m)
	}
	if m.GetWorkersTold() {
		w.load = LoadOf(w.workers, m.GetWorkers())
		w.workers = m.GetWorkers()
	}
}

// merge returns the list, sorted by name, with the changed in their places and without those that are gone.
func merge[M interface {
	comparable
	GetName() string
}](list, changed []M, gone []string) []M {
	if len(changed)+len(gone) == 0 {
		return list
	}
	list = slices.Clone(list)
	for _, m := range changed {
		i, has := slices.BinarySearchFunc(list, m.GetName(), func(x M, name string) int { return strings.Compare(x.GetName(), name) })
		if has {
			list[i] = m
		} else {
			list = slices.Insert(list, i, m)
		}
	}
	if len(gone) > 0 {
		list = slices.DeleteFunc(list, func(m M) bool { return slices.Contains(gone, m.GetName()) })
	}
	return list
}

func (w *world) takeOperations(m *api.WatchResponse) {
	w.ops = slices.DeleteFunc(slices.Clone(w.ops), func(o *api.Operation) bool {
		return slices.Contains(m.GetGoneOperations(), o.GetId()) ||
			slices.ContainsFunc(m.GetOperations(), func(n *api.Operation) bool { return n.GetId() == o.GetId() })
	})
	w.ops = append(w.ops, m.GetOperations()...)
	slices.SortFunc(w.ops, func(a, b *api.Operation) int { return int(int64(a.GetId()) - int64(b.GetId())) })
}

func (w *world) snapshot() *Snapshot {
	return &Snapshot{Status: w.status, Servers: w.servers, Cells: w.cells, VMs: w.vms, Operations: w.ops, Load: w.load}
}
