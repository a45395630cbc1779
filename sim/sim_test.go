package sim

import (
	"errors"
	"strings"
	"testing"
)

func TestRunSeeds(t *testing.T) {
	s := Scenario{Name: "odd", Run: func(seed uint64, canary string) error {
		switch {
		case seed == 5:
			panic("at five")
		case seed%2 == 1 && canary != "":
			return errors.New("odd")
		}
		return nil
	}}
	ran, failures := RunSeeds(s, 1, 9, "c", 0, nil)
	if ran != 9 || len(failures) != 5 || failures[0].Seed != 1 || failures[4].Seed != 9 {
		t.Fatalf("ran %d, failures %v", ran, failures)
	}
	if !strings.Contains(failures[2].Error(), "panic: at five") {
		t.Error(failures[2])
	}
	if want := "cellvisor sim --scenario odd --seeds 9..9 --canary c"; failures[4].Replay() != want {
		t.Errorf("%s, want %s", failures[4].Replay(), want)
	}
	if ran, failures = RunSeeds(s, 1, 1000, "c", 1, nil); len(failures) == 0 || ran > 20 {
		t.Errorf("ran %d after the first failure of %d", ran, len(failures))
	}
}
