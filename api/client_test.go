package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fake is a server that says what a test tells it.
type fake struct {
	UnimplementedCellvisorServer
	name    string
	status  func(context.Context) (*StatusResponse, error)
	getVM   func(context.Context) (*GetVMResponse, error)
	console func(*ConsoleVMRequest, Cellvisor_ConsoleVMServer) error
	events  func(*EventsRequest, Cellvisor_EventsServer) error
	runVM   func(Cellvisor_RunVMServer) error
	calls   atomic.Int32
	grpc    *grpc.Server
	addr    string
}

func (f *fake) Status(ctx context.Context, _ *StatusRequest) (*StatusResponse, error) {
	if f.status != nil {
		return f.status(ctx)
	}
	return live(f.name), nil
}

func live(name string) *StatusResponse {
	return &StatusResponse{Server: name, Quorum: true, ServerState: ServerState_SERVER_STATE_LIVE}
}

func (f *fake) GetVM(ctx context.Context, _ *GetVMRequest) (*GetVMResponse, error) {
	f.calls.Add(1)
	return f.getVM(ctx)
}

func (f *fake) ConsoleVM(r *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
	return f.console(r, s)
}
func (f *fake) Events(r *EventsRequest, s Cellvisor_EventsServer) error { return f.events(r, s) }
func (f *fake) RunVM(s Cellvisor_RunVMServer) error                     { return f.runVM(s) }

func (f *fake) start(t *testing.T) *fake {
	t.Helper()
	f.addr = "unix://" + filepath.Join(t.TempDir(), "s")
	f.listen(t)
	t.Cleanup(func() { f.grpc.Stop() })
	return f
}

// listen begins to serve, or does so again.
func (f *fake) listen(t *testing.T) {
	l, err := net.Listen("unix", strings.TrimPrefix(f.addr, "unix://"))
	if err != nil {
		t.Error(err)
		return
	}
	f.grpc = grpc.NewServer()
	RegisterCellvisorServer(f.grpc, f)
	go func() { _ = f.grpc.Serve(l) }()
}

// stopped is a server that accepts connections and never answers, as a process under SIGSTOP does.
func stopped(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "unix://" + path
}

func dialTest(t *testing.T, addrs ...string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), strings.Join(addrs, ","))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestParseAddrs(t *testing.T) {
	got, err := ParseAddrs(" unix:///a/b ,/c/d, host:1,")
	if err != nil || strings.Join(got, " ") != "unix:///a/b unix:///c/d host:1" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"", ",", "host", "relative/path"} {
		if _, err := ParseAddrs(bad); err == nil {
			t.Errorf("ParseAddrs(%q) accepted it", bad)
		}
	}
}

// Dead, stopped and quorumless servers are passed over.
func TestDialChooses(t *testing.T) {
	alone := (&fake{name: "alone", status: func(context.Context) (*StatusResponse, error) {
		return &StatusResponse{Server: "alone"}, nil
	}}).start(t)
	good := (&fake{name: "good"}).start(t)
	c := dialTest(t, "unix:///nonexistent/s", stopped(t), alone.addr, good.addr)
	if c.Addr() != good.addr || c.Alone() != "" {
		t.Errorf("chose %s, want the one with a quorum; alone is %q", c.Addr(), c.Alone())
	}
	c = dialTest(t, "unix:///nonexistent/s", alone.addr)
	if c.Addr() != alone.addr || c.Alone() != "alone" {
		t.Errorf("chose %s, want the only one that answers; alone is %q", c.Addr(), c.Alone())
	}
}

func TestDialNobody(t *testing.T) {
	_, err := Dial(t.Context(), "unix:///nonexistent/s,unix:///nonexistent/t")
	if status.Code(err) != codes.Unavailable || !strings.Contains(Message(err), "no server of the cluster answers") {
		t.Errorf("got %v", err)
	}
}

// A call whose server dies under it is made again at another one; one that is refused is not.
func TestCallGoesElsewhere(t *testing.T) {
	first := &fake{name: "first"}
	first.getVM = func(context.Context) (*GetVMResponse, error) {
		go first.grpc.Stop()
		return nil, status.Error(codes.Unavailable, "going away")
	}
	first.start(t)
	second := (&fake{name: "second", getVM: func(context.Context) (*GetVMResponse, error) {
		return &GetVMResponse{Vm: &VM{Name: "x"}}, nil
	}}).start(t)
	c := dialTest(t, first.addr, second.addr)
	var vm *VM
	err := c.Call(t.Context(), func(ctx context.Context, svc CellvisorClient) error {
		resp, err := svc.GetVM(ctx, &GetVMRequest{Name: "x"})
		vm = resp.GetVm()
		return err
	})
	if err != nil || vm.GetName() != "x" || c.Addr() != second.addr {
		t.Errorf("got %v, %v from %s", vm, err, c.Addr())
	}

	second.getVM = func(context.Context) (*GetVMResponse, error) { return nil, status.Error(codes.NotFound, "no VM x") }
	second.calls.Store(0)
	err = c.Call(t.Context(), func(ctx context.Context, svc CellvisorClient) error {
		_, err := svc.GetVM(ctx, &GetVMRequest{Name: "x"})
		return err
	})
	if status.Code(err) != codes.NotFound || second.calls.Load() != 1 {
		t.Errorf("a refusal: %v after %d calls", err, second.calls.Load())
	}
}

// A call at a server that stands still goes to another one before the patience with a slow call ends; one at a server that is merely slow does not.
func TestCallLeavesAServerThatStandsStill(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the silence to be noticed")
	}
	t.Parallel()
	still := &fake{name: "still"}
	var asked atomic.Bool
	still.status = func(ctx context.Context) (*StatusResponse, error) {
		if asked.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return live("still"), nil
	}
	still.getVM = func(ctx context.Context) (*GetVMResponse, error) {
		asked.Store(true)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	still.start(t)
	slow := &fake{name: "slow"}
	slow.getVM = func(ctx context.Context) (*GetVMResponse, error) {
		select {
		case <-time.After(3 * callSilence):
			return &GetVMResponse{Vm: &VM{Name: "x"}}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	slow.start(t)
	c := dialTest(t, still.addr, slow.addr)
	c.setCurrent(answer{addr: still.addr, st: live("still")})
	began := time.Now()
	err := c.Call(t.Context(), func(ctx context.Context, svc CellvisorClient) error {
		_, err := svc.GetVM(ctx, &GetVMRequest{Name: "x"})
		return err
	})
	if err != nil || c.Addr() != slow.addr || slow.calls.Load() != 1 || still.calls.Load() != 1 {
		t.Errorf("%v at %s after %d and %d calls, in %v", err, c.Addr(), still.calls.Load(), slow.calls.Load(), time.Since(began))
	}
}

// A console that is followed goes on at another server where it broke off, repeated beginnings cut away.
func TestConsoleResumes(t *testing.T) {
	first := &fake{name: "first"}
	first.console = func(_ *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
		if err := s.Send(&ConsoleVMResponse{Offset: 0, Data: []byte("hello ")}); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "going away")
	}
	first.start(t)
	second := (&fake{name: "second", console: func(r *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
		if r.GetOffset() != 6 {
			return fmt.Errorf("asked for offset %d", r.GetOffset())
		}
		return errors.Join(s.Send(&ConsoleVMResponse{}), s.Send(&ConsoleVMResponse{Offset: 3, Data: []byte("lo world")}))
	}}).start(t)
	c := dialTest(t, first.addr, second.addr)
	var out bytes.Buffer
	if err := c.Console(t.Context(), "x", 0, true, &out); err != nil || out.String() != "hello world" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// Who follows something goes on when all servers were away for a while; who has not heard of it yet is told at once.
func TestFollowBearsAbsence(t *testing.T) {
	srv := &fake{name: "one"}
	srv.console = func(r *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
		if r.GetOffset() == 0 {
			defer func() { <-s.Context().Done() }()
			return s.Send(&ConsoleVMResponse{Data: []byte("before ")})
		}
		return s.Send(&ConsoleVMResponse{Offset: 7, Data: []byte("and after")})
	}
	srv.start(t)
	c := dialTest(t, srv.addr)
	again := make(chan struct{})
	var out bytes.Buffer
	w := onceWriter{&out, sync.OnceFunc(func() {
		go func() {
			defer close(again)
			srv.grpc.Stop()
			if _, err := Dial(t.Context(), srv.addr); err == nil {
				t.Error("a server that was stopped answers")
			}
			<-time.After(absencePause) // the client finds nobody, too
			srv.listen(t)
		}()
	})}
	if err := c.Console(t.Context(), "x", 0, true, w); err != nil || out.String() != "before and after" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	<-again
	srv.grpc.Stop()
	if err := c.Console(t.Context(), "x", 0, true, &out); status.Code(err) != codes.Unavailable {
		t.Errorf("nobody is there: %v", err)
	}
}

// An error of the receiver ends the stream and comes back as it is.
func TestFollowStopsOnReceiversError(t *testing.T) {
	srv := (&fake{name: "one", console: func(_ *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
		for s.Send(&ConsoleVMResponse{Data: []byte("x")}) == nil {
		}
		return nil
	}}).start(t)
	c := dialTest(t, srv.addr)
	full := status.Error(codes.Unavailable, "the pipe is full")
	if err := c.Console(t.Context(), "x", 0, true, failingWriter{full}); err != full {
		t.Errorf("got %v", err)
	}
}

// onceWriter does something when it is written to for the first time.
type onceWriter struct {
	w    io.Writer
	once func()
}

func (w onceWriter) Write(p []byte) (int, error) { w.once(); return w.w.Write(p) }

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// A stream that falls silent is opened again elsewhere.
func TestSilentServer(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the silence to be noticed")
	}
	t.Parallel()
	silent := (&fake{name: "silent", console: func(_ *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
		<-s.Context().Done()
		return nil
	}}).start(t)
	talking := (&fake{name: "talking", console: func(_ *ConsoleVMRequest, s Cellvisor_ConsoleVMServer) error {
		return s.Send(&ConsoleVMResponse{Data: []byte("x")})
	}}).start(t)
	c := dialTest(t, silent.addr, talking.addr)
	var out bytes.Buffer
	if err := c.Console(t.Context(), "x", 0, true, &out); err != nil || out.String() != "x" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// Events of the log are not repeated at another server, whose sequence numbers differ.
func TestEventsResume(t *testing.T) {
	at := func(seq, index uint64) *Event { return &Event{Seq: seq, LogIndex: index, Type: fmt.Sprint(index)} }
	first := &fake{name: "first"}
	first.events = func(_ *EventsRequest, s Cellvisor_EventsServer) error {
		if err := s.Send(&EventsResponse{Events: []*Event{at(1, 10), at(2, 11)}}); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "going away")
	}
	first.start(t)
	second := (&fake{name: "second", events: func(r *EventsRequest, s Cellvisor_EventsServer) error {
		if r.GetFromSeq() != 0 {
			return fmt.Errorf("asked from %d", r.GetFromSeq())
		}
		return s.Send(&EventsResponse{Events: []*Event{at(7, 10), at(8, 11), at(9, 12)}})
	}}).start(t)
	c := dialTest(t, first.addr, second.addr)
	var got []string
	err := c.FollowEvents(t.Context(), 0, true, func(e *Event) error { got = append(got, e.GetType()); return nil })
	if err != nil || strings.Join(got, " ") != "10 11 12" {
		t.Errorf("got %v, %v", got, err)
	}
}

// A payload arrives whole, or is refused.
func TestRunSendsPayload(t *testing.T) {
	var mu sync.Mutex
	var got bytes.Buffer
	srv := (&fake{name: "one", runVM: func(s Cellvisor_RunVMServer) error {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		got.Reset()
		if err := RecvPayload(s, 4<<20, Incoming{m.GetSpec().GetFile(), &got}); err != nil {
			return err
		}
		return s.SendAndClose(&RunVMResponse{Vm: &VM{Name: m.GetSpec().GetName()}})
	}}).start(t)
	c := dialTest(t, srv.addr)
	want := bytes.Repeat([]byte("payload "), 300_000) // over two chunks
	vm, err := c.Run(t.Context(), &VMSpec{Name: "x"}, bytes.NewReader(want))
	if err != nil || vm.GetName() != "x" || !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("got %d bytes, %v", got.Len(), err)
	}
	_, err = c.Run(t.Context(), &VMSpec{Name: "x"}, bytes.NewReader(make([]byte, 5<<20)))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(Message(err), "at most 4194304") {
		t.Errorf("a payload that is too long: %v", err)
	}
}

func TestRecvPayloadRefusesLies(t *testing.T) {
	var announced *PayloadFile
	srv := (&fake{name: "one", runVM: func(s Cellvisor_RunVMServer) error {
		return RecvPayload(s, 1<<20, Incoming{announced, &bytes.Buffer{}})
	}}).start(t)
	c := dialTest(t, srv.addr)
	for name, file := range map[string]*PayloadFile{
		"short sum":  {SizeBytes: 3, Sha256: []byte{1}},
		"wrong sum":  {SizeBytes: 3, Sha256: make([]byte, 32)},
		"more bytes": {SizeBytes: 2, Sha256: make([]byte, 32)},
		"less bytes": {SizeBytes: 4, Sha256: make([]byte, 32)},
	} {
		announced = file
		stream, err := c.API().RunVM(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&RunVMRequest{Part: &RunVMRequest_Chunk{Chunk: []byte("abc")}})
		if _, err = stream.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	wrapped := fmt.Errorf("doing it: %w", NoQuorum("2 of 3 servers are gone"))
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, ExitOK},
		{errors.New("x"), ExitError},
		{status.Error(codes.NotFound, "x"), ExitError},
		{status.Error(codes.InvalidArgument, "x"), ExitError},
		{status.Error(codes.ResourceExhausted, "x"), ExitBlocked},
		{status.Error(codes.FailedPrecondition, "x"), ExitBlocked},
		{status.Error(codes.DeadlineExceeded, "x"), ExitDeadline},
		{context.DeadlineExceeded, ExitDeadline},
		{Detached{"it"}, ExitDetached},
		{NoQuorum("x"), ExitNoQuorum},
		{wrapped, ExitNoQuorum},
		{status.Error(codes.Unavailable, "x"), ExitError},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("ExitCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
	if got := Message(NoQuorum("2 of %d", 3)); got != "2 of 3" {
		t.Errorf("message %q", got)
	}
	if got := Message(wrapped); !strings.Contains(got, "2 of 3 servers are gone") || strings.Contains(got, "rpc error") {
		t.Errorf("wrapped message %q", got)
	}
}

func TestWords(t *testing.T) {
	if VMState_VM_STATE_RUNNING.Word() != "running" || ServerState_SERVER_STATE_DEAD.Word() != "dead" ||
		CellState_CELL_STATE_DEGRADED.Word() != "degraded" || ServerRole_SERVER_ROLE_WITNESS.Word() != "witness" || OnLoss_ON_LOSS_TOUCH.Word() != "touch" {
		t.Error("words are not those of the documentation")
	}
	if VMState_VM_STATE_STARTING.Ended() || !VMState_VM_STATE_LOST.Ended() {
		t.Error("ends")
	}
}
