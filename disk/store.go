package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// Sentinels that callers branch on; the errors that wrap them say what to do.
var (
	ErrInUse        = errors.New("data directory is in use")
	ErrOtherCluster = errors.New("data directory belongs to another cluster")
	ErrOtherServer  = errors.New("data directory belongs to another server")
	ErrFormat       = errors.New("data directory has an unknown format")
	ErrCorrupt      = errors.New("stored state is damaged")
	ErrPoisoned     = errors.New("storage failed earlier")
)

// formatVersion is the layout of raft.db that this package writes. A newer one is refused, never guessed at.
const formatVersion = 1

const (
	lockFile = "lock"
	raftFile = "raft.db"
	blobsDir = "blobs"
)

var (
	bucketMeta    = []byte("meta")
	bucketEntries = []byte("entries")
	keyIdentity   = []byte("identity")
	keySnapshot   = []byte("snapshot")
	keySummary    = []byte("summary")
)

// Identity says whose a data directory is. The zero value of a field means "as stored": it is an error in a new directory.
type Identity struct {
	ClusterID string
	Server    ident.ServerID
}

// Store is an open data directory. Its methods may be called from any goroutine.
type Store struct {
	dir   string
	id    Identity
	fresh bool
	lock  *os.File
	db    *bbolt.DB
	blobs *Blobs

	beforeWrite func() error // protected by mu; failures are injected here; nil otherwise

	mu     sync.Mutex
	poison error  // protected by mu; the first failed write
	held   []byte // protected by mu; a hard state with a newer commit index that is not written yet
}

// Exists tells whether dir holds a server's state. It takes no lock and changes nothing.
func Exists(dir string) (bool, error) {
	path := filepath.Join(dir, raftFile)
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return true, nil
}

// Open locks dir, creating it if need be, and opens the state of the server that want names. A new directory is given to want for
// ever. The caller closes the Store.
func Open(dir string, want Identity) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, lock: lock}
	if err := s.openDB(want); err != nil {
		_ = lock.Close()
		return nil, err
	}
	if s.blobs, err = openBlobs(filepath.Join(dir, blobsDir)); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// Identity returns whose directory this is.
func (s *Store) Identity() Identity { return s.id }

// Fresh tells whether Open created the state: the server has never been part of a cluster.
func (s *Store) Fresh() bool { return s.fresh }

// Dir returns the data directory.
func (s *Store) Dir() string { return s.dir }

// Blobs returns the payload store in the same directory.
func (s *Store) Blobs() *Blobs { return s.blobs }

// Fail lets every write from now on fail with err, as a disk's would, or, with nil, lets them succeed again. For drills; a Store that has failed once
// stays so.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beforeWrite = nil
	if err != nil {
		s.beforeWrite = func() error { return err }
	}
}

// Close writes a commit index that was held back, and gives the directory free.
func (s *Store) Close() error {
	s.mu.Lock()
	var errs []error
	if s.poison == nil && s.held != nil {
		errs = append(errs, s.saveLocked(&cells.Persist{HardState: s.held, MustSync: true}))
	}
	if s.poison == nil {
		s.poison = errors.New("storage is closed")
	}
	s.mu.Unlock()
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	errs = append(errs, s.lock.Close())
	return errors.Join(errs...)
}

// takeLock takes the directory's flock. The file descriptor is close-on-exec, so that a worker, which outlives its serve, does not
// keep the lock.
func takeLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is used by process %s; stop that server first, or give this one a directory of its own",
				ErrInUse, dir, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for people only: the flock is what counts
	}
	return f, nil
}

func boltOptions() *bbolt.Options {
	return &bbolt.Options{
		Timeout:      time.Second, // our own lock is held: a wait can only be for somebody who looks at the file with another tool
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		// NoFreelistSync would save one page a commit, but then bbolt walks the file at open in a goroutine of its own, whose panic on
		// a damaged page nobody can catch. For the same reason Load does not use its Check.
	}
}

func (s *Store) openDB(want Identity) error {
	path := filepath.Join(s.dir, raftFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		s.fresh = true
		if err := createDB(s.dir, want); err != nil {
			return fmt.Errorf("create %s: %w", path, err)
		}
	}
	return guard(path, func() error {
		db, err := bbolt.Open(path, 0o600, boltOptions())
		if err != nil {
			return openError(path, err)
		}
		err = db.View(func(tx *bbolt.Tx) error {
			s.id, err = readIdentity(tx, s.dir)
			return err
		})
		if err == nil {
			err = s.id.check(want, s.dir)
		}
		if err != nil {
			_ = db.Close()
			return err
		}
		s.db = db
		return nil
	})
}

// check compares the stored identity with the one that the configuration names.
func (id Identity) check(want Identity, dir string) error {
	if want.ClusterID != "" && want.ClusterID != id.ClusterID {
		return fmt.Errorf("%w: %s belongs to cluster %s, this server is configured for cluster %s; use an empty directory",
			ErrOtherCluster, dir, id.ClusterID, want.ClusterID)
	}
	if want.Server != 0 && want.Server != id.Server {
		return fmt.Errorf("%w: %s belongs to server %d, this is server %d; use a directory of its own for each server",
			ErrOtherServer, dir, id.Server, want.Server)
	}
	return nil
}

// createDB writes the first state under a temporary name, so that a raft.db that exists is complete: one that lacks something is
// damaged, not new.
func createDB(dir string, id Identity) error {
	if id.ClusterID == "" || id.Server == 0 {
		return fmt.Errorf("a new data directory needs a cluster and a server number")
	}
	temp := filepath.Join(dir, raftFile+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(temp, 0o600, boltOptions())
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(bucketEntries); err != nil {
			return err
		}
		record := binary.BigEndian.AppendUint64(nil, formatVersion)
		record = binary.BigEndian.AppendUint64(record, uint64(id.Server))
		return errors.Join(putRecord(meta, keyIdentity, append(record, id.ClusterID...)), writeSummary(meta, summary{}))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, raftFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

func readIdentity(tx *bbolt.Tx, dir string) (Identity, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil || tx.Bucket(bucketEntries) == nil {
		return Identity{}, corrupt(dir, errors.New("a table is missing"))
	}
	record, err := getRecord(meta, keyIdentity)
	if err == nil && len(record) < 16 {
		err = fmt.Errorf("identity has %d bytes", len(record))
	}
	if err != nil {
		return Identity{}, corrupt(dir, err)
	}
	if format := binary.BigEndian.Uint64(record); format != formatVersion {
		return Identity{}, fmt.Errorf("%w: %s was written in format %d, this program knows format %d; use the program that wrote it",
			ErrFormat, dir, format, formatVersion)
	}
	return Identity{Server: ident.ServerID(binary.BigEndian.Uint64(record[8:])), ClusterID: string(record[16:])}, nil
}

// guard turns what bbolt does on a damaged file, a panic or a fault on its memory map, into ErrCorrupt.
func guard(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = corrupt(path, fmt.Errorf("%v", r))
		}
	}()
	return f()
}

func openError(path string, err error) error {
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &pathErr), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EIO):
		return fmt.Errorf("open %s: %w", path, err)
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s is locked by another process", ErrInUse, path)
	}
	return corrupt(path, err)
}

// corrupt says what happened and the only safe way out: a server that lost its log may not come back under its old number, nor with a former log.
func corrupt(path string, cause error) error {
	return fmt.Errorf("%w: %s: %v; nothing was changed: move its directory away and start the server again: it joins the others as a new server",
		ErrCorrupt, path, cause)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
