package drill

import (
	"fmt"
	"io"
	"strings"
)

// Text writes the report for people. mark dresses the words ok, FAILED and the verdict.
func (rep *Report) Text(w io.Writer, mark func(string) string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "drill %s: %s after %s (seed %d)\n", rep.Drill, mark(string(rep.Verdict)), seconds(rep.TookMs), rep.Seed)
	if rep.Why != "" {
		fmt.Fprintf(&b, "  %s\n", rep.Why)
	}
	rep.textChecks(&b, mark)
	if len(rep.Outputs) > 0 {
		b.WriteString("\noutput\n")
		for _, o := range rep.Outputs {
			fmt.Fprintf(&b, "  VM %s: %d records, longest silence %s\n", o.VM, o.Records, seconds(o.LongestGapMs))
		}
	}
	if len(rep.Recoveries) > 0 {
		b.WriteString("\nrecovery, by stages\n")
		for _, r := range rep.Recoveries {
			fmt.Fprintf(&b, "  %8s  epoch %-3d  %-12s %s\n", seconds(r.AtMs), r.Epoch, r.Subject, stageText(r.Stages))
		}
	}
	b.WriteString("\nVMs lost")
	if len(rep.Lost) == 0 {
		b.WriteString(": none\n")
	} else {
		b.WriteString("\n")
		for _, l := range rep.Lost {
			fmt.Fprintf(&b, "  %8s  %s: %s\n", seconds(l.AtMs), l.VM, l.Reason)
		}
	}
	rep.Healing.text(&b, mark)
	if rep.Verdict != Passed {
		fmt.Fprintf(&b, "\nreplay: %s\n", rep.Replay)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func okWord(ok bool) string {
	if ok {
		return "ok"
	}
	return "FAILED"
}

func (rep *Report) textChecks(b *strings.Builder, mark func(string) string) {
	if len(rep.Expectations) > 0 {
		b.WriteString("\nexpectations\n")
	}
	for _, e := range rep.Expectations {
		fmt.Fprintf(b, "  %8s  %-6s  %s", seconds(e.AtMs), mark(okWord(e.OK)), e.Name)
		if e.OK {
			fmt.Fprintf(b, ", after %d ms", e.TookMs)
		} else {
			fmt.Fprintf(b, "\n            expected within %s, at %s\n            instead: %s", seconds(e.WithinMs), e.Where, e.Instead)
		}
		b.WriteString("\n")
	}
	if len(rep.Invariants) > 0 {
		b.WriteString("\nthroughout\n")
	}
	for _, v := range rep.Invariants {
		fmt.Fprintf(b, "  %8s  %-6s  %s (%d looks)", seconds(v.FromMs), mark(okWord(v.OK)), v.Name, v.Checks)
		if !v.OK {
			fmt.Fprintf(b, "\n            broke after %s, at %s\n            instead: %s", seconds(v.BrokenMs), v.Where, v.Instead)
		}
		b.WriteString("\n")
	}
}

func (h Healing) text(b *strings.Builder, mark func(string) string) {
	fmt.Fprintf(b, "healing: %s", mark(okWord(h.OK)))
	if len(h.Actions) > 0 {
		fmt.Fprintf(b, ": %s", strings.Join(h.Actions, ", "))
	}
	if h.OK {
		fmt.Fprintf(b, "; all servers live, after %s", seconds(h.TookMs))
	} else {
		fmt.Fprintf(b, ": %s", h.Problem)
	}
	b.WriteString("\n")
}

// Text writes the healing for people.
func (h Healing) Text(w io.Writer, mark func(string) string) error {
	var b strings.Builder
	h.text(&b, mark)
	_, err := io.WriteString(w, b.String())
	return err
}

func stageText(stages []Stage) string {
	var parts []string
	for _, s := range stages {
		parts = append(parts, fmt.Sprintf("%s %.1f ms", s.Name, float64(s.Micros)/1000))
	}
	return strings.Join(parts, ", ")
}
