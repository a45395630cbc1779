package recovery

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

func TestPace(t *testing.T) {
	for _, c := range []struct {
		pause ident.Micros
		pages uint64
		want  ident.Micros
	}{
		{0, 0, CutEveryMin},
		{500, 100, CutEveryMin},        // 1 ms a cut: 20 ms is less than a tenth
		{1000, 400, 30_000},            // 3 ms a cut
		{2000, 1600, 100_000},          // 10 ms
		{50_000, 100_000, CutEveryMax}, // more than a tenth whatever is done
	} {
		var p Pace
		for range 30 {
			p.Cut(c.pause, c.pages)
		}
		if got := p.Every(); got != c.want {
			t.Errorf("cuts of %d us with %d pages: every %d us, want %d", c.pause, c.pages, got, c.want)
		}
	}
}

// One slow cut does not slow down all: the pace comes back.
func TestPaceComesBack(t *testing.T) {
	var p Pace
	p.Cut(1500, 0)
	p.Cut(40_000, 0)
	if p.Every() <= CutEveryMin {
		t.Error("a slow cut was not noticed")
	}
	for range 20 {
		p.Cut(500, 0)
	}
	if got := p.Every(); got != CutEveryMin {
		t.Errorf("still every %d us", got)
	}
}

// Whatever cuts cost, the time between them stays within its bounds, and cuts of steady cost take at most a tenth where the bounds allow.
func TestPaceStaysWithinBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p Pace
		for range rapid.IntRange(0, 20).Draw(t, "before") {
			p.Cut(ident.Micros(rapid.Int64Range(0, 1<<40).Draw(t, "p")), rapid.Uint64().Draw(t, "n"))
			if e := p.Every(); e < CutEveryMin || e > CutEveryMax {
				t.Fatalf("every %d us", e)
			}
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		pause, pages := ident.Micros(rapid.Int64Range(0, 100_000).Draw(t, "p")), rapid.Uint64Range(0, 100_000).Draw(t, "n")
		var p Pace
		for range 100 {
			p.Cut(pause, pages)
		}
		cost := pause + ident.Micros(pages)*pageCost
		if e := p.Every(); e < CutEveryMax && cost*shareInverse > e+shareInverse*paceWeight {
			t.Fatalf("cuts that cost %d us are made every %d us", cost, e)
		}
	})
}

func TestOneSlowCutDoesNotMakeOutputWait(t *testing.T) {
	var p Pace
	for range 20 {
		p.Cut(ident.Millisecond, 0)
	}
	usual := p.Every()
	p.Cut(100*ident.Millisecond, 0)
	if got := p.Every(); got > 2*usual {
		t.Errorf("after one cut of 100 ms the next comes after %v us, usually after %v", got, usual)
	}
	for range 6 {
		p.Cut(100*ident.Millisecond, 0)
	}
	if got := p.Every(); got != CutEveryMax {
		t.Errorf("after seven such cuts the next comes after %v us, want %v", got, CutEveryMax)
	}
}
