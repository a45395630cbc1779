package wire

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestDeviceRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := DeviceMsg{
			ID:      rapid.Uint64Min(1).Draw(t, "id"),
			Kind:    DeviceKind(rapid.IntRange(1, int(deviceKindEnd)-1).Draw(t, "kind")),
			Payload: rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "payload"),
		}
		if rapid.Bool().Draw(t, "reply") {
			m.Reply = true
			m.Status = DeviceStatus(rapid.IntRange(0, int(deviceStatusEnd)-1).Draw(t, "status"))
		} else {
			m.OneWay = rapid.Bool().Draw(t, "oneWay")
		}
		got, err := ParseDevice(AppendDevice(nil, m))
		if err != nil || !bytes.Equal(got.Payload, m.Payload) {
			t.Fatalf("got %+v, %v; want %+v", got, err, m)
		}
		got.Payload, m.Payload = nil, nil
		if got.ID != m.ID || got.Kind != m.Kind || got.Reply != m.Reply || got.OneWay != m.OneWay || got.Status != m.Status {
			t.Fatalf("got %+v, want %+v", got, m)
		}
	})
}

func TestDeviceRefuses(t *testing.T) {
	for name, body := range map[string][]byte{
		"short":            make([]byte, DeviceHeaderBytes-1),
		"long":             AppendDevice(make([]byte, 0), DeviceMsg{ID: 1, Kind: DeviceConsole, Payload: make([]byte, DeviceBodyLimit)})[: DeviceHeaderBytes+DeviceBodyLimit : DeviceHeaderBytes+DeviceBodyLimit],
		"id zero":          AppendDevice(nil, DeviceMsg{Kind: DeviceConsole}),
		"kind zero":        AppendDevice(nil, DeviceMsg{ID: 1}),
		"unknown kind":     AppendDevice(nil, DeviceMsg{ID: 1, Kind: deviceKindEnd}),
		"one-way reply":    AppendDevice(nil, DeviceMsg{ID: 1, Kind: DeviceConsole, Reply: true, OneWay: true}),
		"unknown status":   AppendDevice(nil, DeviceMsg{ID: 1, Kind: DeviceConsole, Reply: true, Status: deviceStatusEnd}),
		"request's status": AppendDevice(nil, DeviceMsg{ID: 1, Kind: DeviceConsole, Status: DeviceBad}),
	} {
		if name == "long" {
			if _, err := ParseDevice(body); err != nil {
				t.Errorf("the longest: %v", err)
			}
			body = append(body, 0)
		}
		if _, err := ParseDevice(body); !errors.Is(err, ErrBadFrame) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzDevice(f *testing.F) {
	f.Add(AppendDevice(nil, DeviceMsg{ID: 1, Kind: DeviceConsole, Payload: []byte("x")}))
	f.Add(AppendDevice(nil, DeviceMsg{ID: 1, Kind: DeviceClock, Reply: true, Status: DeviceNotHome}))
	f.Fuzz(fuzzDevice)
}

func fuzzDevice(t *testing.T, body []byte) {
	m, err := ParseDevice(body)
	if err != nil {
		return
	}
	if again := AppendDevice(nil, m); !bytes.Equal(again, body) {
		t.Fatalf("decoded %x, encoded %x", body, again)
	}
}
