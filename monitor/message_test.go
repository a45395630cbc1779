package monitor

import (
	"bytes"
	"testing"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

func TestMessageRoundTrip(t *testing.T) {
	in := message{kind: kindForward, cluster: "c", sender: 7, incarnation: 8, epoch: 9, body: []byte("body")}
	out, err := decodeMessage(in.encode())
	if err != nil {
		t.Fatal(err)
	}
	if out.kind != in.kind || out.cluster != in.cluster || out.sender != in.sender || out.incarnation != in.incarnation || out.epoch != in.epoch || !bytes.Equal(out.body, in.body) {
		t.Errorf("got %+v", out)
	}
}

// testCore is the only server of a cluster of its own: it leads as soon as its election timer runs out.
func testCore(t testing.TB) (*Core, ident.Micros) {
	t.Helper()
	c, err := New(0, Config{
		ClusterID: "test", Server: 1, Seed: 1,
		Info:    cells.ServerInfo{Name: "a-1", Cell: "a", Role: cells.RoleServer, HostID: "h", Process: cells.Process{PID: 1, Boot: "b"}, Slots: 4, MemoryBytes: ident.GiB},
		Initial: []cells.InitialServer{{ID: 1, Name: "a-1", Cell: "a", Role: cells.RoleServer}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var now ident.Micros
	c.Step(now, Adopted{})
	for range 1000 {
		drain(c, now)
		if c.holdsLease() {
			return c, now
		}
		now, _ = c.NextDeadline()
		c.Step(now, Tick{})
	}
	t.Fatalf("no lease: %+v", c.Status(now))
	return nil, 0
}

// drain carries out what a core asks for, as a shell with an instant disk and no peers, and returns the actions and responses.
func drain(c *Core, now ident.Micros) (actions []Action, responses []Response) {
	for c.HasReady() {
		rd := c.Ready()
		actions = append(actions, rd.Actions...)
		responses = append(responses, rd.Responses...)
		c.Advance(now)
		for _, a := range rd.Actions {
			if k, ok := a.(KillWorkers); ok {
				c.Step(now, WorkersKilled{UpTo: k.UpTo})
			}
		}
		c.Check()
	}
	return actions, responses
}

// What is not a message of this cluster's is refused and counted, and changes nothing else.
func TestRefusals(t *testing.T) {
	c, now := testCore(t)
	good := message{kind: kindRaft, cluster: "test", sender: 2, body: []byte("x")}
	other := good
	other.cluster = "other"
	self := good
	self.sender = 1
	stranger := message{kind: kindGone, cluster: "test", sender: 9, incarnation: 3, body: encodeBody(goneBody{Server: 1, Incarnation: 1, Boot: "b"})}
	old := message{kind: kindForward, cluster: "test", sender: 2, incarnation: 1, body: []byte(`{"v":1,"req":"x-1","by":2,"report":{"kind":"k"}}`)}
	for _, tt := range []struct {
		name  string
		from  ident.ServerID
		bytes []byte
		count func(Counters) uint64
	}{
		{"garbage", 2, []byte("garbage"), func(k Counters) uint64 { return k.RefusedGarbage }},
		{"nothing", 2, nil, func(k Counters) uint64 { return k.RefusedGarbage }},
		{"another cluster", 2, other.encode(), func(k Counters) uint64 { return k.RefusedCluster }},
		{"from myself", 1, self.encode(), func(k Counters) uint64 { return k.RefusedSender }},
		{"from someone else than the connection", 3, good.encode(), func(k Counters) uint64 { return k.RefusedSender }},
		{"raft garbage", 2, good.encode(), func(k Counters) uint64 { return k.RefusedGarbage }},
		{"proof from outside the view", 9, stranger.encode(), func(k Counters) uint64 { return k.RefusedIncarnation }},
		{"a command from outside the view", 2, old.encode(), func(k Counters) uint64 { return k.RefusedIncarnation }},
	} {
		before, applied := tt.count(c.Counters()), c.Peek().Applied
		c.Step(now, PeerMessage{From: tt.from, Bytes: tt.bytes})
		drain(c, now)
		if tt.count(c.Counters()) != before+1 || c.Peek().Applied != applied {
			t.Errorf("%s: not counted as refused, or applied: %+v", tt.name, c.Counters())
		}
	}
}

// A proposal that only the monitor itself may make is refused from outside.
func TestOwnCommandsOnly(t *testing.T) {
	c, now := testCore(t)
	c.Step(now, Propose{ID: 5, Command: cells.Command{Exclude: &cells.Exclude{Term: 2}}, Deadline: now + ident.Second})
	_, responses := drain(c, now)
	if len(responses) != 1 || responses[0].ID != 5 || responses[0].Fault == nil || responses[0].Fault.Code != cells.CodeInvalid {
		t.Errorf("answer: %+v", responses)
	}
}

// Without a quorum a proposal is answered at its deadline, and says so.
func TestProposalWithoutQuorum(t *testing.T) {
	c, err := New(0, Config{
		ClusterID: "test", Server: 1, Info: cells.ServerInfo{Name: "a-1", Cell: "a", Role: cells.RoleServer, Process: cells.Process{Boot: "b"}},
		Initial: []cells.InitialServer{{ID: 1, Name: "a-1", Cell: "a"}, {ID: 2, Name: "b-1", Cell: "b"}, {ID: 3, Name: "c-1", Cell: "c"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var now ident.Micros
	c.Step(now, Propose{ID: 1, Command: cells.Command{Report: &cells.Report{Kind: "k"}}, Deadline: ident.Second})
	for now < 2*ident.Second {
		if _, responses := drain(c, now); len(responses) > 0 {
			if f := responses[0].Fault; f == nil || f.Code != cells.CodeNoQuorum || now < ident.Second {
				t.Errorf("at %d: %+v", now, responses[0])
			}
			return
		}
		now, _ = c.NextDeadline()
		c.Step(now, Tick{})
	}
	t.Error("no answer")
}

// Two first starts with lists that make no sense, and data of another cluster, are errors that say what is wrong.
func TestNewRefuses(t *testing.T) {
	info := cells.ServerInfo{Name: "a-1", Cell: "a", Role: cells.RoleServer, Process: cells.Process{Boot: "b"}}
	good := Config{ClusterID: "test", Server: 1, Info: info, Initial: []cells.InitialServer{{ID: 1, Name: "a-1", Cell: "a"}}}
	c, err := New(0, good)
	if err != nil {
		t.Fatal(err)
	}
	var disk cells.Stored
	for c.HasReady() {
		if rd := c.Ready(); rd.Persist != nil {
			disk = disk.Apply(rd.Persist)
		}
		c.Advance(0)
	}
	for name, change := range map[string]func(*Config){
		"no ID":           func(x *Config) { x.Server = 0 },
		"no cluster":      func(x *Config) { x.ClusterID = "" },
		"no boot":         func(x *Config) { x.Info.Process.Boot = "" },
		"ID too large":    func(x *Config) { x.Initial = []cells.InitialServer{{ID: 1000, Name: "x"}} },
		"name twice":      func(x *Config) { x.Initial = []cells.InitialServer{{ID: 1, Name: "x"}, {ID: 2, Name: "x"}} },
		"another cluster": func(x *Config) { x.ClusterID, x.Stored = "other", disk },
		"torn snapshot": func(x *Config) {
			x.Stored = cells.Stored{Snapshot: &cells.StoredSnapshot{Index: 1, Bytes: []byte("{")}}
		},
		"torn hard state": func(x *Config) { x.Stored = disk; x.Stored.HardState = []byte{0xff} },
		"gap in the log":  func(x *Config) { x.Stored = disk; x.Stored.Entries = []cells.LogEntry{{Index: 5, Bytes: nil}} },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(0, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	good.Stored = disk
	if _, err := New(0, good); err != nil {
		t.Errorf("its own data: %v", err)
	}
}

func FuzzPeerMessage(f *testing.F) {
	m := message{kind: kindForward, cluster: "test", sender: 2, body: []byte(`{"v":1,"req":"x-1","by":2,"admit":{"server":2}}`)}
	f.Add(m.encode())
	for k := kindRaft; k < kindEnd; k++ {
		m.kind = k
		f.Add(m.encode())
	}
	// A heartbeat of a higher term from server 2 to server 1.
	m.kind, m.body = kindRaft, []byte{0x08, 8, 0x10, 1, 0x18, 2, 0x20, 9}
	f.Add(m.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, now := testCore(t)
		c.Step(now, PeerMessage{Bytes: b})
		drain(c, now)
	})
}

func FuzzJoin(f *testing.F) {
	b, err := EncodeJoin(JoinRequest{ClusterID: "test", Info: cells.ServerInfo{Name: "b-1", Cell: "b", Role: cells.RoleServer, Process: cells.Process{Boot: "x"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = DecodeJoinReply(b)
		c, now := testCore(t)
		c.Step(now, JoinRequested{Conn: 3, Bytes: b})
		answers := 0
		for c.HasReady() {
			for _, m := range c.Ready().Messages {
				if m.Conn == 3 {
					answers++
				}
			}
			c.Advance(now)
			c.Check()
		}
		if answers != 1 {
			t.Fatalf("%d answers to one join request", answers)
		}
	})
}
