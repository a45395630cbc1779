package wire

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func TestGangRoundTrip(t *testing.T) {
	slice := &GangSlice{Number: 1 << 50, Sent: -3, Start: 77, Run: []ident.VMID{4, 900}}
	report := &GangReport{Number: 9, EchoSent: -3, Received: 5, Sent: 6, Busy: []GangBusy{{VM: 4, VCPUs: 2}}, Started: []GangStart{{VM: 4, Number: 8, First: 1, Last: 2}}}
	if got, _, err := DecodeGang(AppendGangSlice(nil, slice)); err != nil || !reflect.DeepEqual(got, slice) {
		t.Errorf("slice: got %+v, %v", got, err)
	}
	if _, got, err := DecodeGang(AppendGangReport(nil, report)); err != nil || !reflect.DeepEqual(got, report) {
		t.Errorf("report: got %+v, %v", got, err)
	}
	order := SliceOrder{Number: 3, Mode: SliceHold, At: 8, Until: 9, CPUs: []uint16{1, 0}}
	if got, err := DecodeSliceOrder(AppendSliceOrder(nil, &order)); err != nil || !reflect.DeepEqual(got, order) {
		t.Errorf("order: got %+v, %v", got, err)
	}
	note := SliceNote{VM: 7, Busy: 3, Number: 4, First: 1, Last: 2}
	if got, err := DecodeSliceNote(AppendSliceNote(nil, &note)); err != nil || got != note {
		t.Errorf("note: got %+v, %v", got, err)
	}
}

// A message of which a byte is missing or too much is refused.
func TestGangRefusesPieces(t *testing.T) {
	whole := AppendGangReport(nil, &GangReport{Number: 900, Busy: []GangBusy{{1, 2}, {3, 4}}, Started: []GangStart{{VM: 1, Number: 2}}})
	for n := range whole {
		if _, _, err := DecodeGang(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken for a message", n, len(whole))
		}
	}
	if _, _, err := DecodeGang(append(whole, 0)); err == nil {
		t.Error("a trailing byte is taken")
	}
	if _, err := DecodeSliceOrder([]byte{GangVersion, byte(sliceModeEnd), 0, 0, 0, 0}); err == nil {
		t.Error("an unknown mode is taken")
	}
}

func FuzzGang(f *testing.F) {
	f.Add(AppendGangSlice(nil, &GangSlice{Number: 1, Run: []ident.VMID{1, 2}}))
	f.Add(AppendGangReport(nil, &GangReport{Number: 1, Busy: []GangBusy{{1, 2}}, Started: []GangStart{{1, 2, 3, 4}}}))
	f.Add(AppendSliceOrder(nil, &SliceOrder{Mode: SliceRun, CPUs: []uint16{1}}))
	f.Add(AppendSliceNote(nil, &SliceNote{VM: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		slice, report, err := DecodeGang(b)
		if err == nil && slice != nil {
			again, _, err := DecodeGang(AppendGangSlice(nil, slice))
			if err != nil || !reflect.DeepEqual(again, slice) {
				t.Fatalf("%+v becomes %+v, %v", slice, again, err)
			}
		}
		if err == nil && report != nil {
			_, again, err := DecodeGang(AppendGangReport(nil, report))
			if err != nil || !reflect.DeepEqual(again, report) {
				t.Fatalf("%+v becomes %+v, %v", report, again, err)
			}
		}
		if o, err := DecodeSliceOrder(b); err == nil {
			again := AppendSliceOrder(nil, &o)
			if o2, err := DecodeSliceOrder(again); err != nil || !bytes.Equal(AppendSliceOrder(nil, &o2), again) {
				t.Fatalf("%+v becomes %+v, %v", o, o2, err)
			}
		}
		if n, err := DecodeSliceNote(b); err == nil {
			if n2, err := DecodeSliceNote(AppendSliceNote(nil, &n)); err != nil || n2 != n {
				t.Fatalf("%+v becomes %+v, %v", n, n2, err)
			}
		}
	})
}
