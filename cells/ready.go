package cells

import "github.com/cellvisor/cellvisor/ident"

// LogEntry is one entry of the Raft log as it is kept on disk. Bytes is opaque to the shell.
type LogEntry struct {
	Index uint64
	Bytes []byte
}

// StoredSnapshot is a snapshot of the state as it is kept on disk. Bytes is opaque to the shell.
type StoredSnapshot struct {
	Index uint64
	Bytes []byte
}

// Stored is what the shell read from disk at start. The zero value is an empty disk.
type Stored struct {
	HardState []byte          // nil if none was written
	Snapshot  *StoredSnapshot // nil if none was written
	Entries   []LogEntry      // by rising index, without gaps, all above the snapshot's index
}

// Empty tells whether nothing was ever stored.
func (s Stored) Empty() bool { return s.HardState == nil && s.Snapshot == nil && len(s.Entries) == 0 }

// Persist is what must reach the disk, in one atomic write, before any message of the same Ready is sent. In this order:
//
//  1. If Snapshot is not nil it takes the place of the former one; entries with an index up to DropThrough are deleted.
//     DropThrough may be the highest index there is.
//  2. If Entries is not empty, entries on disk with an index at or above the first of them are deleted, then these are written.
//  3. If HardState is not nil it takes the place of the former one.
//
// If MustSync is false the write need not be flushed: only the commit index changed, and that can be learnt again.
type Persist struct {
	Snapshot    *StoredSnapshot
	DropThrough uint64
	Entries     []LogEntry
	HardState   []byte
	MustSync    bool
}

// Apply returns what is on disk after p, given what was on it before. It is the reference for shells, and what simulated disks use.
func (s Stored) Apply(p *Persist) Stored {
	if p.Snapshot != nil {
		s.Snapshot = p.Snapshot
	}
	var kept []LogEntry
	for _, e := range s.Entries {
		if e.Index <= p.DropThrough || len(p.Entries) > 0 && e.Index >= p.Entries[0].Index {
			continue
		}
		kept = append(kept, e)
	}
	s.Entries = append(kept, p.Entries...)
	if p.HardState != nil {
		s.HardState = p.HardState
	}
	return s
}

// InitialServer is one of the servers with which a cluster starts for the first time. Every one of them must be given the same list.
type InitialServer struct {
	ID    ident.ServerID   `json:"id"`
	Name  ident.ServerName `json:"name"`
	Cell  ident.CellName   `json:"cell"`
	Role  Role             `json:"role"`
	Addrs Addrs            `json:"addrs"`
}

// Timing are the spans that agreement works with, in microseconds.
type Timing struct {
	Heartbeat   ident.Micros // the leader's heartbeat
	ElectionMin ident.Micros // an election starts when no leader was heard for between min and max; a leader heard within
	ElectionMax ident.Micros // min protects itself from candidates
	LeaseRenew  ident.Micros // between two requests for a lease
	LeaseLength ident.Micros // for which a lease holds, counted from the sending of its request
	LeaseMargin ident.Micros // for which the leader waits beyond, against clocks of different speed
	Retry       ident.Micros // between two sendings of a proposal
	ProofWait   ident.Micros // for which a first proof waits for those of the other servers of a cell
}

// DefaultTiming is meant for local networks. LeaseMargin is a tenth of LeaseLength, so clocks may differ in speed by a tenth.
func DefaultTiming() Timing {
	return Timing{
		Heartbeat:   50 * ident.Millisecond,
		ElectionMin: 400 * ident.Millisecond,
		ElectionMax: 800 * ident.Millisecond,
		LeaseRenew:  100 * ident.Millisecond,
		LeaseLength: 1500 * ident.Millisecond,
		LeaseMargin: 150 * ident.Millisecond,
		Retry:       200 * ident.Millisecond,
		ProofWait:   20 * ident.Millisecond,
	}
}
