package tests

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// `make campaign` runs the proofs of survival one after the other, a hundred rounds each. Each step adds what it saw to the file that CAMPAIGN_FILE names;
// at the end TestCampaignTable prints one table of it. CAMPAIGN_STEP names the step.

// campaignRow is what one step saw of one kind of fault.
type campaignRow struct {
	Step    string          `json:"step"`
	Kind    string          `json:"kind"`
	Gaps    []time.Duration `json:"gaps"` // each round's longest time without a record
	Bound   time.Duration   `json:"bound,omitempty"`
	Median  time.Duration   `json:"median,omitempty"` // at most
	Records int             `json:"records"`          // in order, none missing, none twice, or the step had failed
	Took    time.Duration   `json:"took"`
}

// What a kill may cost, by kind of fault: 99 of a hundred gaps, and the median. Other kinds have no bound of their own: they wait for a lease.
var campaignBounds = map[string][2]time.Duration{
	"cell":  {time.Second, 400 * time.Millisecond},
	"serve": {gapMost, gapMost},
}

// campaigned adds rows to the table, if there is to be one.
func campaigned(t *testing.T, began time.Time, records int, gaps map[string][]time.Duration) {
	t.Helper()
	path := os.Getenv("CAMPAIGN_FILE")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for kind, all := range gaps {
		slices.Sort(all)
		bounds := campaignBounds[kind]
		row := campaignRow{Step: os.Getenv("CAMPAIGN_STEP"), Kind: kind, Gaps: all, Bound: bounds[0], Median: bounds[1], Records: records, Took: time.Since(began)}
		if err := json.NewEncoder(f).Encode(row); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCampaignTable prints what the steps of a campaign saw, and fails if a bound was not kept.
func TestCampaignTable(t *testing.T) {
	path := os.Getenv("CAMPAIGN_FILE")
	if path == "" || os.Getenv("CAMPAIGN_STEP") != "" {
		t.Skip("only `make campaign` has a table")
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Fatal("no step of the campaign has come to an end")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-34s %-14s %7s %9s %9s %9s  %-11s %9s %13s %6s\n", "campaign", "kind", "rounds", "median ms", "p99 ms", "max ms", "bounds", "records", "lost/repeated", "took s")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d.Microseconds())/1000) }
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var r campaignRow
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		n := len(r.Gaps)
		if n == 0 {
			continue
		}
		median, p99, most := r.Gaps[n/2], r.Gaps[(99*n-1)/100], r.Gaps[n-1]
		verdict := "-"
		if r.Bound > 0 {
			verdict = "kept"
			if p99 > r.Bound || median > r.Median {
				verdict = "NOT KEPT"
				t.Errorf("%s, %s: median %v, p99 %v; at most %v and %v are allowed", r.Step, r.Kind, median, p99, r.Median, r.Bound)
			}
		}
		fmt.Fprintf(&b, "%-34s %-14s %7d %9s %9s %9s  %-11s %9d %13d %6.0f\n", r.Step, r.Kind, n, ms(median), ms(p99), ms(most), verdict, r.Records, 0, r.Took.Seconds())
	}
	fmt.Println(b.String())
}
