package feed

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tests/setting"
	"github.com/cellvisor/cellvisor/tui/fake"
)

func TestMain(m *testing.M) {
	setting.Plain()
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of these tests.
const patience = time.Minute

// start runs a feed over dial until the test ends.
func start(t *testing.T, c Config) *Feed {
	t.Helper()
	if c.Interval == 0 {
		c.Interval = 20 * time.Millisecond
	}
	f := New(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

// until waits for an update that satisfies want.
func until(t *testing.T, f *Feed, what string, want func(Update) bool) Update {
	t.Helper()
	deadline := time.After(patience)
	var last Update
	for {
		select {
		case last = <-f.Updates():
			if want(last) {
				return last
			}
		case <-deadline:
			t.Fatalf("no update with %s; the last one: %+v %+v", what, last.Snapshot, last.Conn)
		}
	}
}

func connected(u Update) bool { return u.Snapshot != nil && u.Conn.Err == nil }

func TestSnapshotHoldsEverything(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	f := start(t, Config{Addrs: []string{"x"}, Dial: server.Dial})
	u := until(t, f, "events", func(u Update) bool { return connected(u) && len(u.Snapshot.Events) == 8 })
	s := u.Snapshot
	if len(s.Servers) != 6 || len(s.Cells) != 3 || len(s.VMs) != 6 || s.Status.GetEpoch() != 7 || s.Stale != nil {
		t.Fatalf("%+v", s)
	}
	if s.VM("lock") == nil || s.Server("c-2") == nil || s.Cell("b") == nil || s.VM("x") != nil || s.Server("x") != nil || s.Cell("x") != nil {
		t.Error("look-up by name")
	}
	if len(s.Operations) != 2 || s.Operation(40) == nil || s.VMLoad(23).LagMicros == 0 {
		t.Errorf("operations %v, load %+v", s.Operations, s.VMLoad(23))
	}
	f.Want(Want{VM: "lock", Counters: "a-1", Slices: "a-1", Map: "lock"})
	u = until(t, f, "the details", func(u Update) bool { return u.Snapshot.Watched != nil })
	if d := u.Snapshot; len(d.Watched.GetWorkers()) != 3 || d.Counters.GetServer() != "a-1" || len(d.Slices.GetSlices()) == 0 || len(d.Map.GetHolders()) != 3 {
		t.Errorf("the details: %d workers, counters of %q", len(d.Watched.GetWorkers()), d.Counters.GetServer())
	}
	f.Want(Want{VM: "gone-by-now"})
	until(t, f, "nothing there", func(u Update) bool {
		return u.Snapshot.Watched == nil && u.Snapshot.Map == nil && u.Snapshot.Counters == nil && u.Snapshot.Stale == nil
	})
}

func TestChangesArrive(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	f := start(t, Config{Addrs: []string{"x"}, Dial: server.Dial, Interval: time.Hour})
	until(t, f, "a snapshot", connected)
	until(t, f, "the old events", func(u Update) bool { return len(u.Snapshot.Events) == 8 })
	server.Change(func(s *fake.State) { s.Event("vm.lost", "", "", "tick", "VM tick lost") })
	until(t, f, "the new event", func(u Update) bool { return len(u.Snapshot.Events) == 9 })
	server.Change(func(s *fake.State) {
		s.VMs = append(slices.Clone(s.VMs[1:]), &api.VM{Name: "aaa"})
		s.Operations = s.Operations[:1]
	})
	u := until(t, f, "other VMs", func(u Update) bool { return u.Snapshot.VM("aaa") != nil && len(u.Snapshot.Operations) == 1 })
	if u.Snapshot.VM("boom") != nil || len(u.Snapshot.VMs) != 6 || u.Snapshot.VMs[0].GetName() != "aaa" {
		t.Errorf("VMs %v", u.Snapshot.VMs)
	}
}

func TestNoQuorumKeepsTheLists(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	f := start(t, Config{Addrs: []string{"x"}, Dial: server.Dial})
	until(t, f, "a snapshot", connected)
	server.Change(func(s *fake.State) {
		s.Refuse = api.NoQuorum("no quorum")
		s.Status.Quorum = false
	})
	f.Want(Want{VM: "lock"})
	u := until(t, f, "what could not be had", func(u Update) bool { return u.Snapshot.Stale != nil && !u.Snapshot.Status.GetQuorum() })
	if !api.IsNoQuorum(u.Snapshot.Stale) || len(u.Snapshot.VMs) != 6 || u.Snapshot.Status.GetQuorum() {
		t.Errorf("%+v", u.Snapshot)
	}
	server.Change(func(s *fake.State) { s.Refuse = nil })
	until(t, f, "fresh lists", func(u Update) bool { return u.Snapshot.Stale == nil })
}

// twoServers is a cluster of two fakes, each of which knows both addresses.
type twoServers struct {
	mu      sync.Mutex
	servers map[string]*fake.Server
	dialled []string
}

func (c *twoServers) dial(addr string) (api.CellvisorClient, io.Closer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialled = append(c.dialled, addr)
	s := c.servers[addr]
	if s == nil {
		return nil, nil, errors.New("nobody at " + addr)
	}
	return s.Dial(addr)
}

func newTwoServers(t *testing.T) *twoServers {
	first, second := fake.Small(), fake.Small()
	second.Status.Server = "b-1"
	for i := range 2 {
		first.Servers[2*i].ApiAddr = []string{"first", "second"}[i]
		second.Servers[2*i].ApiAddr = []string{"first", "second"}[i]
	}
	second.Event("only.here", "", "", "", "an event of the second server")
	c := &twoServers{servers: map[string]*fake.Server{"first": fake.Start(first), "second": fake.Start(second)}}
	for _, s := range c.servers {
		t.Cleanup(s.Stop)
	}
	return c
}

func TestGoesOverToALearnedServer(t *testing.T) {
	c := newTwoServers(t)
	f := start(t, Config{Addrs: []string{"first"}, Dial: c.dial})
	until(t, f, "the first server", func(u Update) bool { return connected(u) && u.Snapshot.Status.GetServer() == "a-1" })
	c.servers["first"].Stop()
	u := until(t, f, "the second server", func(u Update) bool { return connected(u) && u.Snapshot.Status.GetServer() == "b-1" })
	if u.Conn.Addr != "second" {
		t.Errorf("addr %q", u.Conn.Addr)
	}
	until(t, f, "its events", func(u Update) bool { return connected(u) && len(u.Snapshot.Events) == 9 })
}

func TestLeavesAServerThatIsCutOff(t *testing.T) {
	c := newTwoServers(t)
	c.servers["first"].Change(func(s *fake.State) { s.Status.Quorum = false })
	f := start(t, Config{Addrs: []string{"first"}, Dial: c.dial})
	until(t, f, "the second server", func(u Update) bool { return connected(u) && u.Snapshot.Status.GetServer() == "b-1" })
}

func TestLostAndBack(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	f := start(t, Config{Addrs: []string{"x"}, Dial: server.Dial})
	until(t, f, "a snapshot", connected)
	server.Change(func(s *fake.State) { s.RefuseAll = status.Error(codes.Unavailable, "shutting down") })
	u := until(t, f, "three failures", func(u Update) bool {
		// A user's r cuts the pauses short.
		f.Refresh()
		return u.Conn.Attempt >= 3
	})
	if len(u.Snapshot.VMs) != 6 || u.Conn.Err == nil || u.Conn.RetryAt.IsZero() {
		t.Errorf("%+v", u)
	}
	server.Change(func(s *fake.State) { s.RefuseAll = nil })
	f.Refresh()
	until(t, f, "the cluster again", connected)
}

func TestNobodyThere(t *testing.T) {
	c := &twoServers{}
	f := start(t, Config{Addrs: []string{"here", "there"}, Dial: c.dial})
	until(t, f, "two failures", func(u Update) bool { return u.Conn.Attempt >= 2 && u.Snapshot == nil })
	if _, err := f.Client(); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Client: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.dialled, "here") || !slices.Contains(c.dialled, "there") {
		t.Errorf("dialled %q", c.dialled)
	}
}

// read collects a log until done is satisfied.
func read(t *testing.T, fl *Follower, done func(text string, c Chunk) bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text := ""
	for {
		c, ok := fl.Next(ctx)
		if !ok {
			t.Fatalf("the log ends at %q", text)
		}
		text += string(c.Data)
		if done(text, c) {
			return text
		}
	}
}

func TestFollowConsoleAndOutput(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	f := start(t, Config{Addrs: []string{"x"}, Dial: server.Dial})
	until(t, f, "a snapshot", connected)

	console := f.Follow(t.Context(), "lock", Console)
	defer console.Close()
	read(t, console, func(text string, _ Chunk) bool { return strings.HasSuffix(text, "round 2000\n") })
	server.Change(func(s *fake.State) { s.Consoles["lock"] = append(s.Consoles["lock"], "the end\n"...) })
	if got := read(t, console, func(text string, _ Chunk) bool { return len(text) > 0 }); got != "the end\n" {
		t.Errorf("got %q", got)
	}

	output := f.Follow(t.Context(), "lock", Output)
	defer output.Close()
	if got := read(t, output, func(text string, _ Chunk) bool { return strings.HasSuffix(text, "3000\n") }); got != "1000\n2000\n3000\n" {
		t.Errorf("got %q", got)
	}
	server.Change(func(s *fake.State) { s.VMs[2].State = api.VMState_VM_STATE_EXITED })
	read(t, output, func(_ string, c Chunk) bool { return c.Done && c.Err == nil })
	read(t, console, func(_ string, c Chunk) bool { return c.Done && c.Err == nil })

	missing := f.Follow(t.Context(), "nobody", Console)
	defer missing.Close()
	read(t, missing, func(_ string, c Chunk) bool { return c.Done && status.Code(c.Err) == codes.NotFound })
}

func TestFollowGoesOnElsewhere(t *testing.T) {
	c := newTwoServers(t)
	f := start(t, Config{Addrs: []string{"first"}, Dial: c.dial})
	until(t, f, "a snapshot", connected)
	fl := f.Follow(t.Context(), "lock", Output)
	defer fl.Close()
	read(t, fl, func(text string, _ Chunk) bool { return strings.HasSuffix(text, "3000\n") })
	c.servers["second"].Change(func(s *fake.State) { s.Outputs["lock"] = append(s.Outputs["lock"], 4000) })
	c.servers["first"].Stop()
	if got := read(t, fl, func(text string, _ Chunk) bool { return text != "" }); got != "4000\n" {
		t.Errorf("got %q", got)
	}
}

func TestFollowerKeepsTheNewestOfAFlood(t *testing.T) {
	fl := &Follower{ready: make(chan struct{}, 1)}
	for range 5 {
		fl.add(Chunk{Data: []byte(strings.Repeat("x", MaxChunkBytes/2))})
	}
	fl.add(Chunk{Data: []byte("end")})
	c, ok := fl.Next(t.Context())
	if !ok || len(c.Data) != MaxChunkBytes || !strings.HasSuffix(string(c.Data), "end") {
		t.Fatalf("%d bytes", len(c.Data))
	}
	if want := uint64(5*(MaxChunkBytes/2) + 3 - MaxChunkBytes); c.Skipped != want {
		t.Errorf("%d skipped, want %d", c.Skipped, want)
	}
}

func TestEventLogIsBounded(t *testing.T) {
	var l eventLog
	l.restart("a-1")
	for seq := range uint64(5 * MaxEvents) {
		before := l.published()
		var first *api.Event
		if len(before) > 0 {
			first = before[0]
		}
		l.add([]*api.Event{{Seq: seq + 1}})
		if len(before) > 0 && before[0] != first {
			t.Fatal("a published slice changed")
		}
	}
	got := l.published()
	if len(got) != MaxEvents || got[len(got)-1].GetSeq() != 5*MaxEvents || cap(l.list) > 3*MaxEvents {
		t.Errorf("%d events, capacity %d", len(got), cap(l.list))
	}
	// Repeated events are not listed twice; another server's log begins anew.
	l.restart("a-1")
	if l.add([]*api.Event{{Seq: 3}}) || len(l.published()) != MaxEvents {
		t.Error("an old event was taken")
	}
	l.restart("b-1")
	if len(l.published()) != 0 || !l.add([]*api.Event{{Seq: 3}}) {
		t.Error("another server's log does not begin anew")
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for n := range 8 {
		got = append(got, Backoff(n))
	}
	ms := time.Millisecond
	want := []time.Duration{250 * ms, 250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 5000 * ms, 5000 * ms}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
