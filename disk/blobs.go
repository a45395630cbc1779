package disk

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// MaxBlobBytes bounds one payload: 256 MiB.
const MaxBlobBytes = 256 * ident.MiB

// Sentinels of the payload store.
var (
	ErrBlobTooLarge = errors.New("payload is too large")
	ErrBlobMissing  = errors.New("payload is not stored here")
	ErrBlobMismatch = errors.New("payload does not have the expected SHA-256")
	ErrBlobName     = errors.New("not a SHA-256 in hex")
)

const tempPrefix = "tmp-"

// Blobs is a store of files named by their SHA-256 in hex. A name that is there names complete, synced contents. Its methods may be
// called from any goroutine: renames make two writers of the same blob harmless.
type Blobs struct {
	dir string
}

// openBlobs opens the store and removes what an earlier process left half written.
func openBlobs(dir string) (*Blobs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create payload store: %w", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read payload store: %w", err)
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), tempPrefix) {
			if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
				return nil, fmt.Errorf("clean payload store: %w", err)
			}
		}
	}
	return &Blobs{dir: dir}, nil
}

// CheckBlobName refuses everything but 64 lower-case hex digits: the name becomes part of a path.
func CheckBlobName(sha string) error {
	if len(sha) != 2*sha256.Size || strings.ToLower(sha) != sha {
		return fmt.Errorf("%w: %q", ErrBlobName, sha)
	}
	if _, err := hex.DecodeString(sha); err != nil {
		return fmt.Errorf("%w: %q", ErrBlobName, sha)
	}
	return nil
}

// Path returns where the blob is, whether or not it is there.
func (b *Blobs) Path(sha string) (string, error) {
	if err := CheckBlobName(sha); err != nil {
		return "", err
	}
	return filepath.Join(b.dir, sha), nil
}

// Has tells whether the blob is stored here.
func (b *Blobs) Has(sha string) bool {
	path, err := b.Path(sha)
	if err != nil {
		return false
	}
	_, err = os.Stat(path)
	return err == nil
}

// Open opens a blob for reading. The caller closes it. The error wraps ErrBlobMissing when the blob is not here.
func (b *Blobs) Open(sha string) (*os.File, error) {
	path, err := b.Path(sha)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrBlobMissing, sha)
	}
	return f, err
}

// Remove deletes a blob; one that is not there is no error.
func (b *Blobs) Remove(sha string) error {
	path, err := b.Path(sha)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List returns the names of all complete blobs, sorted.
func (b *Blobs) List() ([]string, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("read payload store: %w", err)
	}
	var names []string
	for _, e := range entries {
		if CheckBlobName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Put copies r into the store and returns the name. limit bounds the size.
func (b *Blobs) Put(r io.Reader, limit ident.Bytes) (string, error) {
	w, err := b.Create(limit)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := io.Copy(w, r); err != nil {
		return "", err
	}
	return w.Commit("")
}

// Create begins a new blob of at most limit bytes (MaxBlobBytes if that is lower). The caller ends it with Commit, or with Abort, which
// after Commit does nothing.
func (b *Blobs) Create(limit ident.Bytes) (*BlobWriter, error) {
	return b.CreateLarge(min(limit, MaxBlobBytes))
}

// CreateLarge is Create without a limit of the store's own: for saved VMs.
func (b *Blobs) CreateLarge(limit ident.Bytes) (*BlobWriter, error) {
	f, err := os.CreateTemp(b.dir, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("store payload: %w", err)
	}
	return &BlobWriter{blobs: b, f: f, sum: sha256.New(), left: limit}, nil
}

// BlobWriter receives the bytes of one blob. It belongs to one goroutine.
type BlobWriter struct {
	blobs *Blobs
	f     *os.File
	sum   hash.Hash
	left  ident.Bytes
	size  ident.Bytes
	done  bool
}

// Write takes the next bytes. It returns ErrBlobTooLarge when the blob's limit is passed.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if ident.Bytes(len(p)) > w.left {
		return 0, fmt.Errorf("%w: at most %v", ErrBlobTooLarge, w.left+w.size)
	}
	n, err := w.f.Write(p)
	w.sum.Write(p[:n])
	w.left -= ident.Bytes(n)
	w.size += ident.Bytes(n)
	if err != nil {
		return n, fmt.Errorf("store payload: %w", err)
	}
	return n, nil
}

// Name returns the path of the file while it is being written.
func (w *BlobWriter) Name() string { return w.f.Name() }

// Size returns how many bytes were written.
func (w *BlobWriter) Size() ident.Bytes { return w.size }

// Commit makes the blob durable under its name and returns that. When want is not empty the contents must have that SHA-256.
func (w *BlobWriter) Commit(want string) (string, error) {
	name := hex.EncodeToString(w.sum.Sum(nil))
	if want != "" && want != name {
		return "", fmt.Errorf("%w: %s, the contents have %s", ErrBlobMismatch, want, name)
	}
	if err := errors.Join(w.f.Sync(), w.f.Chmod(0o400), w.f.Close()); err != nil {
		return "", fmt.Errorf("store payload: %w", err)
	}
	if err := os.Rename(w.f.Name(), filepath.Join(w.blobs.dir, name)); err != nil {
		return "", fmt.Errorf("store payload: %w", err)
	}
	w.done = true
	if err := syncDir(w.blobs.dir); err != nil {
		return "", fmt.Errorf("store payload: %w", err)
	}
	return name, nil
}

// Abort drops a blob that was not committed.
func (w *BlobWriter) Abort() {
	if !w.done {
		w.done = true
		_ = w.f.Close()
		_ = os.Remove(w.f.Name())
	}
}

// Sum is the SHA-256, in hex, of what was written so far.
func (w *BlobWriter) Sum() string { return hex.EncodeToString(w.sum.Sum(nil)) }
