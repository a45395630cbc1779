package wire

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// drawPageMsg draws a message that is valid.
func drawPageMsg(t *rapid.T) PageMsg {
	part := rapid.Custom(func(t *rapid.T) ident.Part { return ident.Part(rapid.Uint8Range(0, ident.MaxParts-1).Draw(t, "part")) })
	m := PageMsg{
		Kind:      PageKind(rapid.Uint8Range(1, uint8(kindEnd)-1).Draw(t, "kind")),
		From:      part.Draw(t, "from"),
		To:        part.Draw(t, "to"),
		Requester: part.Draw(t, "requester"),
		VM:        ident.VMID(rapid.Uint64().Draw(t, "vm")),
		Epoch:     ident.Epoch(rapid.Uint64().Draw(t, "epoch")),
		Page:      ident.PageNo(rapid.Uint64Range(0, uint64(MaxPageNo)).Draw(t, "page")),
		Serial:    rapid.Uint64().Draw(t, "serial"),
		Acks:      ident.PartSet(rapid.Uint64().Draw(t, "acks")),
		ReqID:     rapid.Uint64().Draw(t, "req"),
	}
	m.Flags = PageFlags(rapid.Uint16().Draw(t, "flags")) & pageFlagsOf[m.Kind]
	switch m.Kind {
	case KindData:
		m.Flags |= FlagContents
		m.BodyBytes = PageBodyBytes
	case KindReport:
		m.BodyBytes = HoldingBytes * rapid.Uint32Range(0, HoldingsMax).Draw(t, "holdings")
	}
	return m
}

func TestPageHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawPageMsg(t)
		var b [PageHeaderBytes]byte
		PutPageHeader(b[:], &m)
		var got PageMsg
		if err := PageHeader(b[:], &got); err != nil {
			t.Fatalf("%v: %v", m, err)
		}
		if got != m {
			t.Fatalf("sent %v\ngot  %v", m, got)
		}
	})
}

func TestHoldingRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Holding{
			Kind:   HoldingKind(rapid.Uint8Range(1, uint8(holdingEnd)-1).Draw(t, "kind")),
			Part:   ident.Part(rapid.Uint8Range(0, ident.MaxParts-1).Draw(t, "part")),
			Count:  rapid.Uint32Range(1, 1<<20).Draw(t, "count"),
			Page:   rapid.Uint64Range(0, uint64(MaxPageNo)-1<<20).Draw(t, "page"),
			Serial: rapid.Uint64().Draw(t, "serial"),
			Aux:    rapid.Uint64().Draw(t, "aux"),
		}
		var b [HoldingBytes]byte
		PutHolding(b[:], &h)
		var got Holding
		if err := GetHolding(b[:], &got); err != nil || got != h {
			t.Fatalf("sent %+v, got %+v, %v", h, got, err)
		}
	})
}

// TestPageHeaderRefuses lists headers that a broken or hostile peer may send.
func TestPageHeaderRefuses(t *testing.T) {
	valid := PageMsg{Kind: KindData, Flags: FlagContents, From: 1, To: 2, Requester: 2, Page: 7, BodyBytes: PageBodyBytes}
	for name, change := range map[string]func(m *PageMsg, b []byte){
		"kind 0":                func(m *PageMsg, _ []byte) { m.Kind = 0 },
		"kind too high":         func(m *PageMsg, _ []byte) { m.Kind = kindEnd },
		"unknown flag":          func(m *PageMsg, _ []byte) { m.Flags |= flagEnd },
		"flag of another kind":  func(m *PageMsg, _ []byte) { m.Flags |= FlagZero },
		"contents unflagged":    func(m *PageMsg, _ []byte) { m.Flags = 0 },
		"from out of range":     func(m *PageMsg, _ []byte) { m.From = ident.MaxParts },
		"to out of range":       func(m *PageMsg, _ []byte) { m.To = 255 },
		"requester":             func(m *PageMsg, _ []byte) { m.Requester = ident.MaxParts },
		"page out of range":     func(m *PageMsg, _ []byte) { m.Page = MaxPageNo + 1 },
		"giant body":            func(m *PageMsg, _ []byte) { m.BodyBytes = 1 << 31 },
		"short contents":        func(m *PageMsg, _ []byte) { m.BodyBytes = 4095 },
		"body on an ack":        func(m *PageMsg, _ []byte) { m.Kind, m.Flags, m.BodyBytes = KindAck, 0, 32 },
		"broken report":         func(m *PageMsg, _ []byte) { m.Kind, m.Flags, m.BodyBytes = KindReport, 0, 33 },
		"version":               func(_ *PageMsg, b []byte) { b[0] = 2 },
		"reserved byte":         func(_ *PageMsg, b []byte) { b[7] = 1 },
		"reserved tail":         func(_ *PageMsg, b []byte) { b[63] = 1 },
		"all ones":              func(_ *PageMsg, b []byte) { fill(b, 0xff) },
		"zeros":                 func(_ *PageMsg, b []byte) { fill(b, 0) },
		"text of another proto": func(_ *PageMsg, b []byte) { copy(b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
	} {
		m := valid
		var b [PageHeaderBytes]byte
		change(&m, b[:])
		if b == [PageHeaderBytes]byte{} || name == "zeros" {
			PutPageHeader(b[:], &m)
			change(&m, b[:])
		} else { // the change was to the bytes
			PutPageHeader(b[:], &valid)
			change(&m, b[:])
		}
		var got PageMsg
		if err := PageHeader(b[:], &got); err == nil {
			t.Errorf("%s: taken for %v", name, got)
		}
	}
	var b [PageHeaderBytes]byte
	PutPageHeader(b[:], &valid)
	var got PageMsg
	if err := PageHeader(b[:63], &got); err != ErrPageShort {
		t.Errorf("63 bytes: %v", err)
	}
	if err := PageHeader(b[:], &got); err != nil {
		t.Errorf("valid one: %v", err)
	}
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

func TestPageCodecDoesNotAllocate(t *testing.T) {
	m := PageMsg{Kind: KindGetShared, From: 1, To: 2, Requester: 1}
	var b [PageHeaderBytes]byte
	var got PageMsg
	if n := testing.AllocsPerRun(1000, func() {
		PutPageHeader(b[:], &m)
		if err := PageHeader(b[:], &got); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzPageHeader: what is accepted is valid and encodes to the same bytes.
func FuzzPageHeader(f *testing.F) {
	var b [PageHeaderBytes]byte
	for k := PageKind(1); k < kindEnd; k++ {
		m := PageMsg{Kind: k, From: 3, To: 63, Requester: 3, VM: 9, Epoch: 4, Page: 1 << 20, Serial: 4<<SerialCountBits | 7, Acks: 5, ReqID: 11}
		if k == KindData {
			m.Flags, m.BodyBytes = FlagContents, PageBodyBytes
		}
		PutPageHeader(b[:], &m)
		f.Add(append([]byte(nil), b[:]...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var m PageMsg
		if PageHeader(in, &m) != nil {
			return
		}
		if m.BodyBytes > PageBodyBytes || m.From >= ident.MaxParts || m.Page > MaxPageNo {
			t.Fatalf("accepted %v", m)
		}
		var out [PageHeaderBytes]byte
		PutPageHeader(out[:], &m)
		if string(out[:]) != string(in[:PageHeaderBytes]) {
			t.Fatalf("%x decodes to %v, which encodes to %x", in, m, out)
		}
		_ = m.String()
	})
}

// FuzzHolding: as FuzzPageHeader, for a record of a report.
func FuzzHolding(f *testing.F) {
	var b [HoldingBytes]byte
	PutHolding(b[:], &Holding{Kind: HoldingRetained, Part: 2, Count: 512, Page: 1024, Serial: 77})
	f.Add(append([]byte(nil), b[:]...))
	f.Fuzz(func(t *testing.T, in []byte) {
		var h Holding
		if GetHolding(in, &h) != nil {
			return
		}
		var out [HoldingBytes]byte
		PutHolding(out[:], &h)
		if string(out[:]) != string(in[:HoldingBytes]) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", in, h, out)
		}
	})
}
