package wire

import "github.com/cellvisor/cellvisor/ident"

// WorkerHand asks home to hand a vCPU over from one part to another. Seq rises with each. Home answers with WorkerHanded.
type WorkerHand struct {
	Seq  uint64     `json:"seq"`
	VCPU ident.VCPU `json:"vcpu"`
	From ident.Part `json:"from"`
	To   ident.Part `json:"to"`
}

// WorkerHanded is home's word that the hand-over of number Seq has ended: the vCPU runs at the target (Moved), or still where it was.
type WorkerHanded struct {
	Seq        uint64       `json:"seq"`
	Moved      bool         `json:"moved"`
	Why        string       `json:"why,omitempty"`         // it was not moved
	DownMicros ident.Micros `json:"down_micros,omitempty"` // for so long the vCPU stood still
}
