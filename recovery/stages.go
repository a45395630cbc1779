package recovery

import "github.com/cellvisor/cellvisor/ident"

// Stage is one stage of a recovery.
type Stage uint8

// Stages, in the order in which they are reported.
const (
	Detect  Stage = iota // from the last sign of life to the first suspicion
	Fence                // from the suspicion until the lost servers can no longer act: proof, or their leases lapsed
	Agree                // from the decision to the new view in force
	Unwedge              // until nothing waits for what is gone: the workers of lost VMs have ended
	Remap                // until the workers of surviving VMs have their new members
	Resume               // until these VMs run again
	stages
)

var stageNames = [stages]string{"detect", "fence", "agree", "unwedge", "remap", "resume"}

// String names the stage.
func (s Stage) String() string {
	if s < stages {
		return stageNames[s]
	}
	return "stage?"
}

// Stages lists all stages in order.
func Stages() []Stage { return []Stage{Detect, Fence, Agree, Unwedge, Remap, Resume} }

// Clock takes the times of one recovery, on one server's clock. The zero value has taken none.
type Clock struct {
	Epoch ident.Epoch // of the new view
	begun [stages]ident.Micros
	ended [stages]ident.Micros
	done  [stages]bool
}

// Span sets a stage's begin and end. An end before the begin counts as no time at all.
func (c *Clock) Span(s Stage, begin, end ident.Micros) {
	c.begun[s], c.ended[s], c.done[s] = begin, max(begin, end), true
}

// Took returns how long a stage took, and whether it is known.
func (c *Clock) Took(s Stage) (ident.Micros, bool) { return c.ended[s] - c.begun[s], c.done[s] }
