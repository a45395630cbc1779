package bench

import (
	"math/rand/v2"
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

// The median of what samples were drawn from lies where it is said to lie in 95 of 100 cases, also where one sample in ten is far out.
func TestMedianLies(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{9, 10, 30, 101} {
		const trials = 4000
		hits := 0
		for range trials {
			all := make([]float64, n)
			for i := range all {
				if all[i] = rng.Float64(); rng.IntN(10) == 0 {
					all[i] += float64(rng.IntN(3)-1) * 100
				}
			}
			if low, high := medianLies(all); low <= 0.5 && 0.5 <= high {
				hits++
			}
		}
		if share := float64(hits) / trials; share < 0.93 {
			t.Errorf("of %d samples: right in %.3f of all cases", n, share)
		}
	}
	if low, high := medianLies([]float64{3, 1, 2}); low != 1 || high != 3 {
		t.Errorf("of three: %v to %v", low, high)
	}
}

// What slows the machine down for a while, to a third, changes no ratio: it meets both neighbours.
func TestBorrowRatioIsOfNeighbours(t *testing.T) {
	pairs := make([][]borrowPair, borrowRates)
	for i := range pairs {
		for n := range 30 {
			speed := 1000.0
			if n >= 12 {
				speed /= 3
			}
			pairs[i] = append(pairs[i], borrowPair{local: speed, borrowed: speed / 1.04})
		}
	}
	pairs[5][3].borrowed /= 9
	rep := BorrowReport{BorrowedPercent: 50}
	if err := rep.compare(pairs); err != nil {
		t.Fatal(err)
	}
	if rep.TimeRatio != 1.04 || rep.TimeRatioLow != 1.04 || rep.TimeRatioHigh != 1.04 || len(rep.Figures) != borrowRates {
		t.Errorf("%+v", rep)
	}
	if f := rep.Figures[5]; f.ColdIn10000 != borrowHeadline || !f.Commits || f.Pairs != 30 || f.LocalPerSecond != 1000.0/3 {
		t.Errorf("%+v", f)
	}
	rep.BorrowedPercent = borrowLeast - 1
	if err := rep.compare(pairs); err == nil {
		t.Error("hardly anything was borrowed, and it says nothing of it")
	}
}
