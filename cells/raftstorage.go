package cells

import (
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// storage is raft's view of the log. Snapshots are made when asked for, so that they always hold the configuration in force: a server
// that was just added must find itself in the one it gets.
type storage struct {
	*raft.MemoryStorage
	owner *Replica
}

func (s *storage) Snapshot() (*pb.Snapshot, error) {
	r := s.owner
	term, err := s.Term(r.applied)
	if err != nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	data, err := r.fsm.Snapshot()
	if err != nil {
		return nil, err
	}
	conf := proto.Clone(r.conf).(*pb.ConfState)
	return &pb.Snapshot{Data: data, Metadata: &pb.SnapshotMetadata{Index: new(r.applied), Term: new(term), ConfState: conf}}, nil
}

func (s *storage) InitialState() (*pb.HardState, *pb.ConfState, error) {
	hard, _, err := s.MemoryStorage.InitialState()
	return hard, s.owner.conf, err
}

// silent drops raft's log: what matters is told by events and counters. Broken invariants stop the server.
type silent struct{}

func (silent) Debug(...any)                   {}
func (silent) Debugf(string, ...any)          {}
func (silent) Info(...any)                    {}
func (silent) Infof(string, ...any)           {}
func (silent) Warning(...any)                 {}
func (silent) Warningf(string, ...any)        {}
func (silent) Error(...any)                   {}
func (silent) Errorf(string, ...any)          {}
func (silent) Fatal(v ...any)                 { panic("cells: raft: " + fmt.Sprint(v...)) }
func (silent) Fatalf(format string, v ...any) { panic("cells: raft: " + fmt.Sprintf(format, v...)) }
func (silent) Panic(v ...any)                 { panic("cells: raft: " + fmt.Sprint(v...)) }
func (silent) Panicf(format string, v ...any) { panic("cells: raft: " + fmt.Sprintf(format, v...)) }
