package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Batch is what one turn of the Raft loop must make durable before it sends its messages. Nil and empty fields change nothing.
type Batch struct {
	HardState *raftpb.HardState
	Snapshot  *raftpb.Snapshot // replaces an older one; entries that it covers go, unless CompactTo keeps some
	Entries   []*raftpb.Entry  // consecutive; entries stored at or after the first one's index are replaced
	CompactTo uint64           // entries with a lower or equal index are removed; must not exceed the snapshot's index
	Sync      bool             // false allows a batch of nothing but a newer commit index to wait for the next one
}

// State is everything that Load found.
type State struct {
	HardState *raftpb.HardState // nil in a new directory
	Snapshot  *raftpb.Snapshot  // nil if there is none
	Entries   []*raftpb.Entry   // consecutive, in order
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Save makes b durable in one transaction. After an error the Store is poisoned and the server must stop: it can no longer keep the
// promises that its messages make.
func (s *Store) Save(b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saveLocked(b)
}

// saveLocked requires mu.
func (s *Store) saveLocked(b Batch) error {
	if s.poison != nil {
		return fmt.Errorf("%w: %w", ErrPoisoned, s.poison)
	}
	if b.HardState == nil {
		b.HardState = s.held
	}
	if !b.Sync && len(b.Entries) == 0 && b.Snapshot == nil && b.CompactTo == 0 && s.onlyCommitMoved(b.HardState) {
		// A commit index that is lost is learned again from the leader, so it need not cost two fsyncs. Writing it without an fsync
		// would be worse: bbolt's order of data before meta page then depends on luck.
		s.held = b.HardState
		return nil
	}
	err := guard(s.db.Path(), func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			if s.beforeWrite != nil {
				if err := s.beforeWrite(); err != nil {
					return err
				}
			}
			return writeBatch(tx, b)
		})
	})
	if err != nil {
		s.poison = fmt.Errorf("write %s: %w", s.db.Path(), err)
		return fmt.Errorf("%w; the server must stop: free space or replace the disk, then start it again", s.poison)
	}
	if b.HardState != nil {
		s.written, s.held = b.HardState, nil
	}
	return nil
}

// onlyCommitMoved requires mu.
func (s *Store) onlyCommitMoved(hs *raftpb.HardState) bool {
	return hs == nil || s.written != nil && hs.GetTerm() == s.written.GetTerm() && hs.GetVote() == s.written.GetVote()
}

func writeBatch(tx *bbolt.Tx, b Batch) error {
	meta, entries := tx.Bucket(bucketMeta), tx.Bucket(bucketEntries)
	was, err := readSummary(meta)
	if err != nil {
		return err
	}
	if b.HardState == nil {
		b.HardState = was.hardState
	}
	if b.Snapshot != nil {
		was.snapshot = b.Snapshot.GetMetadata().GetIndex()
		if err := writeSnapshot(meta, entries, b.Snapshot); err != nil {
			return err
		}
	}
	if err := writeEntries(entries, b.Entries); err != nil {
		return err
	}
	if b.CompactTo > 0 {
		if err := deleteRange(entries, 0, b.CompactTo); err != nil {
			return err
		}
	}
	return writeSummary(meta, entries, b.HardState, was.snapshot)
}

// summary is the one record that every write renews: the hard state, and what else must be there, so that a damaged table that merely
// looks shorter is noticed.
type summary struct {
	hardState             *raftpb.HardState
	snapshot              uint64 // index of the snapshot, 0 for none
	firstIndex, lastIndex uint64 // of the entries, 0 and 0 for none
}

func writeSummary(meta, entries *bbolt.Bucket, hs *raftpb.HardState, snapshot uint64) error {
	record := binary.BigEndian.AppendUint64(nil, snapshot)
	c := entries.Cursor()
	for _, end := range []func() ([]byte, []byte){c.First, c.Last} {
		if k, _ := end(); k != nil {
			record = append(record, k...)
		} else {
			record = append(record, indexKey(0)...)
		}
	}
	state, err := proto.Marshal(hs)
	if err != nil {
		return fmt.Errorf("encode hard state: %w", err)
	}
	return putRecord(meta, keySummary, append(record, state...))
}

func readSummary(meta *bbolt.Bucket) (summary, error) {
	record, err := getRecord(meta, keySummary)
	if err != nil {
		return summary{}, err
	}
	if len(record) < 24 {
		return summary{}, fmt.Errorf("summary has %d bytes", len(record))
	}
	sum := summary{
		snapshot:   binary.BigEndian.Uint64(record),
		firstIndex: binary.BigEndian.Uint64(record[8:]),
		lastIndex:  binary.BigEndian.Uint64(record[16:]),
		hardState:  &raftpb.HardState{},
	}
	if err := proto.Unmarshal(record[24:], sum.hardState); err != nil {
		return summary{}, fmt.Errorf("decode hard state: %w", err)
	}
	return sum, nil
}

// writeSnapshot stores the snapshot. A log that does not reach it is replaced by it as a whole; one that does keeps its tail.
func writeSnapshot(meta, entries *bbolt.Bucket, snap *raftpb.Snapshot) error {
	if err := putMessage(meta, keySnapshot, snap); err != nil {
		return err
	}
	index, term := snap.GetMetadata().GetIndex(), snap.GetMetadata().GetTerm()
	var at raftpb.Entry
	value := entries.Get(indexKey(index))
	if value != nil {
		if err := openMessage(indexKey(index), value, &at); err != nil {
			return err
		}
	}
	if value == nil || at.GetTerm() != term {
		return deleteRange(entries, 0, math.MaxUint64)
	}
	return nil
}

func writeEntries(bucket *bbolt.Bucket, entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := deleteRange(bucket, entries[0].GetIndex(), math.MaxUint64); err != nil {
		return err
	}
	for i, e := range entries {
		if e.GetIndex() != entries[0].GetIndex()+uint64(i) {
			return fmt.Errorf("entry %d follows entry %d", e.GetIndex(), entries[0].GetIndex()+uint64(i)-1)
		}
		if err := putMessage(bucket, indexKey(e.GetIndex()), e); err != nil {
			return err
		}
	}
	return nil
}

// deleteRange removes the entries from lo to hi, both included.
func deleteRange(bucket *bbolt.Bucket, lo, hi uint64) error {
	c := bucket.Cursor()
	for k, _ := c.Seek(indexKey(lo)); k != nil && binary.BigEndian.Uint64(k) <= hi; k, _ = c.Seek(indexKey(lo)) {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// Load reads the whole state and checks it. It is called once, before the first Save.
func (s *Store) Load() (State, error) {
	var st State
	err := guard(s.db.Path(), func() error {
		return s.db.View(func(tx *bbolt.Tx) error { return readState(tx, &st) })
	})
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			err = corrupt(s.db.Path(), err)
		}
		return State{}, err
	}
	s.mu.Lock()
	s.written = st.HardState
	s.mu.Unlock()
	return st, nil
}

func readState(tx *bbolt.Tx, st *State) error {
	meta := tx.Bucket(bucketMeta)
	sum, err := readSummary(meta)
	if err != nil {
		return err
	}
	if !raft.IsEmptyHardState(sum.hardState) {
		st.HardState = sum.hardState
	}
	if sum.snapshot != 0 {
		st.Snapshot = &raftpb.Snapshot{}
		if err := openMessage(keySnapshot, meta.Get(keySnapshot), st.Snapshot); err != nil {
			return err
		}
	}
	err = tx.Bucket(bucketEntries).ForEach(func(k, v []byte) error {
		e := &raftpb.Entry{}
		if err := openMessage(k, v, e); err != nil {
			return err
		}
		if len(k) != 8 || binary.BigEndian.Uint64(k) != e.GetIndex() {
			return fmt.Errorf("entry %d is stored under key %x", e.GetIndex(), k)
		}
		st.Entries = append(st.Entries, e)
		return nil
	})
	if err != nil {
		return err
	}
	var first, last uint64
	if n := len(st.Entries); n > 0 {
		first, last = st.Entries[0].GetIndex(), st.Entries[n-1].GetIndex()
	}
	if i := st.Snapshot.GetMetadata().GetIndex(); first != sum.firstIndex || last != sum.lastIndex || i != sum.snapshot {
		return fmt.Errorf("snapshot %d and entries %d to %d are stored, snapshot %d and entries %d to %d were written",
			i, first, last, sum.snapshot, sum.firstIndex, sum.lastIndex)
	}
	return st.check()
}

// check asserts that the log has no gap, that terms rise, and that nothing committed is missing.
func (st *State) check() error {
	last, term := st.Snapshot.GetMetadata().GetIndex(), uint64(0)
	if len(st.Entries) > 0 {
		if first := st.Entries[0].GetIndex(); first > last+1 || first == 0 {
			return fmt.Errorf("log begins at entry %d, the snapshot ends at %d", first, last)
		}
		next := st.Entries[0].GetIndex()
		for _, e := range st.Entries {
			if e.GetIndex() != next || e.GetTerm() < term {
				return fmt.Errorf("entry %d (term %d) is where entry %d (term %d or later) must be", e.GetIndex(), e.GetTerm(), next, term)
			}
			next, term = next+1, e.GetTerm()
		}
		last = max(last, next-1)
	}
	if c := st.HardState.GetCommit(); c > last {
		return fmt.Errorf("entry %d was committed, the log ends at %d", c, last)
	}
	return nil
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// A record is its CRC-32C, over key and content, before its content: bbolt has checksums for its meta pages only.

func putRecord(b *bbolt.Bucket, key, content []byte) error {
	v := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(content)), recordSum(key, content))
	return b.Put(key, append(v, content...))
}

func putMessage(b *bbolt.Bucket, key []byte, m proto.Message) error {
	content, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	return putRecord(b, key, content)
}

func recordSum(key, content []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, content)
}

// openRecord checks a record and returns its content, which is valid only as long as the transaction.
func openRecord(key, value []byte) ([]byte, error) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != recordSum(key, value[4:]) {
		return nil, fmt.Errorf("checksum of record %q does not match", key)
	}
	return value[4:], nil
}

func openMessage(key, value []byte, m proto.Message) error {
	content, err := openRecord(key, value)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(content, m); err != nil {
		return fmt.Errorf("decode record %q: %w", key, err)
	}
	return nil
}

func getRecord(b *bbolt.Bucket, key []byte) ([]byte, error) {
	v := b.Get(key)
	if v == nil {
		return nil, fmt.Errorf("record %q is missing", key)
	}
	return openRecord(key, v)
}
