package server

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// mirror is what a caller of Watch makes of the messages.
type mirror struct {
	servers map[string]*api.Server
	vms     map[string]*api.VM
	events  []uint64
	workers map[string]*api.WorkerInfo
}

func (m *mirror) take(r *api.WatchResponse) {
	if r.Whole {
		*m = mirror{servers: map[string]*api.Server{}, vms: map[string]*api.VM{}, workers: map[string]*api.WorkerInfo{}}
	}
	for _, s := range r.Servers {
		m.servers[s.Name] = s
	}
	for _, v := range r.Vms {
		m.vms[v.Name] = v
	}
	for _, name := range r.GoneVms {
		delete(m.vms, name)
	}
	for _, e := range r.Events {
		m.events = append(m.events, e.Seq)
	}
	for _, w := range r.Workers {
		m.workers[w.Server] = w
	}
}

// What Watch says adds up to what the lists say.
func TestWatchAddsUp(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	s := c.servers[0]
	ctx, cancel := context.WithCancel(s.ctx())
	defer cancel()
	stream, err := s.client.Watch(ctx, &api.WatchRequest{EveryMs: 20, EventsMax: 3, Workers: true})
	if err != nil {
		t.Fatal(err)
	}
	var m mirror
	first := true
	until := func(what string, want func() bool) {
		t.Helper()
		for first || !want() {
			r, err := stream.Recv()
			if err != nil {
				t.Fatalf("waiting for %s: %v", what, err)
			}
			if first && !r.Whole {
				t.Fatal("the first message is not whole")
			}
			m.take(r)
			first = false
		}
	}
	until("the servers", func() bool { return len(m.servers) == 3 && len(m.events) >= 3 })
	if _, err := s.run("one", "", 1, "b"); err != nil {
		t.Fatal(err)
	}
	until("the VM", func() bool { return m.vms["one"].GetState() == api.VMState_VM_STATE_RUNNING })
	until("the worker of another server", func() bool { return m.workers["b-1"].GetVmId() == m.vms["one"].GetId() })
	list, err := s.client.ListServers(ctx, &api.ListServersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sv := range list.Servers {
		until("server "+sv.Name, func() bool { return proto.Equal(m.servers[sv.Name], sv) })
	}
	if _, err := s.client.RemoveVM(ctx, &api.RemoveVMRequest{Name: "one", Force: true}); err != nil {
		t.Fatal(err)
	}
	until("the end of the VM", func() bool { return len(m.vms) == 0 })
	for i := range m.events[1:] {
		if m.events[i+1] != m.events[i]+1 {
			t.Errorf("events %v", m.events)
		}
	}
}

func TestToldNews(t *testing.T) {
	have := told[*api.Server]{}
	of := func(names ...string) (out []*api.Server) {
		for _, n := range names {
			out = append(out, &api.Server{Name: n})
		}
		return out
	}
	if changed, gone := have.news(of("a", "b", "c")); len(changed) != 3 || gone != nil {
		t.Errorf("%v %v", changed, gone)
	}
	if changed, gone := have.news(of("a", "b", "c")); changed != nil || gone != nil {
		t.Errorf("%v %v", changed, gone)
	}
	now := append(of("b", "d"), &api.Server{Name: "a", Slots: 1})
	changed, gone := have.news(now)
	if len(changed) != 2 || !slices.Equal(gone, []string{"c"}) || len(slices.Collect(maps.Keys(have))) != 3 {
		t.Errorf("%v %v", changed, gone)
	}
}

// Questions about one server are answered by that one, whoever is asked.
func TestAsksTheServerMeant(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	s := c.servers[0]
	r, err := s.client.DebugCounters(s.ctx(), &api.DebugCountersRequest{Server: "c-1"})
	if err != nil || r.Server != "c-1" || r.Counters["monitor.applied"] == 0 {
		t.Errorf("%v %v", r, err)
	}
	sl, err := s.client.Slices(s.ctx(), &api.SlicesRequest{Server: "b-1"})
	if err != nil || sl.Server != "b-1" || sl.NowMicros == 0 || sl.Slots == 0 {
		t.Errorf("%v %v", sl, err)
	}
	if _, err := s.client.Slices(s.ctx(), &api.SlicesRequest{Server: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("slices of nobody: %v", err)
	}
	if _, err := s.client.PageMap(s.ctx(), &api.PageMapRequest{Name: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("map of nothing: %v", err)
	}
	if _, err := s.run("one", "", 2, "b", "c"); err != nil {
		t.Fatal(err)
	}
	s.wait("one", api.WaitVMRequest_UNTIL_STARTED)
	eventually(t, "both parts have told what they hold", func() bool { // a server that takes more than its time is left out
		m, err := s.client.PageMap(s.ctx(), &api.PageMapRequest{Name: "one", Regions: 100})
		if err != nil || len(m.Holders) != 2 || m.Pages%m.PagesPerRegion != 0 || m.Pages/m.PagesPerRegion > 100 {
			t.Fatalf("%v %v", m, err)
		}
		return !slices.ContainsFunc(m.Holders, func(h *api.PageHolder) bool {
			return len(h.Modified) != int(m.Pages/m.PagesPerRegion) || h.Modified[h.Part] != 5
		})
	})
	if _, err := s.client.PageMap(s.ctx(), &api.PageMapRequest{Name: "one", Regions: 1 << 20}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a map too fine: %v", err)
	}
}

func TestSliceLog(t *testing.T) {
	var l sliceLog
	order := func(now ident.Micros, vm ident.VMID, number uint64, mode wire.SliceMode, cpus ...uint16) {
		l.order(now, &gang.Order{VM: vm, SliceOrder: wire.SliceOrder{Number: number, Mode: mode, At: now, CPUs: cpus}})
	}
	order(10, 1, 1, wire.SliceRun, 0, 1)
	order(10, 2, 1, wire.SliceHold)
	order(15, 1, 1, wire.SliceRun, 0, 1) // said again
	order(20, 1, 2, wire.SliceHold)
	order(20, 2, 2, wire.SliceRun, 0)
	order(30, 2, 3, wire.SliceRun, 0)
	l.follow(40, func(vm ident.VMID) bool { return vm == 1 })
	order(50, 1, 4, wire.SliceRun, 1)
	ahead := gang.Order{VM: 1, SliceOrder: wire.SliceOrder{Number: 5, Mode: wire.SliceHold, At: 55, Next: []wire.SliceTurn{{Number: 6, Mode: wire.SliceRun, At: 58}}}}
	l.order(51, &ahead)
	l.order(52, &gang.Order{VM: 1, SliceOrder: wire.SliceOrder{Number: 4, Mode: wire.SliceRun, At: 54, CPUs: []uint16{1}}}) // taken back
	got, conducted := l.since(1<<50, 0)
	want := []turn{
		{1, 1, 10, 20, []uint16{0, 1}}, {2, 2, 20, 30, []uint16{0}}, {2, 3, 30, 40, []uint16{0}}, {1, 4, 50, 0, []uint16{1}},
	}
	if !reflect.DeepEqual(got, want) || !conducted {
		t.Errorf("%+v %v, want %+v", got, conducted, want)
	}
	if got, _ := l.since(1<<50, 35); len(got) != 2 {
		t.Errorf("since 35: %+v", got)
	}
	for i := range 3 * sliceLogTurns {
		order(ident.Micros(100+i), 3, uint64(10+i), wire.SliceRun, 0)
	}
	got, _ = l.since(1<<50, 0)
	if len(got) != sliceLogTurns || got[0].end != got[1].begin || got[len(got)-1].end != 0 {
		t.Errorf("%d turns, the first %+v", len(got), got[0])
	}
	order(1<<40, 3, 1<<30, wire.SliceFree)
	order(1<<40, 1, 1<<30, wire.SliceFree)
	if _, conducted := l.since(1<<50, 0); conducted {
		t.Error("all run freely")
	}
}
