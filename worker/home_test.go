package worker

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/machine"
)

func testHome(t *testing.T, vcpus int, onExit func(uint32)) (h *home, console, output string) {
	t.Helper()
	dir := t.TempDir()
	console, output = filepath.Join(dir, "console.log"), filepath.Join(dir, "output.log")
	h, err := newHome(&files{dir: dir}, vcpus, onExit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	return h, console, output
}

func contents(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHomeDoesARepeatedRequestOnce(t *testing.T) {
	h, console, output := testHome(t, 2, nil)
	for range 3 {
		for _, r := range []deviceRequest{{vcpu: 0, op: opConsole, seq: 1, value: 'x'}, {vcpu: 1, op: opRecord, seq: 1, value: 4294967295}} {
			if _, err := h.do(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := contents(t, console); got != "x" {
		t.Errorf("console %q, want one x", got)
	}
	if got := contents(t, output); got != "4294967295\n" {
		t.Errorf("output %q, want one record", got)
	}
}

func TestHomeRefusesNonsense(t *testing.T) {
	h, _, _ := testHome(t, 1, nil)
	if _, err := h.do(deviceRequest{vcpu: 0, op: opConsole, seq: 5, value: 'a'}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []deviceRequest{{vcpu: 1, op: opConsole, seq: 1}, {vcpu: 0, op: opConsole, seq: 4}, {vcpu: 0, op: 99, seq: 6}} {
		if _, err := h.do(r); !errors.Is(err, errBadRequest) {
			t.Errorf("%+v: error %v, want errBadRequest", r, err)
		}
	}
}

func TestHomeIsSilentAfterExit(t *testing.T) {
	var status uint32
	h, console, _ := testHome(t, 2, func(s uint32) { status = s })
	if _, err := h.do(deviceRequest{vcpu: 0, op: opExit, seq: 1, value: 7}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.do(deviceRequest{vcpu: 1, op: opConsole, seq: 1, value: 'z'}); !errors.Is(err, errEnded) {
		t.Errorf("console after exit: error %v, want errEnded", err)
	}
	if got := contents(t, console); got != "" || status != 7 {
		t.Errorf("console %q, status %d", got, status)
	}
}

func TestHomeClockNeverGoesBack(t *testing.T) {
	h, _, _ := testHome(t, 1, nil)
	h.setLoaded([][]byte{{}})
	h.lastMilli = 1 << 20 // as if asked a quarter of an hour from now
	if ms, err := h.do(deviceRequest{op: opClock, seq: 1}); err != nil || ms < 1<<20 {
		t.Errorf("clock %d, %v: went back", ms, err)
	}
}

func TestDeviceRequestRoundTrip(t *testing.T) {
	want := deviceRequest{vcpu: 513, op: opRecord, seq: 1 << 40, value: 0xdeadbeef}
	got, err := decodeDeviceRequest(want.encode(nil))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := decodeDeviceRequest(make([]byte, deviceRequestBytes-1)); err == nil {
		t.Error("a short request was taken")
	}
}

func TestStartRoundTrip(t *testing.T) {
	want := kvm.Start{RIP: 1, RSP: 2, RDI: 3, RSI: 4, RDX: 5, RCX: 6, CR3: 7}
	got, err := decodeStart(encodeStart(want))
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestDeviceRequestCodec(t *testing.T) {
	for _, r := range []deviceRequest{
		{vcpu: 3, op: opRecord, seq: 1 << 40, value: 77},
		{vcpu: 1, op: opAccess, seq: 2, access: machine.Access{Addr: 0xc0003000, Data: 1 << 33, Size: 8, Write: true}},
		{op: opAccess, access: machine.Access{Addr: 0xcfc, Size: 4, Port: true}},
	} {
		got, err := decodeDeviceRequest(r.encode(nil))
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v came back as %+v, %v", r, got, err)
		}
		if _, err := decodeDeviceRequest(append(r.encode(nil), 0)); err == nil {
			t.Errorf("%+v: a byte too many is no error", r)
		}
		if _, err := decodeDeviceRequest(r.encode(nil)[:deviceRequestBytes-1]); err == nil {
			t.Errorf("%+v: bytes too few are no error", r)
		}
	}
}

func FuzzDeviceRequest(f *testing.F) {
	f.Add(deviceRequest{vcpu: 3, op: opRecord, seq: 5, value: 77}.encode(nil))
	f.Add(deviceRequest{op: opAccess, access: machine.Access{Addr: 0xcfc, Size: 4, Port: true}}.encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeDeviceRequest(b); err == nil {
			if again, err := decodeDeviceRequest(r.encode(nil)); err != nil || !reflect.DeepEqual(again, r) {
				t.Fatalf("%+v came back as %+v, %v", r, again, err)
			}
		}
	})
}
