package locality

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// read is a fault of vCPU 0 that fetched a page from part 1.
func read(page ident.PageNo) *mem.Traffic {
	return &mem.Traffic{Kind: mem.CameRead, Peer: 1, By: By(0), Page: page, Waited: 100}
}

func TestFixedPoliciesFetchAlwaysTheSame(t *testing.T) {
	for policy, want := range map[Policy]uint16{Fetch: 0, Move: 0, Replicate: RegionPages} {
		o := NewObserver(policy, 1)
		for page := range ident.PageNo(RegionPages) {
			if got := o.Around(page); got != want {
				t.Fatalf("%v: %d pages around page %d, want %d", policy, got, page, want)
			}
			o.Note(read(page))
		}
	}
}

// Auto reads around a fault where there were others nearby, everywhere once that was of use, and nowhere once it was not.
func TestAutoReadsAroundWhatIsUsed(t *testing.T) {
	o := NewObserver(Auto, 1)
	var got []uint16
	for page := range ident.PageNo(4) {
		got = append(got, o.Around(page))
		o.Note(read(page))
	}
	if got[0] != 0 || got[1] != blockSmall || got[3] != RegionPages {
		t.Errorf("around the first faults of a region: %v", got)
	}
	for i := range ident.PageNo(trustAfter) {
		o.Note(&mem.Traffic{Kind: mem.Used, Page: 1000 + i})
	}
	if n := o.Around(50_000); n != RegionPages {
		t.Errorf("%d pages around the first fault of a region, after blocks have been of use", n)
	}
	for i := range ident.PageNo(3 * trustAfter) {
		o.Note(&mem.Traffic{Kind: mem.Unused, Page: 1000 + i})
	}
	if n := o.Around(50_000); n != 0 {
		t.Errorf("%d pages around the first fault of a region, after blocks have been of no use", n)
	}
	for page := range ident.PageNo(4) {
		o.Note(read(page))
		o.Note(&mem.Traffic{Kind: mem.Unused, Page: page})
	}
	if n := o.Around(3); n != 0 {
		t.Errorf("%d pages in a region in which that was of no use", n)
	}
}

func TestTopTellsWhoWaitsWhereForWhom(t *testing.T) {
	o := NewObserver(Fetch, 4)
	for i := range 10 {
		o.Note(&mem.Traffic{Kind: mem.CameWrite, Peer: 2, By: By(3), Page: 64, Waited: 200})
		if i%4 == 0 {
			o.Note(&mem.Traffic{Kind: mem.CameRead, Peer: 1, By: By(0), Page: 65, Waited: 200})
			o.Note(read(1024))
		}
	}
	top := o.Top(1)
	if len(top) != 1 || top[0].Page != 64 || top[0].By != By(3) || top[0].Peer != 2 || top[0].Faults != 13 {
		t.Fatalf("%+v", top)
	}
	for range 10 {
		o.Age()
	}
	if top := o.Top(8); len(top) != 0 {
		t.Errorf("still hot long after: %+v", top)
	}
}

// Whatever a guest touches, counting takes no memory that grows.
func TestNotingAllocatesNothing(t *testing.T) {
	o := NewObserver(Auto, 2)
	page := ident.PageNo(0)
	o.Note(read(page))
	if n := testing.AllocsPerRun(10_000, func() {
		page += 7919
		_ = o.Around(page)
		o.Note(read(page))
	}); n != 0 {
		t.Errorf("%v allocations a fault", n)
	}
}

func TestReportsAreReadAsTheyWereWritten(t *testing.T) {
	o := NewObserver(Auto, 8)
	if b := o.AppendReport(nil, []ident.VCPU{1}); len(b) != 0 {
		t.Errorf("a report of %d bytes although nobody waited", len(b))
	}
	o.Note(&mem.Traffic{Kind: mem.Upgraded, Peer: 5, By: By(7), Waited: 80})
	o.Note(&mem.Traffic{Kind: mem.CameRead, Peer: 5, By: By(7), Waited: 30})
	o.Note(&mem.Traffic{Kind: mem.CameRead, Peer: 5, By: By(9), Waited: 30}) // no such vCPU
	b := o.AppendReport(nil, []ident.VCPU{1, 7})
	r, err := ParseReport(3, b)
	want := Waits{VCPU: 7, Peer: 5, Faults: 2, Waited: 110 + 2*faultExtra}
	if err != nil || r.From != 3 || len(r.Residents) != 2 || r.Residents[1] != 7 || len(r.Waits) != 1 || r.Waits[0] != want {
		t.Errorf("%+v, %v", r, err)
	}
	if b := o.AppendReport(nil, nil); len(b) != 0 {
		t.Error("the same is reported twice")
	}
	for n := range b {
		if _, err := ParseReport(3, b[:n]); err == nil && n != 7 { // without entries it is whole
			t.Errorf("the first %d of %d bytes pass for a report", n, len(b))
		}
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte{reportVersion, 1, 0, 3, 0, 3, 0, 1, 2, 0, 9, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		if r, err := ParseReport(1, b); err == nil {
			c := NewChooser(Auto, 4, "")
			c.Take(1, &r)
			c.Tick(2)
		}
	})
}
