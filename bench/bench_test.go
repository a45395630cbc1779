package bench

import (
	"strings"
	"testing"
)

func TestDecodeSeries(t *testing.T) {
	got, err := decodeSeries([]uint32{seriesMark, seriesRead, 0, 0, 2, 7, 8, seriesMark, seriesShared, 1, 3, 1, 9, endMark})
	if err != nil || len(got) != 2 || got[1].sharers != 3 || got[1].measurer != 1 {
		t.Fatalf("got %+v, %v", got, err)
	}
	if all := pool(got, seriesRead); len(all) != 2 || all[0] != 7 || all[1] != 8 {
		t.Errorf("pooled %v", all)
	}
	for name, bad := range map[string][]uint32{
		"nothing":        {},
		"no end":         {seriesMark, seriesRead, 0, 0, 0},
		"garbage":        {1, 2, 3},
		"short header":   {seriesMark, seriesRead},
		"too many":       {seriesMark, seriesRead, 0, 0, 3, 1, endMark},
		"giant":          {seriesMark, seriesRead, 0, 0, 0xffffffff, 1, endMark},
		"more after end": {endMark, endMark},
	} {
		if got, err := decodeSeries(bad); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}
}

func TestSummarize(t *testing.T) {
	var ns []uint32
	for i := range 100 {
		ns = append(ns, uint32(100-i)*1000)
	}
	f := summarize(ns).over(25)
	if f.Samples != 100 || f.MedianUs != 50 || f.P99Us != 99 || f.MeanUs != 50.5 || f.Ratio != 2 || f.FloorUs != 25 {
		t.Errorf("got %+v", f)
	}
	if f := summarize(nil).over(0); f != (Figure{}) {
		t.Errorf("of nothing: %+v", f)
	}
}

func TestSettings(t *testing.T) {
	if err := (FaultSettings{Pages: 1000, Rounds: 3, VCPUs: 4}).Check(); err != nil {
		t.Error(err)
	}
	for _, bad := range []FaultSettings{{Pages: 1, Rounds: 1, VCPUs: 4}, {Pages: 1000, Rounds: 0, VCPUs: 4}, {Pages: 1000, Rounds: 1, VCPUs: 99}} {
		if err := bad.Check(); err == nil || !strings.Contains(err.Error(), "must be from") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func FuzzDecodeSeries(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, raw []byte) {
		records := []uint32{seriesMark}
		for i := 0; i+4 <= len(raw); i += 4 {
			records = append(records, uint32(raw[i])|uint32(raw[i+1])<<8|uint32(raw[i+2])<<16|uint32(raw[i+3])<<24)
		}
		found, err := decodeSeries(records)
		total := 0
		for _, s := range found {
			total += len(s.ns)
		}
		if err == nil && total > len(records) {
			t.Errorf("%d samples from %d records", total, len(records))
		}
	})
}

func TestBorrowCompares(t *testing.T) {
	rates := func(k float64) (r borrowRun) {
		for i := range borrowRates {
			r.rates = append(r.rates, k*float64(100+i))
		}
		r.borrowed, r.fetchUs = 28<<20, 90
		return r
	}
	rep := BorrowReport{Settings: BorrowSettings{MemoryMiB: 64}}
	if err := rep.compare([]borrowRun{rates(3), rates(1), rates(2)}, []borrowRun{rates(2), rates(1), rates(1)}); err != nil {
		t.Fatal(err)
	}
	if f := rep.Figures[5]; !f.Commits || f.ColdIn10000 != 10 || f.LocalPerSecond != 315 || f.BorrowPerSecond != 210 || rep.TimeRatio != 1.5 || rep.BorrowedPercent != 50 {
		t.Errorf("%+v", rep)
	}
	if err := rep.compare([]borrowRun{rates(1)}, []borrowRun{{rates: rates(1).rates}}); err == nil {
		t.Error("nothing was borrowed, and it says something")
	}
}
