package link

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/tests/setting"
	"github.com/cellvisor/cellvisor/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	setting.Plain()
	goleak.VerifyTestMain(m)
}

// testPatience bounds every wait in these tests. It is far beyond what a loaded machine needs.
const testPatience = time.Minute

// event is one callback of a PagesHandler.
type event struct {
	kind  string // "pages", "up", "down", "silent"
	from  ident.Part
	epoch ident.Epoch
	page  ident.PageNo
	body  string
}

// recorder is a PagesHandler that keeps what it is told, and lets a test wait for it.
type recorder struct {
	mu      sync.Mutex
	events  []event
	changed chan struct{}
	device  func(from ident.Part, req DeviceRequest)
	pages   func(from ident.Part, epoch ident.Epoch, items *wire.PageItems) error
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{})} }

func (r *recorder) note(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) HandlePages(from ident.Part, epoch ident.Epoch, items *wire.PageItems) error {
	if r.pages != nil {
		return r.pages(from, epoch, items)
	}
	var m wire.PageMsg
	for body, ok := items.Next(&m); ok; body, ok = items.Next(&m) {
		r.note(event{kind: "pages", from: from, epoch: epoch, page: m.Page, body: string(body)})
	}
	return nil
}

func (r *recorder) HandleDevice(from ident.Part, epoch ident.Epoch, req DeviceRequest) {
	if r.device != nil {
		r.device(from, req)
		return
	}
	req.Reply(wire.DeviceOK, append([]byte("echo "), req.Payload...))
}

func (r *recorder) PeerUp(part ident.Part) { r.note(event{kind: "up", from: part}) }

func (r *recorder) PeerDown(part ident.Part, reset bool) {
	kind := "silent"
	if reset {
		kind = "down"
	}
	r.note(event{kind: kind, from: part})
}

// all returns the events so far.
func (r *recorder) all() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]event(nil), r.events...)
}

// wait returns the first event from index i on that satisfies ok, and the index after it.
func (r *recorder) wait(t testing.TB, i int, what string, ok func(event) bool) (event, int) {
	t.Helper()
	timeout := time.After(testPatience)
	for {
		r.mu.Lock()
		changed := r.changed
		for ; i < len(r.events); i++ {
			if ok(r.events[i]) {
				defer r.mu.Unlock()
				return r.events[i], i + 1
			}
		}
		r.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for %s; events: %+v", what, r.all())
		}
	}
}

func (r *recorder) waitFor(t testing.TB, i int, kind string, from ident.Part) int {
	t.Helper()
	_, next := r.wait(t, i, fmt.Sprintf("%s of %s", kind, from), func(e event) bool { return e.kind == kind && e.from == from })
	return next
}

// waitCount waits until a counter has reached a value.
func waitCount(t testing.TB, what string, read func() uint64, want uint64) {
	t.Helper()
	deadline := time.Now().Add(testPatience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for read() < want {
		if time.Now().After(deadline) {
			t.Fatalf("%s is %d, waited in vain for %d", what, read(), want)
		}
		<-tick.C
	}
}

// world is a VM with several parts in one process.
type world struct {
	t       testing.TB
	planes  []*Pages
	rec     []*recorder
	members []wire.WorkerMember
}

func testConfig(part int, h PagesHandler) PagesConfig {
	return PagesConfig{
		ClusterID: "test-cluster", VM: 7, Self: ident.Part(part), Server: ident.ServerID(100 + part), Secret: []byte("secret of VM 7"),
		ListenHost: "127.0.0.1", Handler: h, Seal: part == 0 && os.Getenv("BENCH_SEAL") != "off", // so that there are connections of both kinds
	}
}

func newWorld(t testing.TB, parts int, change func(part int, cfg *PagesConfig)) *world {
	w := &world{t: t}
	for i := range parts {
		rec := newRecorder()
		cfg := testConfig(i, rec)
		cfg.Logf = func(format string, args ...any) { t.Logf("part %d: "+format, append([]any{i}, args...)...) }
		if change != nil {
			change(i, &cfg)
		}
		p, err := ListenPages(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		w.planes, w.rec = append(w.planes, p), append(w.rec, rec)
		w.members = append(w.members, wire.WorkerMember{Part: ident.Part(i), Server: ident.ServerID(100 + i), Addr: p.Addr()})
	}
	return w
}

func (w *world) setMembers(epoch ident.Epoch, members []wire.WorkerMember, parts ...int) {
	w.t.Helper()
	for _, i := range parts {
		if err := w.planes[i].SetMembers(epoch, members); err != nil {
			w.t.Fatal(err)
		}
	}
}

// connect makes all parts members in epoch 1 and waits until every pair is connected.
func (w *world) connect() {
	w.t.Helper()
	for i := range w.planes {
		w.setMembers(1, w.members, i)
	}
	for i, r := range w.rec {
		for j := range w.rec {
			if i != j {
				r.waitFor(w.t, 0, "up", ident.Part(j))
			}
		}
	}
}

func (w *world) send(from, to int, epoch ident.Epoch, page ident.PageNo) {
	o := w.planes[from].NewOutbox()
	o.Add(&wire.PageMsg{Kind: wire.KindGetShared, To: ident.Part(to), Page: page}, nil)
	o.Flush(epoch)
}

func (w *world) waitPage(at, from int, page ident.PageNo) {
	w.t.Helper()
	w.rec[at].wait(w.t, 0, fmt.Sprintf("page %d from p%d at p%d", page, from, at), func(e event) bool {
		return e.kind == "pages" && e.from == ident.Part(from) && e.page == page
	})
}

func TestPagesReachEachOther(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.connect()
	for i := range w.planes {
		for j := range w.planes {
			if i != j {
				w.send(i, j, 1, ident.PageNo(10*i+j))
				w.waitPage(j, i, ident.PageNo(10*i+j))
			}
		}
	}
}

func TestRequestIsAnswered(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.connect()
	got, status, err := w.planes[1].Request(0, 1, wire.DeviceConsole, []byte("x"), time.Now().Add(testPatience))
	if err != nil || status != wire.DeviceOK || string(got) != "echo x" {
		t.Fatalf("got %q, %d, %v", got, status, err)
	}
}
