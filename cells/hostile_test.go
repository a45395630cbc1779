package cells

import (
	"fmt"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// A peer that sends Raft messages which no correct one would is refused: nothing of what it says may stop this server.
func TestHostileRaftMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, err := NewReplica(0, ReplicaConfig{
			ID: 1, ClusterID: "test", Timing: DefaultTiming(), Hooks: Hooks{Placer: testHooks{}, Container: testHooks{}},
			Initial: []InitialServer{{ID: 1, Name: "a-1", Cell: "a"}, {ID: 2, Name: "b-1", Cell: "b"}, {ID: 3, Name: "c-1", Cell: "c"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		var now ident.Micros
		settle := func() {
			for r.HasReady() {
				r.Ready()
				if _, err := r.Advance(now); err != nil {
					t.Fatalf("a message stopped the server: %v", err)
				}
			}
			r.FSM().Check()
		}
		settle()
		for range rapid.IntRange(1, 12).Draw(t, "messages") {
			now += 10 * ident.Millisecond
			if rapid.IntRange(0, 3).Draw(t, "tick") == 0 {
				now += ident.Second
				r.Tick(now)
			}
			from := ident.ServerID(rapid.IntRange(2, 4).Draw(t, "from"))
			_ = r.StepRaft(now, from, marshal(drawMessage(t, from)))
			if rapid.Bool().Draw(t, "settle") {
				settle()
			}
		}
		settle()
	})
}

func drawMessage(t *rapid.T, from ident.ServerID) *pb.Message {
	small := func(name string) *uint64 { return new(uint64(rapid.IntRange(0, 5).Draw(t, name))) }
	m := &pb.Message{
		Type: pb.MessageType(rapid.IntRange(0, 24).Draw(t, "type")).Enum(), To: new(uint64(1)), From: new(uint64(from)),
		Term: small("term"), LogTerm: small("log term"), Index: small("index"), Commit: small("commit"),
		Reject: new(rapid.Bool().Draw(t, "reject")), RejectHint: small("hint"),
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "entries") {
		e := &pb.Entry{Term: small("entry term"), Index: new(m.GetIndex() + 1 + uint64(i)), Type: pb.EntryType(rapid.IntRange(0, 3).Draw(t, "entry type")).Enum()}
		if rapid.IntRange(0, 5).Draw(t, "out of order") == 0 {
			e.Index = small("entry index")
		}
		switch rapid.IntRange(0, 3).Draw(t, "data") {
		case 0:
			e.Data = []byte(fmt.Sprintf(`{"v":1,"req":"x-%d","report":{"kind":"k"}}`, i))
		case 1:
			e.Data = marshal(&pb.ConfChangeV2{Changes: drawChanges(t)})
		case 2:
			e.Data = rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "garbage")
		}
		m.Entries = append(m.Entries, e)
	}
	if rapid.Bool().Draw(t, "context") {
		m.Context = rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "context bytes")
	}
	if rapid.Bool().Draw(t, "snapshot") {
		m.Snapshot = drawSnapshot(t)
	}
	return m
}

func drawChanges(t *rapid.T) []*pb.ConfChangeSingle {
	var out []*pb.ConfChangeSingle
	for range rapid.IntRange(0, 4).Draw(t, "changes") {
		out = append(out, &pb.ConfChangeSingle{
			Type: pb.ConfChangeType(rapid.IntRange(0, 4).Draw(t, "change")).Enum(), NodeId: new(uint64(rapid.IntRange(0, 5).Draw(t, "node")))})
	}
	return out
}

func drawSnapshot(t *rapid.T) *pb.Snapshot {
	ids := func(name string) []uint64 { return rapid.SliceOfN(rapid.Uint64Range(0, 5), 0, 4).Draw(t, name) }
	s := &pb.Snapshot{}
	if rapid.IntRange(0, 4).Draw(t, "metadata") > 0 {
		s.Metadata = &pb.SnapshotMetadata{
			Index: new(rapid.Uint64Range(0, 9).Draw(t, "snapshot index")), Term: new(rapid.Uint64Range(0, 5).Draw(t, "snapshot term")),
			ConfState: &pb.ConfState{Voters: ids("voters"), Learners: ids("learners"), VotersOutgoing: ids("outgoing"), LearnersNext: ids("next")},
		}
	}
	switch rapid.IntRange(0, 2).Draw(t, "snapshot data") {
	case 0:
		s.Data = []byte(`{"version":1,"state":{"cluster_id":"test"}}`)
	case 1:
		s.Data = []byte(`{"version":1,"state":{"cluster_id":"other"}}`)
	}
	return proto.Clone(s).(*pb.Snapshot)
}
