package health

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

const second = ident.Second

// told steps a core with one rule through values, one a second, and returns the seconds of its findings.
func told(rule Rule, values ...int64) (at []int, evidence string) {
	c := New([]Rule{rule})
	for i, v := range values {
		for _, f := range c.Step(ident.Micros(i)*second, []Sample{{rule.Measure, v}}) {
			at, evidence = append(at, i), f.Evidence
		}
		c.Check()
	}
	return at, evidence
}

func TestRules(t *testing.T) {
	rise := Rule{"r", "errors", Rise, 10, 5 * second, Drain}
	level := Rule{"l", "heat", Level, 90, 3 * second, Cordon}
	for _, c := range []struct {
		name   string
		rule   Rule
		values []int64
		want   []int
	}{
		{"what was counted before the start does not count", rise, []int64{5000, 5000, 5001}, nil},
		{"a rise within the span", rise, []int64{0, 4, 8, 10}, []int{3}},
		{"a rise that is slower than the limit", rise, []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, nil},
		{"told once, then again after it was quiet", rise, []int64{0, 10, 12, 12, 12, 12, 12, 12, 12, 30}, []int{1, 9}},
		{"a counter that was set back begins anew", rise, []int64{100, 104, 0, 9, 9}, nil},
		{"and may rise again", rise, []int64{100, 104, 0, 9, 11}, []int{4}},
		{"a level for long enough", level, []int64{95, 91, 90, 92}, []int{3}},
		{"a level that drops in between", level, []int64{95, 95, 89, 95, 95, 95, 95}, []int{6}},
		{"told once, then again after it was low", level, []int64{95, 95, 95, 95, 95, 10, 95, 95, 95, 95}, []int{3, 9}},
	} {
		got, evidence := told(c.rule, c.values...)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: found at %v, want %v", c.name, got, c.want)
		}
		if len(got) > 0 && !strings.Contains(evidence, c.rule.Measure) {
			t.Errorf("%s: evidence %q", c.name, evidence)
		}
	}
}

func TestEvidence(t *testing.T) {
	_, got := told(Rule{"r", MemoryCorrected, Rise, 100, 3600 * second, Drain}, 7, 50, 120)
	if want := "memory.corrected rose by 113, from 7 to 120, within 2.0 s; the limit is 100 within 60 min"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMissingMeasure(t *testing.T) {
	c := New(Defaults())
	if got := c.Step(0, []Sample{{"other", 1 << 40}}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// A rise is found when a dumb twin that keeps everything finds it, whatever is thinned out: never where there is none.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rule := Rule{"r", "m", Rise, rapid.Int64Range(1, 50).Draw(t, "limit"), ident.Micros(rapid.IntRange(1, 40).Draw(t, "span")) * second, Drain}
		c := New([]Rule{rule})
		var times []ident.Micros
		var values []int64
		found := false
		for i, step := range rapid.SliceOfN(rapid.Int64Range(-3, 20), 1, 200).Draw(t, "steps") {
			now := ident.Micros(i) * second
			value := int64(0)
			if len(values) > 0 {
				value = max(0, values[len(values)-1]+step)
				if value < values[len(values)-1] {
					times, values = nil, nil
				}
			}
			times, values = append(times, now), append(values, value)
			want := false
			for j := range times {
				want = want || now-times[j] <= rule.Span && value-values[j] >= rule.Limit
			}
			got := len(c.Step(now, []Sample{{"m", value}})) > 0
			c.Check()
			if got != (want && !found) {
				t.Fatalf("at %d, value %d: found %t, the twin says %t, before %t", i, value, got, want, found)
			}
			found = want
		}
	})
}
