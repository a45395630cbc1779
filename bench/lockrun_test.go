package bench

import "testing"

// Two guests that share the machine half of the time, and have it for themselves before and after, do not do more together than one alone.
func TestThroughputCountsTheTimeThatAllRan(t *testing.T) {
	// Alone 100 increments a millisecond, together 50 each. The second guest begins 1000 ms after the first.
	one := curve{{100_000, 1000}, {150_000, 2000}, {200_000, 3000}}.shifted(0)
	two := curve{{50_000, 1000}, {100_000, 2000}, {200_000, 3000}}.shifted(1000)
	if got := throughput([]curve{one, two}); got != 100_000 {
		t.Errorf("together %v increments a second, want 100000", got)
	}
	if got := throughput([]curve{one}); got < 66_666 || got > 66_667 {
		t.Errorf("one alone %v", got)
	}
	if got := throughput([]curve{one, curve{{10, 100}}.shifted(5000)}); got != 0 {
		t.Errorf("of guests that never ran together: %v", got)
	}
}

func TestAGuestsClockIsFoundByWhenItsLinesAreSeen(t *testing.T) {
	f := &lockFollower{}
	for _, s := range []string{"lock: 2 vCPUs\nlock: 10 of ", "100, 5 ms\nlock: 20 of 100, ", "7 ms\n"} {
		if _, err := f.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if !f.known || len(f.line) != 0 {
		t.Errorf("known %v, left %q", f.known, f.line)
	}
}
