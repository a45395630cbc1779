package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/payload"
)

// dial returns a client that knows all servers.
func (c *testCluster) dial() *api.Client {
	c.t.Helper()
	var addrs []string
	for _, s := range c.servers {
		addrs = append(addrs, "unix://"+s.cfg.Listen.APIUnix)
	}
	cl, err := api.Dial(c.servers[0].ctx(), strings.Join(addrs, ","))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func TestOperatorErrors(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	s := c.servers[0]
	if _, err := s.run("taken", "", 1); err != nil {
		t.Fatal(err)
	}
	builtin := &api.VMSpec_Builtin{Builtin: "count"}
	for _, tc := range []struct {
		what string
		spec *api.VMSpec
		code codes.Code
		text string
	}{
		{"no payload", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 20}, codes.InvalidArgument, "needs a payload"},
		{"bad name", &api.VMSpec{Name: "a b", Vcpus: 1, MemoryBytes: 64 << 20, Payload: builtin}, codes.InvalidArgument, "not allowed"},
		{"no such built-in", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 20, Payload: &api.VMSpec_Builtin{Builtin: "nope"}}, codes.InvalidArgument, "there are count"},
		{"no vCPU", &api.VMSpec{Name: "x", MemoryBytes: 64 << 20, Payload: builtin}, codes.InvalidArgument, "vCPU"},
		{"name in use", &api.VMSpec{Name: "taken", Vcpus: 1, MemoryBytes: 64 << 20, Payload: builtin}, codes.AlreadyExists, "exists"},
		{"unknown cell", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 20, Payload: builtin, Span: []string{"z"}}, codes.InvalidArgument, "z"},
		{"fewer vCPUs than cells", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 20, Payload: builtin, Span: []string{"a", "b"}}, codes.InvalidArgument, "each of its span"},
		{"too many vCPUs", &api.VMSpec{Name: "x", Vcpus: 100, MemoryBytes: 64 << 20, Payload: builtin, Span: []string{"a"}}, codes.InvalidArgument, "100"},
		{"too much memory", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 30, Payload: builtin}, codes.InvalidArgument, "64GiB"},
		{"unknown on-loss", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 20, Payload: builtin, OnLoss: 77}, codes.InvalidArgument, "on-loss"},
		{"protection", &api.VMSpec{Name: "x", Vcpus: 1, MemoryBytes: 64 << 20, Payload: builtin, Protect: "replica:0"}, codes.InvalidArgument, "replica:K"},
	} {
		stream, err := s.client.RunVM(s.ctx())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&api.RunVMRequest{Part: &api.RunVMRequest_Spec{Spec: tc.spec}})
		_, err = stream.CloseAndRecv()
		if status.Code(err) != tc.code || !strings.Contains(api.Message(err), tc.text) {
			t.Errorf("%s: %v %q, want %v %q", tc.what, status.Code(err), api.Message(err), tc.code, tc.text)
		}
	}
	if _, err := s.client.GetVM(s.ctx(), &api.GetVMRequest{Name: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("get of nothing: %v", err)
	}
	if _, err := s.client.RemoveVM(s.ctx(), &api.RemoveVMRequest{Name: "taken"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("remove of a running one: %v", err)
	}
	if _, err := s.client.RemoveVM(s.ctx(), &api.RemoveVMRequest{Name: "taken", Force: true}); err != nil {
		t.Errorf("remove by force: %v", err)
	}
	blob, err := s.client.GetBlob(s.ctx(), &api.GetBlobRequest{Sha256: make([]byte, 32)})
	if err == nil {
		_, err = blob.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("blob of nothing: %v", err)
	}
	r, err := s.client.DebugCounters(s.ctx(), &api.DebugCountersRequest{})
	if err != nil || r.Counters["api.calls"] == 0 || r.Counters["monitor.applied"] == 0 {
		t.Errorf("counters %v %v", r, err)
	}
}

// A payload file given to one server reaches the home on another one, and goes when its last VM is removed.
func TestPayloadTravels(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	image, err := payload.Open("count")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(image)
	name := hex.EncodeToString(sum[:])
	cl := c.dial()
	target := c.servers[2]
	if strings.Contains(cl.Addr(), target.cfg.Listen.APIUnix) {
		target = c.servers[1]
	}
	vm, err := cl.Run(target.ctx(), &api.VMSpec{Name: "file", Vcpus: 1, MemoryBytes: 64 << 20, Span: []string{string(target.cfg.Cell)}}, bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if vm.Payload != "sha256:"+name {
		t.Errorf("payload %q", vm.Payload)
	}
	if vm := target.wait("file", api.WaitVMRequest_UNTIL_STARTED); vm.State != api.VMState_VM_STATE_RUNNING {
		t.Fatalf("it is %v", vm)
	}
	stream, err := target.client.GetBlob(target.ctx(), &api.GetBlobRequest{Sha256: sum[:]})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Chunk...)
	}
	if !bytes.Equal(got, image) {
		t.Errorf("the payload has %d bytes at its home, %d were sent", len(got), len(image))
	}
	if _, err := target.client.RemoveVM(target.ctx(), &api.RemoveVMRequest{Name: "file", Force: true}); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.servers {
		eventually(t, "the payload goes from "+string(s.cfg.Name), func() bool {
			stream, err := s.client.GetBlob(s.ctx(), &api.GetBlobRequest{Sha256: sum[:]})
			if err == nil {
				_, err = stream.Recv()
			}
			return status.Code(err) == codes.NotFound
		})
	}
	for _, bad := range []string{"", "no ELF at all", string(image[:1000])} {
		_, err := cl.Run(target.ctx(), &api.VMSpec{Name: "bad", Vcpus: 1, MemoryBytes: 64 << 20}, strings.NewReader(bad))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("payload of %d bytes: %v", len(bad), err)
		}
	}
}

func TestLogsFromAnywhere(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	if _, err := c.servers[0].run("short", "exit", 1, "b"); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.servers {
		console, err := s.client.ConsoleVM(s.ctx(), &api.ConsoleVMRequest{Name: "short", Offset: 1, Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		var text []byte
		for {
			m, err := console.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", s.cfg.Name, err)
			}
			text = append(text, m.Data...)
		}
		if string(text) != "ye\n" {
			t.Errorf("%s: console %q", s.cfg.Name, text)
		}
		output, err := s.client.OutputVM(s.ctx(), &api.OutputVMRequest{Name: "short", Index: 1})
		if err != nil {
			t.Fatal(err)
		}
		m, err := output.Recv()
		if err != nil || m.Index != 1 || len(m.Records) != 2 || m.Records[1] != 3 {
			t.Errorf("%s: output %v %v", s.cfg.Name, m, err)
		}
	}
	vm := c.servers[0].wait("short", api.WaitVMRequest_UNTIL_ENDED)
	if vm.State != api.VMState_VM_STATE_EXITED || vm.ExitStatus != 7 || vm.Home != "b-1" {
		t.Errorf("it is %v", vm)
	}
	r, err := c.servers[0].client.GetVM(c.servers[0].ctx(), &api.GetVMRequest{Name: "short"})
	if err != nil || r.Vm.ConsoleBytes != 4 || r.Vm.OutputRecords != 3 {
		t.Errorf("got %v %v", r, err)
	}
	// The home dies: the logs are out of reach, and the text says so.
	c.servers[1].stop()
	c.awaitLive(2, c.servers[0], c.servers[2])
	console, err := c.servers[0].client.ConsoleVM(c.servers[0].ctx(), &api.ConsoleVMRequest{Name: "short"})
	if err == nil {
		_, err = console.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(api.Message(err), "server b-1") {
		t.Errorf("console of a dead home: %v", err)
	}
}

func TestEventsAreTheSameEverywhere(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	if _, err := c.servers[0].run("short", "exit", 1); err != nil {
		t.Fatal(err)
	}
	c.servers[1].wait("short", api.WaitVMRequest_UNTIL_ENDED)
	var seen [3][]string
	for i, s := range c.servers {
		ctx, cancel := context.WithCancel(s.ctx())
		stream, err := s.client.Events(ctx, &api.EventsRequest{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		for last := ""; last != "vm.exited"; {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range m.Events {
				last = e.Type
				seen[i] = append(seen[i], e.Type+" "+e.Message)
			}
		}
		cancel()
	}
	for i := 1; i < 3; i++ {
		if strings.Join(seen[i], "\n") != strings.Join(seen[0], "\n") {
			t.Errorf("server %d: %q\nserver 0: %q", i, seen[i], seen[0])
		}
	}
}

func TestWithoutQuorum(t *testing.T) {
	c := newCluster(t, 3)
	c.awaitLive(3, c.servers...)
	c.servers[1].stop()
	c.servers[2].stop()
	s := c.servers[0]
	eventually(t, "the last server knows that it is alone", func() bool { st := s.status(); return st != nil && !st.Quorum })
	began := time.Now()
	_, err := s.run("web", "", 1)
	if !api.IsNoQuorum(err) || api.ExitCode(err) != api.ExitNoQuorum {
		t.Errorf("run: %v", err)
	}
	if _, err := s.client.StopVM(s.ctx(), &api.StopVMRequest{Name: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(began); took > proposePatience+time.Second {
		t.Errorf("refused after %v", took)
	}
	if r, err := s.client.ListServers(s.ctx(), &api.ListServersRequest{}); err != nil || len(r.Servers) != 3 {
		t.Errorf("list: %v %v", r, err)
	}
	c.servers[1].start()
	c.awaitLive(2, s, c.servers[1])
	if _, err := s.run("web", "", 1); err != nil {
		t.Errorf("with a quorum again: %v", err)
	}
}
