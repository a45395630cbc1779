package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	if _, err := Open(dir, testIdentity); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Identity{ClusterID: "c-2", Server: 7}); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("other cluster: %v", err)
	}
	if _, err := Open(dir, Identity{ClusterID: "c-1", Server: 8}); !errors.Is(err, ErrOtherServer) {
		t.Errorf("other server: %v", err)
	}
	if found, err := Exists(dir); err != nil || !found {
		t.Errorf("exists: %v %v", found, err)
	}
	if found, err := Exists(t.TempDir()); err != nil || found {
		t.Errorf("exists in nothing: %v %v", found, err)
	}
	if _, err := Open(t.TempDir(), Identity{}); err == nil {
		t.Error("a new directory without an identity was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, testIdentity); err == nil {
		t.Error("a file was taken for a directory")
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := openT(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, raftFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return putRecord(tx.Bucket(bucketMeta), keyIdentity, append(binary.BigEndian.AppendUint64(nil, 99), make([]byte, 20)...))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, testIdentity); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "format 99") {
		t.Errorf("got %v", err)
	}
}

func TestBlobs(t *testing.T) {
	dir := t.TempDir()
	b := openT(t, dir).Blobs()
	content := bytes.Repeat([]byte("payload "), 1000)
	name, err := b.Put(bytes.NewReader(content), MaxBlobBytes)
	if err != nil {
		t.Fatal(err)
	}
	if !b.Has(name) {
		t.Error("stored payload is not there")
	}
	f, err := b.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	_ = f.Close()
	if again, err := b.Put(bytes.NewReader(content), MaxBlobBytes); err != nil || again != name {
		t.Errorf("second time: %s %v", again, err)
	}
	if _, err := b.Put(bytes.NewReader(content), 100); !errors.Is(err, ErrBlobTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if names, err := b.List(); err != nil || len(names) != 1 || names[0] != name {
		t.Errorf("list: %v %v", names, err)
	}
	if err := errors.Join(b.Remove(name), b.Remove(name)); err != nil || b.Has(name) {
		t.Errorf("remove: %v", err)
	}
	if _, err := b.Open(name); !errors.Is(err, ErrBlobMissing) {
		t.Errorf("open of nothing: %v", err)
	}
}

func TestBlobWithOtherContents(t *testing.T) {
	b := openT(t, t.TempDir()).Blobs()
	w, err := b.Create(100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "not that"); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0", 64)
	if _, err := w.Commit(want); !errors.Is(err, ErrBlobMismatch) {
		t.Errorf("got %v", err)
	}
	w.Abort()
	if left, err := os.ReadDir(b.dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestBlobNames(t *testing.T) {
	b := openT(t, t.TempDir()).Blobs()
	for _, name := range []string{"", "..", "../../etc/passwd", strings.Repeat("A", 64), strings.Repeat("g", 64), strings.Repeat("a", 63)} {
		if _, err := b.Open(name); !errors.Is(err, ErrBlobName) {
			t.Errorf("%q: %v", name, err)
		}
		if b.Has(name) {
			t.Errorf("%q is there", name)
		}
	}
}

func TestHalfWrittenBlobsGo(t *testing.T) {
	dir := t.TempDir()
	s := openT(t, dir)
	w, err := s.Blobs().Create(100)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.f.Close() // the process dies here
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openT(t, dir)
	if left, err := os.ReadDir(s.Blobs().dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
