package drill

import "time"

// Verdict is how a drill ended.
type Verdict string

// Verdicts.
const (
	Passed  Verdict = "passed"
	Failed  Verdict = "failed"  // an expectation or an invariant did not hold, or the healing failed
	Aborted Verdict = "aborted" // abort_if came true, or the operator interrupted it
	Broken  Verdict = "error"   // the drill itself is wrong, or the cluster refused something it needs
)

// Report is what a run found out. Its JSON form is an interface: fields are only added. Times are milliseconds after the start.
type Report struct {
	Drill        string        `json:"drill"`
	About        string        `json:"about"`
	Verdict      Verdict       `json:"verdict"`
	Why          string        `json:"why"` // of any verdict but passed
	Seed         uint64        `json:"seed"`
	Replay       string        `json:"replay"`
	StartedAt    time.Time     `json:"started_at"`
	TookMs       int64         `json:"took_ms"`
	Cells        []string      `json:"cells"`
	Servers      []string      `json:"servers"`
	Steps        []Step        `json:"steps"`
	Expectations []Expectation `json:"expectations"`
	Invariants   []Invariant   `json:"invariants"`
	Recoveries   []Recovery    `json:"recoveries"`
	Lost         []LostVM      `json:"lost"`
	Outputs      []Output      `json:"outputs"`
	Healing      Healing       `json:"healing"`
	Events       []Event       `json:"events"`
	Timeline     []Track       `json:"timeline"`
}

// Step is something that the drill did: start, wait, fault, undo, log.
type Step struct {
	AtMs int64  `json:"at_ms"`
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// Expectation is one expect or wait.
type Expectation struct {
	AtMs     int64  `json:"at_ms"`
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	TookMs   int64  `json:"took_ms"`
	WithinMs int64  `json:"within_ms"`
	Instead  string `json:"instead"` // what was there when it should have held
	Where    string `json:"where"`   // file:line
}

// Invariant is one steady or abort_if.
type Invariant struct {
	FromMs   int64  `json:"from_ms"`
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Checks   int    `json:"checks"`
	BrokenMs int64  `json:"broken_ms"` // when it broke, 0 if it did not
	Instead  string `json:"instead"`
	Where    string `json:"where"`
}

// Recovery is what the cluster reported about one view change without some servers, or about one VM's return.
type Recovery struct {
	AtMs    int64   `json:"at_ms"`
	Epoch   uint64  `json:"epoch"`
	Subject string  `json:"subject"` // "server a-1", "vm p"
	Stages  []Stage `json:"stages"`
}

// Stage is one stage of a recovery.
type Stage struct {
	Name   string `json:"name"`
	Micros int64  `json:"micros"`
}

// LostVM is a VM that the drill cost.
type LostVM struct {
	VM     string `json:"vm"`
	AtMs   int64  `json:"at_ms"`
	Reason string `json:"reason"`
}

// Output sums up what one VM let out.
type Output struct {
	VM           string `json:"vm"`
	Records      uint64 `json:"records"`
	LongestGapMs int64  `json:"longest_gap_ms"`
	GapEndedMs   int64  `json:"gap_ended_ms"`
}

// Event is an event of the cluster during the drill.
type Event struct {
	AtMs    int64  `json:"at_ms"`
	Type    string `json:"type"`
	Epoch   uint64 `json:"epoch"`
	Message string `json:"message"`
}

// Track is the states that one server or VM went through, as an observer outside saw them.
type Track struct {
	Kind  string `json:"kind"` // server or vm
	Name  string `json:"name"`
	Spans []Span `json:"spans"`
}

// Span is one state.
type Span struct {
	FromMs int64  `json:"from_ms"`
	ToMs   int64  `json:"to_ms"`
	State  string `json:"state"`
}
