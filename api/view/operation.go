package view

import (
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// Operation is an entry of `op ls -o json`, and what `op show`, `cell drain` and their like print.
type Operation struct {
	ID          uint64     `json:"id"`
	Kind        string     `json:"kind"`
	Subject     string     `json:"subject"`
	State       string     `json:"state"`
	Steps       []Step     `json:"steps"`
	StepsDone   int        `json:"steps_done"`
	Note        string     `json:"note"`
	Reason      string     `json:"reason"`
	By          string     `json:"by"`
	MaxParallel uint32     `json:"max_parallel"`
	StartedAt   *time.Time `json:"started_at"`
	EndedAt     *time.Time `json:"ended_at"`
	DeadlineAt  *time.Time `json:"deadline_at"`
	ScoreBefore float64    `json:"score_before"`
	ScoreAfter  float64    `json:"score_after"`
}

// Step is one step of an operation.
type Step struct {
	Kind       string `json:"kind"`
	State      string `json:"state"`
	VM         string `json:"vm"`
	From       string `json:"from"`
	To         string `json:"to"`
	Bytes      uint64 `json:"bytes"`
	DownMicros uint64 `json:"down_micros"`
	Tries      uint32 `json:"tries"`
	Note       string `json:"note"`
	Reason     string `json:"reason"`

	VCPU *uint32 `json:"vcpu,omitempty"` // of kind vcpu
}

// OfOperation converts one operation.
func OfOperation(o *api.Operation) Operation {
	out := Operation{
		ID: o.GetId(), Kind: o.GetKind().Word(), Subject: o.GetSubject(), State: o.GetState().Word(), Steps: Map(o.GetSteps(), ofStep),
		Note: o.GetNote(), Reason: o.GetReason(), By: o.GetBy(), MaxParallel: o.GetMaxParallel(),
		StartedAt: at(o.GetStartedAt()), EndedAt: at(o.GetEndedAt()), DeadlineAt: at(o.GetDeadlineAt()),
		ScoreBefore: float64(o.GetScoreBefore()) / 1000, ScoreAfter: float64(o.GetScoreAfter()) / 1000,
	}
	for _, s := range out.Steps {
		if s.State == "done" {
			out.StepsDone++
		}
	}
	return out
}

func ofStep(s *api.OperationStep) Step {
	return Step{
		Kind: s.GetKind(), State: s.GetState(), VM: s.GetVm(), From: s.GetFrom(), To: s.GetTo(), Bytes: s.GetBytes(),
		DownMicros: s.GetDownMicros(), Tries: s.GetTries(), Note: s.GetNote(),
		Reason: s.GetReason(), VCPU: s.Vcpu,
	}
}

// Safety is `cell safe-to-stop -o json`.
type Safety struct {
	Safe       bool     `json:"safe"`
	Dependents []string `json:"dependents"`
}

// OfSafety converts an answer to SafeToStop.
func OfSafety(r *api.SafeToStopResponse) Safety {
	return Safety{Safe: r.GetSafe(), Dependents: list(r.GetDependents())}
}
