package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func savedVM(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewSaveWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteJSON(SaveAbout, SaveAboutVM{Name: "web", Spec: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := w.Write(SaveRecord{Type: SavePages, Key: uint64(i), Data: bytes.Repeat([]byte{byte(i)}, 100*i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Size() != uint64(b.Len()) {
		t.Fatalf("%d bytes, said %d", b.Len(), w.Size())
	}
	return b.Bytes()
}

func readSaved(b []byte) (records int, err error) {
	r, err := NewSaveReader(bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	for {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return records, nil
		} else if err != nil {
			return records, err
		}
		records++
	}
}

func TestSavedVMComesBack(t *testing.T) {
	if n, err := readSaved(savedVM(t)); n != 6 || err != nil {
		t.Fatal(n, err)
	}
}

// Whatever is cut off, changed or moved is found, and said.
func TestSavedVMIsChecked(t *testing.T) {
	good := savedVM(t)
	for n := range len(good) {
		if _, err := readSaved(good[:n]); !errors.Is(err, ErrSavedShort) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		bad := bytes.Clone(good)
		bad[n] ^= 0x10
		if _, err := readSaved(bad); err == nil {
			t.Fatalf("byte %d changed: not noticed", n)
		}
	}
	if _, err := readSaved([]byte("#!/bin/sh\necho something else entirely\n")); !errors.Is(err, ErrNotSaved) {
		t.Fatal(err)
	}
	later := bytes.Clone(good)
	later[8] = 9
	if _, err := readSaved(later); !errors.Is(err, ErrSavedVersion) {
		t.Fatal(err)
	}
}

func FuzzSaveReader(f *testing.F) {
	good := savedVM(f)
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readSaved(b); err == nil && !bytes.HasPrefix(b, []byte(saveMagic)) {
			t.Fatal("taken for a saved VM")
		}
	})
}
