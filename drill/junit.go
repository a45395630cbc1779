package drill

import (
	"encoding/xml"
	"fmt"
	"io"
)

// The parts of JUnit's format that CI systems read.
type junitSuite struct {
	XMLName   xml.Name    `xml:"testsuite"`
	Name      string      `xml:"name,attr"`
	Tests     int         `xml:"tests,attr"`
	Failures  int         `xml:"failures,attr"`
	Errors    int         `xml:"errors,attr"`
	Time      string      `xml:"time,attr"`
	Timestamp string      `xml:"timestamp,attr"`
	Cases     []junitCase `xml:"testcase"`
	Out       string      `xml:"system-out"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitProblem `xml:"failure,omitempty"`
	Error   *junitProblem `xml:"error,omitempty"`
}

type junitProblem struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes the report as one test suite: a case for each expectation and invariant, one for the run as a whole, one for the healing.
func (rep *Report) JUnit(w io.Writer) error {
	s := junitSuite{Name: "drill " + rep.Drill, Time: plainSeconds(rep.TookMs), Timestamp: rep.StartedAt.Format("2006-01-02T15:04:05")}
	add := func(name string, tookMs int64, ok bool, message, text string) {
		c := junitCase{Class: rep.Drill, Name: name, Time: plainSeconds(tookMs)}
		if !ok {
			c.Failure = &junitProblem{message, text}
			s.Failures++
		}
		s.Cases = append(s.Cases, c)
	}
	for _, e := range rep.Expectations {
		add(e.Name, e.TookMs, e.OK, "instead: "+e.Instead, fmt.Sprintf("%s: expected within %s", e.Where, seconds(e.WithinMs)))
	}
	for _, v := range rep.Invariants {
		add("throughout: "+v.Name, 0, v.OK, "instead: "+v.Instead, fmt.Sprintf("%s: broke after %s", v.Where, seconds(v.BrokenMs)))
	}
	add("healing", rep.Healing.TookMs, rep.Healing.OK, rep.Healing.Problem, "")
	whole := junitCase{Class: rep.Drill, Name: "verdict", Time: plainSeconds(rep.TookMs)}
	if rep.Verdict == Failed {
		whole.Failure = &junitProblem{rep.Why, rep.Replay}
		s.Failures++
	} else if rep.Verdict != Passed {
		whole.Error = &junitProblem{string(rep.Verdict) + ": " + rep.Why, rep.Replay}
		s.Errors++
	}
	s.Cases = append(s.Cases, whole)
	s.Tests = len(s.Cases)
	for _, step := range rep.Steps {
		s.Out += fmt.Sprintf("%s %s: %s\n", seconds(step.AtMs), step.Kind, step.Text)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func plainSeconds(ms int64) string { return fmt.Sprintf("%.3f", float64(ms)/1000) }
