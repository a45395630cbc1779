package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func TestJSONRoundTrip(t *testing.T) {
	var stream bytes.Buffer
	want := []ToWorker{
		{Lease: &WorkerLease{UntilBootMicros: 5}},
		{Members: &WorkerMembers{Epoch: 7, Home: 1, Members: []WorkerMember{{Part: 1, Server: 2, Name: "a-1", Addr: "127.0.0.1:1"}}}},
		{Stop: &WorkerStop{Reason: strings.Repeat("long ", 40_000)}},
	}
	for _, m := range want {
		if err := WriteJSON(&stream, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range want {
		var got ToWorker
		if err := ReadJSON(&stream, &got, JSONLimit); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	var got ToWorker
	if err := ReadJSON(&stream, &got, JSONLimit); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestJSONRefuses(t *testing.T) {
	var v map[string]int
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"cut prefix":   {"\x01\x00", io.ErrUnexpectedEOF},
		"cut body":     {"\x05\x00\x00\x00{}", io.ErrUnexpectedEOF},
		"giant":        {"\xff\xff\xff\xff", ErrTooLarge},
		"over limit":   {"\x65\x00\x00\x00" + strings.Repeat(" ", 101), ErrTooLarge},
		"not JSON":     {"\x02\x00\x00\x00}{", nil},
		"empty":        {"\x00\x00\x00\x00", nil},
		"another type": {"\x02\x00\x00\x0017", nil},
	} {
		err := ReadJSON(strings.NewReader(c.in), &v, 100)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := WriteJSON(io.Discard, strings.Repeat("x", JSONLimit)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("writing a giant: got %v", err)
	}
	if err := WriteJSON(io.Discard, func() {}); err == nil {
		t.Error("a function went out as JSON")
	}
}

func FuzzJSON(f *testing.F) {
	var seed bytes.Buffer
	_ = WriteJSON(&seed, FromWorker{Ready: &WorkerReady{VM: 1, Part: ident.Part(2), PID: 3, PageAddr: "x"}})
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		var to ToWorker
		_ = ReadJSON(bytes.NewReader(stream), &to, JSONLimit)
		var from FromWorker
		_ = ReadJSON(bytes.NewReader(stream), &from, JSONLimit)
		var spec WorkerSpec
		_ = ReadJSON(bytes.NewReader(stream), &spec, JSONLimit)
	})
}
