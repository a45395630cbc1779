package kvm

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.ENOENT, "no /dev/kvm: load the module"},
		{unix.EACCES, "no permission to open /dev/kvm: run as root"},
		{unix.EPERM, "no permission to open /dev/kvm"},
		{unix.ENODEV, "no KVM module is behind it"},
		{fs.ErrClosed, "open /dev/kvm: file already closed"},
	} {
		err := openError(c.err)
		if !errors.Is(err, ErrNotAvailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %q, want it to say %q", c.err, err, c.want)
		}
	}
}

func TestExitStrings(t *testing.T) {
	for want, e := range map[string]Exit{
		"port I/O: write of 4 bytes, port 0x1234, value 0x7":                       {Reason: IO, Write: true, Size: 4, Count: 1, Port: 0x1234, Data: 7},
		"memory access outside RAM: read of 8 bytes at guest-physical 0x100000000": {Reason: MMIO, Size: 8, Addr: 1 << 32},
		"shutdown (triple fault)":                                                  {Reason: Shutdown},
		"KVM internal error, suberror 1, data 0x2":                                 {Reason: InternalError, Code: 1, Detail: 2},
		"failed entry, hardware reason 0x80000021":                                 {Reason: FailEntry, Detail: 0x80000021},
		"unknown exit 99": {Reason: Unknown, Code: 99},
		"interrupted":     {},
	} {
		if got := e.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if e.Fatal() != (e.Reason >= Shutdown) {
			t.Errorf("%s: Fatal is %t", e, e.Fatal())
		}
	}
}

func FuzzUnmarshalState(f *testing.F) {
	var s VCPUState
	s.Xsave = make([]byte, 16)
	data, err := s.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{1, 0, 6, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var s VCPUState
		if err := s.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatalf("error %v is not ErrState", err)
			}
			return
		}
		if _, err := s.MarshalBinary(); err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
	})
}
