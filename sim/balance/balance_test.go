package balance

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestSeeds(t *testing.T)    { simtest.Seeds(t, "balance", 60) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "balance", 300) }

// What a server sends does not grow with the number of servers, and the depth grows as its logarithm.
func TestScale(t *testing.T) {
	small, err := Scale(1, 16, 4, 160)
	if err != nil {
		t.Fatal(err)
	}
	large, err := Scale(1, 128, 8, 1280)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v\n%+v", small, large)
	if large.MessagesPerServerSecond > 1 || large.MessagesPerServerSecond > 1.5*small.MessagesPerServerSecond {
		t.Errorf("messages by server and second grow from %.2f to %.2f", small.MessagesPerServerSecond, large.MessagesPerServerSecond)
	}
	if small.Depth > 4 || large.Depth > 7 {
		t.Errorf("depth %d of 16, %d of 128 servers", small.Depth, large.Depth)
	}
	for _, r := range []ScaleReport{small, large} {
		if r.MostPerSecond > float64(r.Depth) {
			t.Errorf("one of %d servers receives %.1f messages a second, the tree is %d deep", r.Servers, r.MostPerSecond, r.Depth)
		}
		if r.EvenSeconds > 120 || r.SeenSeconds > r.EvenSeconds || r.ScoreAfter > r.ScoreBefore/10 {
			t.Errorf("after a shock to %d servers the load is known after %.0f s, even after %.0f s, and the score goes from %.1f to %.1f",
				r.Servers, r.SeenSeconds, r.EvenSeconds, r.ScoreBefore, r.ScoreAfter)
		}
	}
}
