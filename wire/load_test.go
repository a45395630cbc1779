package wire

import (
	"reflect"
	"testing"
)

func TestLoadRoundTrip(t *testing.T) {
	m := &LoadReport{Number: 1 << 50, Servers: []ServerLoad{{Server: 3, Idle: []PartIdle{{4, 2}, {900, 1}}}, {Server: 7}}}
	whole := AppendLoadReport(nil, m)
	if got, err := DecodeLoadReport(whole); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, %v", got, err)
	}
	for n := range whole {
		if _, err := DecodeLoadReport(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken for a report", n, len(whole))
		}
	}
	if _, err := DecodeLoadReport(append(whole, 0)); err == nil {
		t.Error("a trailing byte is taken")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(AppendLoadReport(nil, &LoadReport{Number: 1, Servers: []ServerLoad{{Server: 3, Idle: []PartIdle{{4, 2}}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeLoadReport(b)
		if err != nil {
			return
		}
		if again, err := DecodeLoadReport(AppendLoadReport(nil, m)); err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v becomes %+v, %v", m, again, err)
		}
	})
}
