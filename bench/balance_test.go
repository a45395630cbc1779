package bench

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The sums that are kept make the same score as the definition, and every step lowers it within the limits.
func TestDescend(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := drawGaneti(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(2, 6).Draw(rt, "nodes"), rapid.IntRange(1, 30).Draw(rt, "instances"))
		before := c.Score()
		after := Descend(c)
		if after.Score() > before+least {
			rt.Fatalf("the score goes from %f to %f", before, after.Score())
		}
		if again := newSpread(after.clone()).score(); math.Abs(again-after.Score()) > 1e-6 {
			rt.Fatalf("%f and %f", again, after.Score())
		}
		for i, n := range after.Nodes {
			if n.FreeMiB < 0 || after.vcpusOn(i) > maxRatio*n.CPUs {
				rt.Fatalf("%+v has %d vCPUs", n, after.vcpusOn(i))
			}
		}
	})
}

func TestGanetiRoundTrip(t *testing.T) {
	c := drawGaneti(1, 3, 5)
	again, err := ParseGaneti(c.String())
	if err != nil || again.String() != c.String() || again.Score() != c.Score() {
		t.Fatalf("%v\n%s\n%s", err, c, again)
	}
	for _, bad := range []string{"", "g\n\nn|1\n\n\n\n", "g\n\nn|1|1|1|1|1|0|N|g|1\n\n\n\n", "g\n\nn|1|1|1|1|1|1|N|g|1\n\ni|1|1|1|running|Y|other||ext||1\n\n\n", strings.Replace(c.String(), "|512|", "|-1|", 1)} {
		if _, err := ParseGaneti(bad); err == nil && bad != c.String() {
			t.Errorf("taken: %q", bad)
		}
	}
}

// The score that hbal 3.0.2 printed for a cluster of two nodes: 0.5 times twice the deviation of free memory, and so on.
func TestScoreByHand(t *testing.T) {
	c, err := ParseGaneti("g|u|preferred||\n\nn1|1000|0|500|1|1|4|N|u|1\nn2|1000|0|1000|1|1|4|N|u|1\n\ni|500|1|2|running|Y|n1||ext||1\n\n\n")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Score(), 0.25+0.25+4*0.5; math.Abs(got-want) > 1e-9 {
		t.Errorf("score %f, want %f", got, want)
	}
}

// The moves that are not looked at are none that would be better: the best move of all is as good as the best of those that are looked at.
func TestNothingOutdoesTheBestMove(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := drawGaneti(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(2, 6).Draw(rt, "nodes"), rapid.IntRange(1, 30).Draw(rt, "instances"))
		for i := range c.Nodes {
			if n := &c.Nodes[i]; rapid.IntRange(0, 3).Draw(rt, "larger") == 0 {
				n.MemoryMiB, n.FreeMiB, n.CPUs = 2*n.MemoryMiB, n.FreeMiB+n.MemoryMiB, 2*n.CPUs
			}
		}
		s := newSpread(c)
		for range 40 {
			now := s.score()
			best := now - least
			for i := range c.Instances {
				for n := range c.Nodes {
					x := &c.Instances[i]
					if from := x.Node; x.movable() && s.fits(x, n) {
						s.move(i, n)
						best = min(best, s.score())
						s.move(i, from)
					}
				}
			}
			i, to, v := s.bestMove(now - least)
			if math.Abs(v-best) > 1e-7 {
				rt.Fatalf("the best move leads to %.12f, that which was found to %.12f", best, v)
			}
			if i < 0 {
				return
			}
			s.move(i, to)
		}
	})
}
