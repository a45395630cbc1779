package worker

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/wire"
)

// TestPatience reads the option; what is no sensible number counts as none.
func TestPatience(t *testing.T) {
	for value, want := range map[string]int{"": 1, "1": 1, "16": 16, "64": 64, "65": 1, "0": 1, "-3": 1, "long": 1} {
		if got := patienceOf(wire.WorkerSpec{Options: map[string]string{optionPatience: value}}); got != want {
			t.Errorf("%q: %d, want %d", value, got, want)
		}
	}
	if c := withPatience(mem.Config{}, 1); c != (mem.Config{}) {
		t.Errorf("the usual patience changes the page protocol: %+v", c)
	}
	if c := withPatience(mem.Config{}, 4); c.Retry != 4*mem.DefaultRetry || c.RetryMax != 4*mem.DefaultRetryMax || c.Deadline != 4*mem.DefaultDeadline {
		t.Errorf("four times the patience: %+v", c)
	}
}

// TestHintsAreBounded: each peer is suspected at most once in a while.
func TestHintsAreBounded(t *testing.T) {
	var h hints
	for _, step := range []struct {
		part ident.Part
		at   ident.Micros
		want bool
	}{{1, 0, true}, {1, hintEvery - 1, false}, {2, hintEvery - 1, true}, {1, hintEvery, true}, {1, hintEvery + 1, false}} {
		if got := h.due(step.part, step.at); got != step.want {
			t.Errorf("part %d at %d: %v", step.part, step.at, got)
		}
	}
}
