package server

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

const (
	watchEveryDefault = 100 * time.Millisecond
	watchEveryMin     = 20 * time.Millisecond
	workersEvery      = time.Second
	watchSign         = time.Second // the longest silence
	watchBatch        = 512         // events in a message
)

// watching is what one caller of Watch has been told.
type watching struct {
	v          *service
	workers    bool
	from       uint64 // the next event
	status     *api.StatusResponse
	state      *cells.State
	servers    told[*api.Server]
	cells      told[*api.Cell]
	vms        told[*api.VM]
	operations map[uint64]*api.Operation
	// The other servers are asked beside the stream: one that was stopped must not hold it up.
	asking    bool
	answers   chan []*api.WorkerInfo
	workersAt time.Time
}

// told is the messages of one kind that the caller has, encoded, by name: to compare them so costs a fifth of proto.Equal.
type told[M interface {
	proto.Message
	GetName() string
}] map[string][]byte

// news takes the present messages over, and returns those that are new or have changed, and the names of those that are gone.
func (t told[M]) news(now []M) (changed []M, gone []string) {
	seen := make(map[string]bool, len(now))
	encode := proto.MarshalOptions{Deterministic: true}
	var code []byte
	for _, m := range now {
		seen[m.GetName()] = true
		// What cannot be encoded cannot be sent either, which will be told then.
		code, _ = encode.MarshalAppend(code[:0], m)
		if old, has := t[m.GetName()]; !has || !bytes.Equal(old, code) {
			t[m.GetName()] = bytes.Clone(code)
			changed = append(changed, m)
		}
	}
	if len(seen) == len(t) {
		return changed, nil
	}
	for name := range t {
		if !seen[name] {
			gone = append(gone, name)
			delete(t, name)
		}
	}
	slices.Sort(gone)
	return changed, gone
}

// Watch implements api.CellvisorServer.
func (v *service) Watch(req *api.WatchRequest, stream api.Cellvisor_WatchServer) error {
	w := &watching{v: v, workers: req.GetWorkers(), from: req.GetEventsFromSeq(), servers: told[*api.Server]{}, cells: told[*api.Cell]{},
		vms: told[*api.VM]{}, operations: map[uint64]*api.Operation{}, answers: make(chan []*api.WorkerInfo, 1)}
	if snap := v.s.board.now(); req.GetEventsMax() > 0 {
		w.from = max(w.from, snap.events.newest(uint64(req.GetEventsMax())))
	}
	every := watchEveryDefault
	if ms := req.GetEveryMs(); ms != 0 {
		every = max(time.Duration(ms)*time.Millisecond, watchEveryMin)
	}
	ctx := stream.Context()
	pace := time.NewTicker(every)
	defer pace.Stop()
	var last time.Time
	for first := true; ; first = false {
		snap := v.s.board.now()
		m, says := w.next(ctx, snap)
		m.Whole = first
		if says || first || time.Since(last) >= watchSign {
			if err := stream.Send(m); err != nil {
				return err
			}
			last = time.Now()
		}
		if err := w.await(ctx, snap, pace.C); err != nil {
			return err
		}
	}
}

// await returns at the next tick of the pace at which there may be something to say.
func (w *watching) await(ctx context.Context, snap *snapshot, pace <-chan time.Time) error {
	idle := time.NewTimer(watchSign / 2)
	defer idle.Stop()
	if w.from <= snap.events.lastSeq() {
		idle.Reset(0)
	}
	select {
	case <-snap.next:
	case <-idle.C:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-w.v.quit:
		return errStopping()
	}
	select {
	case <-pace:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-w.v.quit:
		return errStopping()
	}
	return nil
}

// next makes the message about what has changed; says tells whether it is not empty.
func (w *watching) next(ctx context.Context, snap *snapshot) (m *api.WatchResponse, says bool) {
	m = &api.WatchResponse{}
	if st, _ := w.v.Status(ctx, &api.StatusRequest{}); w.status == nil || !proto.Equal(w.status, st) {
		m.Status, w.status = st, st
	}
	if w.state != snap.state || m.Status != nil { // who leads and who votes is not part of the state
		w.state = snap.state
		w.lists(m, snap)
	}
	for _, e := range snap.events.since(w.from, watchBatch) {
		m.Events = append(m.Events, eventMessage(&e, w.v.s.cfg.Name))
		w.from = e.Seq + 1
	}
	if w.workers {
		w.askWorkers(ctx, m, snap)
	}
	says = m.Status != nil || m.WorkersTold || len(m.Servers)+len(m.Cells)+len(m.Vms)+len(m.Operations)+len(m.Events) > 0 ||
		len(m.GoneServers)+len(m.GoneCells)+len(m.GoneVms)+len(m.GoneOperations) > 0
	return m, says
}

// askWorkers takes an answer, or asks when it is time.
func (w *watching) askWorkers(ctx context.Context, m *api.WatchResponse, snap *snapshot) {
	select {
	case m.Workers = <-w.answers:
		m.WorkersTold, w.asking = true, false
	default:
	}
	if !w.asking && time.Since(w.workersAt) >= workersEvery {
		w.asking, w.workersAt = true, time.Now()
		go func() { w.answers <- w.v.allWorkers(ctx, snap) }()
	}
}

func (w *watching) lists(m *api.WatchResponse, snap *snapshot) {
	st := snap.state
	m.Servers, m.GoneServers = w.servers.news(serverMessages(snap))
	m.Cells, m.GoneCells = w.cells.news(cellMessages(st))
	m.Vms, m.GoneVms = w.vms.news(vmMessages(st))
	seen := map[uint64]bool{}
	for i := range st.Operations {
		op := operationMessage(&st.Operations[i])
		seen[op.Id] = true
		if !proto.Equal(w.operations[op.Id], op) {
			w.operations[op.Id] = op
			m.Operations = append(m.Operations, op)
		}
	}
	for id := range w.operations {
		if !seen[id] {
			m.GoneOperations = append(m.GoneOperations, id)
			delete(w.operations, id)
		}
	}
	slices.Sort(m.GoneOperations)
}

// newest returns the sequence number of the first of the last n events.
func (l *eventLog) newest(n uint64) uint64 {
	if uint64(len(l.events)) <= n {
		return 0
	}
	return l.events[uint64(len(l.events))-n].Seq
}

// workersPatience bounds the wait for other servers' counters.
const workersPatience = 300 * time.Millisecond

// ListWorkers implements api.CellvisorServer.
func (v *service) ListWorkers(ctx context.Context, _ *api.ListWorkersRequest) (*api.ListWorkersResponse, error) {
	if forwarded(ctx) {
		return &api.ListWorkersResponse{Workers: v.ownWorkers()}, nil
	}
	return &api.ListWorkersResponse{Workers: v.allWorkers(ctx, v.s.board.now())}, nil
}

// ownWorkers tells of the workers of this server, by VM.
func (v *service) ownWorkers() []*api.WorkerInfo {
	var out []*api.WorkerInfo
	for _, w := range v.s.workers.all() {
		w.mu.Lock()
		stats, at := w.stats, w.statsAt
		w.mu.Unlock()
		if stats != nil {
			out = append(out, &api.WorkerInfo{VmId: uint64(w.vm), Server: string(v.s.cfg.Name), Counters: workerCounters(stats), AtMicros: uint64(at)})
		}
	}
	return out
}

// allWorkers asks all live servers, and returns what they said by VM and server.
func (v *service) allWorkers(ctx context.Context, snap *snapshot) []*api.WorkerInfo {
	ctx, cancel := context.WithTimeout(ctx, workersPatience)
	defer cancel()
	var servers []ident.ServerID
	for i := range snap.state.Servers {
		servers = append(servers, snap.state.Servers[i].ID)
	}
	out := v.ownWorkers()
	for name, m := range gather(ctx, v, snap, servers, func(ctx context.Context, c api.CellvisorClient) (*api.ListWorkersResponse, error) {
		return c.ListWorkers(ctx, &api.ListWorkersRequest{})
	}) {
		for _, w := range m.GetWorkers() {
			if w.GetServer() == name {
				out = append(out, w)
			}
		}
	}
	slices.SortFunc(out, func(a, b *api.WorkerInfo) int {
		if a.VmId != b.VmId {
			return int(int64(a.VmId) - int64(b.VmId))
		}
		return strings.Compare(a.Server, b.Server)
	})
	return out
}
