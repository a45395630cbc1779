package api

import "strings"

// word turns the name of an enum value into the word that people and JSON see: VM_STATE_RUNNING is "running".
func word(name, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", "-"))
}

// Word returns the state as it is printed: "starting", "running", "stopped", "exited", "lost", "failed".
func (s VMState) Word() string { return word(s.String(), "VM_STATE_") }

// Ended tells whether the state is one of the four ends.
func (s VMState) Ended() bool {
	return s == VMState_VM_STATE_STOPPED || s == VMState_VM_STATE_EXITED || s == VMState_VM_STATE_LOST || s == VMState_VM_STATE_FAILED
}

// Word returns the state as it is printed: "live", "dead", "joining".
func (s ServerState) Word() string { return word(s.String(), "SERVER_STATE_") }

// Word returns the state as it is printed: "live", "degraded", "dead".
func (s CellState) Word() string { return word(s.String(), "CELL_STATE_") }

// Word returns the role as it is printed: "server", "witness".
func (r ServerRole) Word() string { return word(r.String(), "SERVER_ROLE_") }

// Word returns the choice as it is printed: "stop", "touch".
func (o OnLoss) Word() string { return word(o.String(), "ON_LOSS_") }

// Word returns the kind as it is printed: "migrate", "drain", "restore", "balance".
func (k OperationKind) Word() string { return word(k.String(), "OPERATION_KIND_") }

// Word returns the state as it is printed: "running", "done", "failed", "cancelled".
func (s OperationState) Word() string { return word(s.String(), "OPERATION_STATE_") }
