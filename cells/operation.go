package cells

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// OpID names an operation for all time: the log index of its start.
type OpID uint64

// OpKind is what an operation is to bring about. The strings are shown to users.
type OpKind string

// Kinds of operations.
const (
	OpMigrate OpKind = "migrate" // parts of one VM go elsewhere
	OpDrain   OpKind = "drain"   // nothing depends on some servers any more
	OpRestore OpKind = "restore" // servers take VMs again, and get some back
	OpBalance OpKind = "balance" // the load is made even
)

// OpState is where an operation is in its life. The strings are shown to users.
type OpState string

// States of an operation. All but the first are ends.
const (
	OpRunning   OpState = "running"
	OpDone      OpState = "done"
	OpFailed    OpState = "failed"
	OpCancelled OpState = "cancelled"
)

// StepKind is what one step of an operation moves.
type StepKind string

// Kinds of steps.
const (
	StepMove    StepKind = "move"    // the part that runs there
	StepStandby StepKind = "standby" // the replica that is kept there
	StepVCPU    StepKind = "vcpu"    // one vCPU that runs there
)

// StepState is where a step is. The strings are shown to users.
type StepState string

// States of a step.
const (
	StepWaiting   StepState = "waiting"
	StepCopying   StepState = "copying"   // the target gets a copy while the VM runs
	StepSwitching StepState = "switching" // the VM is to stand still at its last checkpoint here
	StepResuming  StepState = "resuming"  // the target takes over
	StepDone      StepState = "done"
	StepFailed    StepState = "failed"
	StepSkipped   StepState = "skipped" // of a balance or a restore: the move is not possible any more
)

func (s StepState) over() bool { return s == StepDone || s == StepFailed || s == StepSkipped }

// busy tells whether the step is under way.
func (s StepState) busy() bool { return !s.over() && s != StepWaiting }

// OpStep is one step of an operation.
type OpStep struct {
	Kind     StepKind         `json:"kind"`
	State    StepState        `json:"state"`
	VM       ident.VMID       `json:"vm"`
	Name     string           `json:"name"` // of the VM
	From     ident.ServerID   `json:"from"`
	FromName ident.ServerName `json:"from_name"`
	To       ident.ServerID   `json:"to,omitempty"` // as planned, until the step begins; 0: not known yet
	ToName   ident.ServerName `json:"to_name,omitempty"`
	Bytes    ident.Bytes      `json:"bytes"`           // at most so much is copied
	Down     ident.Micros     `json:"down,omitempty"`  // for so long the VM stood still
	Tries    int              `json:"tries,omitempty"` // that came to nothing
	Note     string           `json:"note,omitempty"`  // why it waits, was taken again, or failed

	Reason string `json:"reason,omitempty"` // why the balancer wants it

	VCPU ident.VCPU `json:"vcpu,omitempty"` // of StepVCPU: which
}

// OnDeadline says what becomes of a drain that is not done at its deadline.
type OnDeadline string

// Choices of OnDeadline.
const (
	DeadlineFail OnDeadline = "fail" // it ends; what was moved stays where it is
	DeadlineStop OnDeadline = "stop" // the VMs that are left are stopped
)

// Return says what goes back to servers that are restored.
type Return string

// Choices of Return.
const (
	ReturnNone     Return = "none"
	ReturnOriginal Return = "original" // what the last drain took away from them
	ReturnBalance  Return = "balance"  // VMs of busier servers
)

// Operation is work on the cluster that goes on whoever watches. Every step follows from the log; the leader only adds the clock.
//
//	running --all steps done, nothing left to do--> done
//	   |  \---deadline, or a step that cannot be taken--> failed
//	   +------EndOperation--> cancelled
type Operation struct {
	ID          OpID             `json:"id"`
	Kind        OpKind           `json:"kind"`
	Subject     string           `json:"subject"` // "cell b", "vm web"
	State       OpState          `json:"state"`
	Servers     []ident.ServerID `json:"servers,omitempty"` // that are drained or restored
	Steps       []OpStep         `json:"steps,omitempty"`
	Note        string           `json:"note,omitempty"` // what it waits for, or why it ended as it did
	Reason      string           `json:"reason,omitempty"`
	By          string           `json:"by,omitempty"`
	StartedMs   int64            `json:"started_ms"`
	EndedMs     int64            `json:"ended_ms,omitempty"`
	DeadlineMs  int64            `json:"deadline_ms,omitempty"` // Unix time; 0: none
	OnDeadline  OnDeadline       `json:"on_deadline,omitempty"`
	MaxParallel int              `json:"max_parallel"`
	To          Destination      `json:"to"`

	ScoreBefore uint64 `json:"score_before,omitempty"` // of a balance: how uneven the load was, and is to be
	ScoreAfter  uint64 `json:"score_after,omitempty"`
}

func (o *Operation) clone() Operation {
	out := *o
	out.Servers, out.Steps = slices.Clone(o.Servers), slices.Clone(o.Steps)
	return out
}

// exact tells whether a step of the operation goes where it was planned to, or nowhere.
func (o *Operation) exact() bool { return o.Kind == OpBalance || o.Kind == OpRestore }

// destination is where a step may go.
func (o *Operation) destination(s *OpStep) Destination {
	if o.exact() {
		return Destination{Server: s.To}
	}
	return o.To
}

// ofEndedVM is what becomes of a step whose VM has ended: it is what a drain asks for, and not what a migration does.
func (o *Operation) ofEndedVM() StepState {
	if o != nil && o.Kind == OpMigrate {
		return StepFailed
	}
	return StepDone
}

// Bounds of operations.
const (
	MaxOperations   = 64 // that are kept; running ones are never forgotten
	MaxParallel     = 64
	defaultParallel = 4
	maxTries        = 5 // of a step
)

// Operation returns the operation with this ID, or nil.
func (s *State) Operation(id OpID) *Operation {
	for i := range s.Operations {
		if s.Operations[i].ID == id {
			return &s.Operations[i]
		}
	}
	return nil
}

// Move is the move of some parts of a VM to one server, or of one of its vCPUs to a server that has no part of it: then no part leaves, and the target is one
// more, with that vCPU.
//
//	            worker ready, full copy, a checkpoint after it     home froze the VM        the target runs it
//	copying -------------------------------------------------> switching -------> resuming ----------------> (none)
//	   |                                                            |
//	   +--- target lost, given up: the VM runs on where it is ------+
//
// The target is a standby until the switchover, in which it takes the place of the parts. So whatever fails meanwhile is an ordinary loss.
type Move struct {
	Op        OpID         `json:"op"`
	Step      int          `json:"step"`
	Parts     []ident.Part `json:"parts"`               // that go
	Image     ident.Part   `json:"image"`               // takes their place
	Added     bool         `json:"added,omitempty"`     // Image is there for the move only: it goes when the move is given up
	Switching uint64       `json:"switching,omitempty"` // ProtectSeq under which home is asked for the switchover; 0: not yet
	VCPU      *ident.VCPU  `json:"vcpu,omitempty"`      // that goes alone; Parts is empty then
}

// Ready tells whether the worker on the target is there.
func (m *Move) Ready(vm *VM) bool {
	return slices.ContainsFunc(vm.Parts, func(p VMPart) bool { return p.Part == m.Image && p.Ready })
}

// Moved is a move that was switched over: the target is to report that the VM runs.
type Moved struct {
	Op        OpID         `json:"op"`
	Step      int          `json:"step"`
	Epoch     ident.Epoch  `json:"epoch"` // VM epoch that it began
	CutMicros ident.Micros `json:"cut_micros"`
}

// StartOperation starts an operation. The result is the [Operation]. Cells and Servers are what a drain or a restore is about, and which of its
// parts a migrated VM gives up; none means all.
type StartOperation struct {
	Kind        OpKind             `json:"kind"`
	Cells       []ident.CellName   `json:"cells,omitempty"`
	Servers     []ident.ServerName `json:"servers,omitempty"`
	VM          string             `json:"vm,omitempty"`
	ToCell      ident.CellName     `json:"to_cell,omitempty"`
	ToServer    ident.ServerName   `json:"to_server,omitempty"`
	DeadlineMs  int64              `json:"deadline_ms,omitempty"`
	OnDeadline  OnDeadline         `json:"on_deadline,omitempty"` // "" means fail
	MaxParallel int                `json:"max_parallel,omitempty"`
	Return      Return             `json:"return,omitempty"` // "" means none
	Reason      string             `json:"reason,omitempty"`
	By          string             `json:"by,omitempty"`

	VCPU *ident.VCPU `json:"vcpu,omitempty"` // of a migrate: only this one goes

	// Of a balance:
	Idle           bool  `json:"idle,omitempty"`             // only take waiting work to free slots of its cell
	SettledSinceMs int64 `json:"settled_since_ms,omitempty"` // VMs that were moved since then (Unix time) stay; 0: none
	MaxMoves       int   `json:"max_moves,omitempty"`        // 0 means MaxBalanceMoves
}

// EndOperation ends a running operation: an operator cancels it, or (Expired) the leader says that its deadline has passed.
type EndOperation struct {
	ID      OpID   `json:"id"`
	Expired bool   `json:"expired,omitempty"`
	By      string `json:"by,omitempty"`
}

// SwitchVM is home's word that the VM stands still at a checkpoint that all standbys of protection Seq hold.
type SwitchVM struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Seq         uint64            `json:"seq"`
	CutMicros   ident.Micros      `json:"cut_micros"` // since the first vCPU stopped
}

// VMMoved is the word of a move's target that the VM runs there.
type VMMoved struct {
	VM           ident.VMID   `json:"vm"`
	Epoch        ident.Epoch  `json:"epoch"`
	ResumeMicros ident.Micros `json:"resume_micros"` // since the last checkpoint was complete there
}

// AbandonMove gives up a move that stands still where the leader saw it.
type AbandonMove struct {
	VM        ident.VMID `json:"vm"`
	Image     ident.Part `json:"image"`
	Switching uint64     `json:"switching"`
	Reason    string     `json:"reason"`
}
