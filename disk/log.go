package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"go.etcd.io/bbolt"

	"github.com/cellvisor/cellvisor/cells"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Save makes p durable in one transaction; see cells.Persist for what its fields mean. After an error the Store is poisoned and the
// server must stop: it can no longer keep the promises that its messages make.
func (s *Store) Save(p *cells.Persist) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saveLocked(p)
}

// saveLocked requires mu.
func (s *Store) saveLocked(p *cells.Persist) error {
	if s.poison != nil {
		return fmt.Errorf("%w: %w", ErrPoisoned, s.poison)
	}
	hardState := p.HardState
	if hardState == nil {
		hardState = s.held
	}
	if !p.MustSync && p.Snapshot == nil && p.DropThrough == 0 && len(p.Entries) == 0 {
		// A commit index that is lost is learned again from the leader, so it need not cost two fsyncs. Writing it without an fsync
		// would be worse: bbolt's order of data before meta page then depends on luck.
		s.held = hardState
		return nil
	}
	err := guard(s.db.Path(), func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			if s.beforeWrite != nil {
				if err := s.beforeWrite(); err != nil {
					return err
				}
			}
			return write(tx, p, hardState)
		})
	})
	if err != nil {
		s.poison = fmt.Errorf("write %s: %w", s.db.Path(), err)
		return fmt.Errorf("%w; the server must stop: free space or replace the disk, then start it again", s.poison)
	}
	s.held = nil
	return nil
}

func write(tx *bbolt.Tx, p *cells.Persist, hardState []byte) error {
	meta := tx.Bucket(bucketMeta)
	sum, err := readSummary(meta)
	if err != nil {
		return err
	}
	if p.Snapshot != nil {
		sum.snapshot = p.Snapshot.Index
		if err := putRecord(meta, keySnapshot, append(indexKey(p.Snapshot.Index), p.Snapshot.Bytes...)); err != nil {
			return err
		}
	}
	if err := dropThrough(tx, &sum, p.DropThrough); err != nil {
		return err
	}
	if err := writeEntries(tx, &sum, p.Entries); err != nil {
		return err
	}
	if hardState != nil {
		sum.hardState = hardState
	}
	return writeSummary(meta, sum)
}

// dropThrough removes the entries up to index.
func dropThrough(tx *bbolt.Tx, sum *summary, index uint64) error {
	if sum.lastIndex == 0 || index < sum.firstIndex {
		return nil
	}
	if index >= sum.lastIndex {
		sum.firstIndex, sum.lastIndex = 0, 0
		if err := tx.DeleteBucket(bucketEntries); err != nil {
			return err
		}
		_, err := tx.CreateBucket(bucketEntries)
		return err
	}
	if err := deleteRange(tx.Bucket(bucketEntries), sum.firstIndex, index); err != nil {
		return err
	}
	sum.firstIndex = index + 1
	return nil
}

// writeEntries writes entries in place of all that begin at the first one's index.
func writeEntries(tx *bbolt.Tx, sum *summary, entries []cells.LogEntry) error {
	if len(entries) == 0 {
		return nil
	}
	first := entries[0].Index
	bucket := tx.Bucket(bucketEntries)
	if sum.lastIndex != 0 {
		if first > sum.lastIndex+1 {
			return fmt.Errorf("entry %d would leave a gap after entry %d", first, sum.lastIndex)
		}
		if err := deleteRange(bucket, max(first, sum.firstIndex), sum.lastIndex); err != nil {
			return err
		}
	}
	for i, e := range entries {
		if e.Index != first+uint64(i) {
			return fmt.Errorf("entry %d follows entry %d", e.Index, first+uint64(i)-1)
		}
		if err := putRecord(bucket, indexKey(e.Index), e.Bytes); err != nil {
			return err
		}
	}
	if sum.lastIndex == 0 || first < sum.firstIndex {
		sum.firstIndex = first
	}
	sum.lastIndex = entries[len(entries)-1].Index
	return nil
}

// deleteRange removes the entries from lo to hi, both included. It goes by key: bbolt's Cursor.Last never returns when a transaction has
// emptied a table of several pages, so no cursor is used in one that writes.
func deleteRange(bucket *bbolt.Bucket, lo, hi uint64) error {
	for i := lo; i <= hi; i++ {
		if err := bucket.Delete(indexKey(i)); err != nil {
			return err
		}
	}
	return nil
}

// summary is the one record that every write renews: the hard state, and what else must be there, so that a damaged table that merely
// looks shorter is noticed.
//
//	0  snapshot    8 bytes  index of the snapshot, 0 for none
//	8  firstIndex  8 bytes  of the entries, 0 for none
//	16 lastIndex   8 bytes
//	24 the hard state; empty if none was written
type summary struct {
	snapshot              uint64
	firstIndex, lastIndex uint64
	hardState             []byte
}

func writeSummary(meta *bbolt.Bucket, sum summary) error {
	record := binary.BigEndian.AppendUint64(nil, sum.snapshot)
	record = binary.BigEndian.AppendUint64(record, sum.firstIndex)
	record = binary.BigEndian.AppendUint64(record, sum.lastIndex)
	return putRecord(meta, keySummary, append(record, sum.hardState...))
}

func readSummary(meta *bbolt.Bucket) (summary, error) {
	record, err := getRecord(meta, keySummary)
	if err != nil {
		return summary{}, err
	}
	if len(record) < 24 {
		return summary{}, fmt.Errorf("summary has %d bytes", len(record))
	}
	return summary{
		snapshot:   binary.BigEndian.Uint64(record),
		firstIndex: binary.BigEndian.Uint64(record[8:]),
		lastIndex:  binary.BigEndian.Uint64(record[16:]),
		hardState:  append([]byte(nil), record[24:]...),
	}, nil
}

// Load reads the whole state and checks it. It is called once, before the first Save.
func (s *Store) Load() (cells.Stored, error) {
	var st cells.Stored
	err := guard(s.db.Path(), func() error {
		return s.db.View(func(tx *bbolt.Tx) (err error) {
			st, err = readStored(tx)
			return err
		})
	})
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			err = corrupt(s.db.Path(), err)
		}
		return cells.Stored{}, err
	}
	return st, nil
}

func readStored(tx *bbolt.Tx) (cells.Stored, error) {
	var st cells.Stored
	meta := tx.Bucket(bucketMeta)
	sum, err := readSummary(meta)
	if err != nil {
		return st, err
	}
	st.HardState = sum.hardState
	if sum.snapshot != 0 {
		record, err := getRecord(meta, keySnapshot)
		if err != nil {
			return st, err
		}
		if len(record) < 8 {
			return st, fmt.Errorf("snapshot has %d bytes", len(record))
		}
		st.Snapshot = &cells.StoredSnapshot{Index: binary.BigEndian.Uint64(record), Bytes: append([]byte(nil), record[8:]...)}
	}
	err = tx.Bucket(bucketEntries).ForEach(func(k, v []byte) error {
		content, err := openRecord(k, v)
		if err != nil {
			return err
		}
		if len(k) != 8 {
			return fmt.Errorf("an entry is stored under key %x", k)
		}
		st.Entries = append(st.Entries, cells.LogEntry{Index: binary.BigEndian.Uint64(k), Bytes: append([]byte(nil), content...)})
		return nil
	})
	if err != nil {
		return st, err
	}
	return st, sum.check(&st)
}

// check asserts that what was found is what was written, without a gap.
func (sum *summary) check(st *cells.Stored) error {
	var first, last, snapshot uint64
	if n := len(st.Entries); n > 0 {
		first, last = st.Entries[0].Index, st.Entries[n-1].Index
	}
	if st.Snapshot != nil {
		snapshot = st.Snapshot.Index
	}
	if first != sum.firstIndex || last != sum.lastIndex || snapshot != sum.snapshot {
		return fmt.Errorf("snapshot %d and entries %d to %d are stored, snapshot %d and entries %d to %d were written",
			snapshot, first, last, sum.snapshot, sum.firstIndex, sum.lastIndex)
	}
	if first > snapshot+1 {
		return fmt.Errorf("log begins at entry %d, the snapshot ends at %d", first, snapshot)
	}
	for i := range st.Entries {
		if st.Entries[i].Index != first+uint64(i) {
			return fmt.Errorf("entry %d is where entry %d must be", st.Entries[i].Index, first+uint64(i))
		}
	}
	return nil
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// A record is its CRC-32C, over key and content, before its content: bbolt has checksums for its meta pages only.

func putRecord(b *bbolt.Bucket, key, content []byte) error {
	v := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(content)), recordSum(key, content))
	return b.Put(key, append(v, content...))
}

// getRecord returns a record's content, which is valid only as long as the transaction.
func getRecord(b *bbolt.Bucket, key []byte) ([]byte, error) {
	v := b.Get(key)
	if v == nil {
		return nil, fmt.Errorf("record %q is missing", key)
	}
	return openRecord(key, v)
}

func openRecord(key, value []byte) ([]byte, error) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != recordSum(key, value[4:]) {
		return nil, fmt.Errorf("checksum of record %q does not match", key)
	}
	return value[4:], nil
}

func recordSum(key, content []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, content)
}
