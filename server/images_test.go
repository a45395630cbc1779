package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// blobOf writes a blob and returns its name and path.
func blobOf(t *testing.T, contents []byte) (sha, path string) {
	t.Helper()
	sum := sha256.Sum256(contents)
	sha = hex.EncodeToString(sum[:])
	path = filepath.Join(t.TempDir(), sha)
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	return sha, path
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestImagesAreHeldOnce: all who take an image at the same time get the same one, which is there until the last has given it up, whatever becomes of the blob.
func TestImagesAreHeldOnce(t *testing.T) {
	contents := bytes.Repeat([]byte("page"), 1<<18)
	sha, path := blobOf(t, contents)
	var m images
	var all sync.WaitGroup
	files, gives := make([]*os.File, 8), make([]func(), 8)
	for i := range files {
		all.Go(func() {
			var err error
			if files[i], gives[i], err = m.take(sha, path, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if inode(t, f) != inode(t, files[0]) {
			t.Error("there are two images")
		}
		if i > 0 {
			gives[i]()
			gives[i]() // once too often
		}
	}
	im, err := ram.OpenImage(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(im.Bytes(), contents) {
		t.Error("the image is not what the blob was")
	}
	im.Close()
	gives[0]()
	if len(m.held) != 0 {
		t.Error("an image that nobody has is held")
	}
	if _, _, err := m.take(sha, path, nil); !errors.Is(err, os.ErrNotExist) || len(m.held) != 0 {
		t.Errorf("an image was made of a blob that is not there: %v", err)
	}
}

// TestDamagedBlobIsNoImage: a byte more, less or another one is found.
func TestDamagedBlobIsNoImage(t *testing.T) {
	contents := bytes.Repeat([]byte("page"), 1<<16)
	for name, damage := range map[string]func([]byte) []byte{
		"other":  func(b []byte) []byte { b[77]++; return b },
		"less":   func(b []byte) []byte { return b[:len(b)-1] },
		"more":   func(b []byte) []byte { return append(b, 0) },
		"absent": func([]byte) []byte { return nil },
	} {
		sha, path := blobOf(t, contents)
		if err := os.WriteFile(path, damage(bytes.Clone(contents)), 0o600); err != nil {
			t.Fatal(err)
		}
		var m images
		if _, _, err := m.take(sha, path, nil); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestImagesOfEarlierServes: an image that a process has open is found again, but nothing that only looks like it.
func TestImagesOfEarlierServes(t *testing.T) {
	contents := bytes.Repeat([]byte("page"), 1<<16)
	sha, path := blobOf(t, contents)
	self := []int{1 << 30, os.Getpid()}
	open, err := unix.MemfdCreate(imageName+sha, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING) // has the contents, but no seals
	if err != nil {
		t.Fatal(err)
	}
	unsealed := os.NewFile(uintptr(open), "unsealed")
	defer unsealed.Close()
	if _, err := unsealed.Write(contents); err != nil {
		t.Fatal(err)
	}
	foreign, err := ram.SealImage(imageName+sha, bytes.NewReader(make([]byte, len(contents))), ident.Bytes(len(contents)))
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if f := findImage(sha, self); f != nil {
		t.Fatalf("found inode %d", inode(t, f))
	}
	var before, after images
	was, give, err := before.take(sha, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer give()
	again, giveAgain, err := after.take(sha, "/nowhere", self)
	if err != nil {
		t.Fatal(err)
	}
	defer giveAgain()
	if inode(t, was) != inode(t, again) {
		t.Error("another image was found")
	}
}
