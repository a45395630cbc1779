package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"pgregory.net/rapid"
)

func drawHeader(t *rapid.T) FrameHeader {
	return FrameHeader{
		Type:  FrameType(rapid.IntRange(1, int(frameTypeEnd)-1).Draw(t, "type")),
		VM:    ident.VMID(rapid.Uint64().Draw(t, "vm")),
		Epoch: ident.Epoch(rapid.Uint64().Draw(t, "epoch")),
		From:  ident.Part(rapid.IntRange(0, ident.MaxParts-1).Draw(t, "from")),
	}
}

func TestFramesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHeader(t)
		body := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "body")
		stream := AppendFrame([]byte("before"), h, body)[len("before"):]
		// Any part of a frame is not yet a frame.
		cut := rapid.IntRange(0, len(stream)-1).Draw(t, "cut")
		if _, _, size, err := NextFrame(stream[:cut]); size != 0 || err != nil {
			t.Fatalf("%d of %d bytes: size %d, %v", cut, len(stream), size, err)
		}
		got, gotBody, size, err := NextFrame(append(stream, "behind"...))
		h.Length = uint32(len(body))
		if err != nil || size != len(stream) || got != h || !bytes.Equal(gotBody, body) {
			t.Fatalf("got %+v %q size %d, %v; want %+v %q size %d", got, gotBody, size, err, h, body, len(stream))
		}
	})
}

func TestFrameHeaderRefuses(t *testing.T) {
	good := AppendFrame(nil, FrameHeader{Type: FramePing, VM: 1, Epoch: 2, From: 3}, make([]byte, 8))
	for name, spoil := range map[string]func(b []byte){
		"magic":          func(b []byte) { b[0] = 'X' },
		"second magic":   func(b []byte) { b[1] = 'M' },
		"version":        func(b []byte) { b[2]++ },
		"type zero":      func(b []byte) { b[3] = 0 },
		"type unknown":   func(b []byte) { b[3] = byte(frameTypeEnd) },
		"giant length":   func(b []byte) { b[4], b[5], b[6], b[7] = 0xff, 0xff, 0xff, 0xff },
		"a byte too big": func(b []byte) { b[4], b[5], b[6], b[7] = 0xe1, 0xff, 0x0f, 0 },
		"part":           func(b []byte) { b[24] = ident.MaxParts },
		"padding":        func(b []byte) { b[31] = 1 },
	} {
		b := bytes.Clone(good)
		spoil(b)
		if _, _, _, err := NextFrame(b); !errors.Is(err, ErrBadFrame) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// page is one message with its body, as a test draws it.
type page struct {
	msg  PageMsg
	body []byte
}

func drawPages(t *rapid.T, from, to ident.Part, vm ident.VMID) []page {
	n := rapid.IntRange(1, 20).Draw(t, "messages")
	pages := make([]page, n)
	for i := range pages {
		m := PageMsg{Kind: KindGetShared, From: from, To: to, VM: vm, Page: ident.PageNo(rapid.Uint32().Draw(t, "page")), Serial: rapid.Uint64().Draw(t, "serial")}
		var body []byte
		if rapid.Bool().Draw(t, "contents") {
			m.Kind, m.Flags = KindData, FlagContents
			body = bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, ident.PageSize)
			m.BodyBytes = ident.PageSize
		}
		pages[i] = page{m, body}
	}
	return pages
}

func TestPagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := drawPages(t, 2, 5, 77)
		var w PagesWriter
		for range 2 { // the second time in the buffer of the first
			w.Reset()
			for _, p := range pages {
				w.Add(&p.msg, p.body)
			}
			if w.Items() != len(pages) {
				t.Fatalf("%d items of %d", w.Items(), len(pages))
			}
			h := FrameHeader{VM: 77, Epoch: 9, From: 2}
			if got := readPages(t, w.Finish(h), h, 5); len(got) != len(pages) {
				t.Fatalf("%d messages of %d", len(got), len(pages))
			} else {
				for i := range got {
					if got[i].msg != pages[i].msg || !bytes.Equal(got[i].body, pages[i].body) {
						t.Fatalf("message %d: got %v, want %v", i, got[i].msg, pages[i].msg)
					}
				}
			}
		}
	})
}

// readPages decodes a stream of Pages frames with the given header.
func readPages(t interface{ Fatalf(string, ...any) }, stream []byte, want FrameHeader, to ident.Part) (got []page) {
	for len(stream) > 0 {
		h, body, size, err := NextFrame(stream)
		if err != nil || size == 0 || size > FrameLimit {
			t.Fatalf("size %d, %v", size, err)
		}
		want.Type, want.Length = FramePages, h.Length
		if h != want {
			t.Fatalf("got header %+v, want %+v", h, want)
		}
		items, err := ParsePages(h, to, body)
		if err != nil {
			t.Fatalf("%v", err)
		}
		var p page
		var ok bool
		for p.body, ok = items.Next(&p.msg); ok; p.body, ok = items.Next(&p.msg) {
			got = append(got, p)
		}
		stream = stream[size:]
	}
	return got
}

func TestPagesWriterStartsNewFrames(t *testing.T) {
	const n = 3 * FrameLimit / PageMsgBytes
	var w PagesWriter
	contents := make([]byte, ident.PageSize)
	for i := range n {
		w.Add(&PageMsg{Kind: KindData, Flags: FlagContents, VM: 1, To: 1, Page: ident.PageNo(i)}, contents)
	}
	h := FrameHeader{VM: 1}
	got := readPages(t, w.Finish(h), h, 1)
	if len(got) != n {
		t.Fatalf("%d messages of %d", len(got), n)
	}
	for i, p := range got {
		if p.msg.Page != ident.PageNo(i) {
			t.Fatalf("message %d is of page %d", i, p.msg.Page)
		}
	}
}

func TestParsePagesRefuses(t *testing.T) {
	frame := func(m PageMsg, body []byte) []byte {
		var w PagesWriter
		w.Add(&m, body)
		return w.Finish(FrameHeader{VM: 1, From: 2})[FrameHeaderBytes:]
	}
	h := FrameHeader{Type: FramePages, VM: 1, From: 2}
	ask := PageMsg{Kind: KindGetShared, VM: 1, From: 2, To: 3}
	data := PageMsg{Kind: KindData, Flags: FlagContents, VM: 1, From: 2, To: 3}
	contents := make([]byte, ident.PageSize)
	if _, err := ParsePages(h, 3, append(frame(ask, nil), frame(data, contents)...)); err != nil {
		t.Fatal(err)
	}
	otherVM, otherFrom, otherTo := ask, ask, ask
	otherVM.VM, otherFrom.From, otherTo.To = 9, 9, 9
	for name, body := range map[string][]byte{
		"nothing":           nil,
		"a byte":            {1},
		"half a header":     frame(ask, nil)[:PageHeaderBytes/2],
		"half a page":       frame(data, contents)[:PageHeaderBytes+ident.PageSize/2],
		"a page and a byte": append(frame(data, contents), 0),
		"zeros":             make([]byte, 4*PageHeaderBytes),
		"another VM":        frame(otherVM, nil),
		"another sender":    frame(otherFrom, nil),
		"another receiver":  frame(otherTo, nil),
		"second message":    append(frame(ask, nil), frame(otherTo, nil)...),
	} {
		if items, err := ParsePages(h, 3, body); !errors.Is(err, ErrBadFrame) || items.Len() != 0 {
			t.Errorf("%s: got %v, %d items", name, err, items.Len())
		}
	}
}

// The hot path must not feed the garbage collector: its work would run on the CPUs that serve pages.
func TestPagesDoNotAllocate(t *testing.T) {
	var w PagesWriter
	contents := make([]byte, ident.PageSize)
	m := PageMsg{Kind: KindData, Flags: FlagContents, VM: 1, From: 2, To: 3}
	pass := func() {
		w.Reset()
		w.Add(&m, contents)
		h, body, _, err := NextFrame(w.Finish(FrameHeader{VM: 1, From: 2}))
		if err != nil {
			t.Fatal(err)
		}
		items, err := ParsePages(h, 3, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, ok := items.Next(&m); ok; _, ok = items.Next(&m) {
		}
	}
	pass()
	if n := testing.AllocsPerRun(100, pass); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func FuzzFrame(f *testing.F) {
	var w PagesWriter
	w.Add(&PageMsg{Kind: KindGetShared, VM: 1, From: 2, To: 3}, nil)
	w.Add(&PageMsg{Kind: KindData, Flags: FlagContents, VM: 1, From: 2, To: 3}, make([]byte, ident.PageSize))
	f.Add(bytes.Clone(w.Finish(FrameHeader{VM: 1, Epoch: 4, From: 2})))
	f.Add(AppendFrame(nil, FrameHeader{Type: FrameDevice}, AppendDevice(nil, DeviceMsg{ID: 1, Kind: DeviceClock})))
	f.Add(AppendFrame(nil, FrameHeader{Type: FrameHello}, AppendHello(nil, &Hello{Step: StepHello, From: Identity{Plane: PlanePages, Cluster: "c"}})))
	f.Fuzz(func(t *testing.T, stream []byte) {
		for {
			h, body, size, err := NextFrame(stream)
			if err != nil || size == 0 {
				return
			}
			if again := AppendFrame(nil, h, body); !bytes.Equal(again, stream[:size]) {
				t.Fatalf("decoded %x, encoded %x", stream[:size], again)
			}
			switch h.Type {
			case FramePages:
				fuzzPages(t, h, body)
			case FrameDevice:
				fuzzDevice(t, body)
			case FrameHello:
				fuzzHello(t, body)
			}
			stream = stream[size:]
		}
	})
}

func FuzzPages(f *testing.F) {
	var w PagesWriter
	w.Add(&PageMsg{Kind: KindGetShared, VM: 1, From: 2, To: 3}, nil)
	w.Add(&PageMsg{Kind: KindReport, VM: 1, From: 2, To: 3}, make([]byte, HoldingBytes))
	f.Add(bytes.Clone(w.Finish(FrameHeader{VM: 1, From: 2})[FrameHeaderBytes:]))
	f.Fuzz(func(t *testing.T, body []byte) { fuzzPages(t, FrameHeader{Type: FramePages, VM: 1, From: 2}, body) })
}

func fuzzPages(t *testing.T, h FrameHeader, body []byte) {
	items, err := ParsePages(h, 3, body)
	if err != nil {
		return
	}
	var w PagesWriter
	var m PageMsg
	for contents, ok := items.Next(&m); ok; contents, ok = items.Next(&m) {
		w.Add(&m, contents)
	}
	var again []byte
	for stream := w.Finish(h); len(stream) > 0; {
		_, b, size, _ := NextFrame(stream)
		again, stream = append(again, b...), stream[size:]
	}
	if !bytes.Equal(again, body) {
		t.Fatalf("decoded %d bytes, encoded %d", len(body), len(again))
	}
}
