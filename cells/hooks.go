package cells

import "github.com/cellvisor/cellvisor/ident"

// PlacedPart is where one part of a new VM goes, and which of its vCPUs.
type PlacedPart struct {
	Server ident.ServerID
	VCPUs  []ident.VCPU
}

// Placer decides where the parts of a new VM go. Part 0 is home. It is called inside Apply: its answer must follow from its arguments
// alone. The arguments must not be changed.
type Placer interface {
	Place(st *State, spec *VMSpec) ([]PlacedPart, *Fault)

	// Standbys returns the servers for the standbys that a protected VM lacks, as far as there are any.
	Standbys(st *State, vm *VM) []ident.ServerID
}

// Loss is what a view change took away.
type Loss struct {
	Epoch   ident.Epoch // of the new view
	Servers []LostServer
}

// LostServer is one excluded incarnation.
type LostServer struct {
	Server      ident.ServerID
	Name        ident.ServerName
	Cell        ident.CellName
	Incarnation ident.Incarnation
	WholeCell   bool // no server of its cell is left in the view
}

// OutcomeKind says what a loss means to one VM.
type OutcomeKind uint8

// Outcomes.
const (
	OutcomeUntouched   OutcomeKind = iota
	OutcomeLost                    // the VM ends, for Reason
	OutcomeContinue                // it goes on without the parts in Gone
	OutcomeRestore                 // it goes on from its replica, part Image, without the parts in Gone
	OutcomeUnprotected             // only standbys are gone
)

// Outcome is what a loss means to one VM.
type Outcome struct {
	Kind   OutcomeKind
	Reason string
	Gone   []ident.Part
	Image  ident.Part
}

// Container decides how the loss of servers is contained: what it means to one active VM. Like Placer it is called inside Apply.
type Container interface {
	Contain(loss Loss, vm *VM) Outcome
}

// Destination bounds where a move may go: to one server, or into one cell. The zero value bounds nothing.
type Destination struct {
	Server ident.ServerID
	Cell   ident.CellName
}

// Mover decides where parts of a running VM can go together: to a server that runs no other part of it, which then holds the whole VM for a
// moment. Like Placer it is called inside Apply.
type Mover interface {
	Target(st *State, vm *VM, parts []ident.Part, to Destination) (ident.ServerID, *Fault)
}

// Hooks are the decisions that siblings of this package make; the monitor connects them.
type Hooks struct {
	Placer    Placer
	Mover     Mover    // nil: nothing can be moved
	Balancer  Balancer // nil: nothing can be balanced
	Container Container
	Canary    string // plants a bug for tests of the simulator; "" in production
}
