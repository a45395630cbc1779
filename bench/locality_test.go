package bench

import (
	"slices"
	"testing"
)

func TestPoliciesAreComparedWithTheBestFixedOne(t *testing.T) {
	r := LocalityReport{Phases: []string{"x", "y"}, Policies: []LocalityFigure{
		{Policy: "fetch", PhaseMillis: []float64{10, 40}, MixMillis: 50},
		{Policy: "move", PhaseMillis: []float64{20, 20}, MixMillis: 40},
		{Policy: "auto", PhaseMillis: []float64{15, 15}, MixMillis: 30},
	}}
	r.compare()
	if r.BestFixed != "move" || r.AutoOverBest != 0.75 || r.WorstOverBest != 1.5 || r.Policies[0].MixOverBest != 1.25 ||
		!slices.Equal(r.Policies[2].OverBest, []float64{1.5, 0.75}) || !slices.Equal(r.Policies[0].OverBest, []float64{1, 2}) {
		t.Errorf("%+v", r)
	}
}
