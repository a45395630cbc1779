package cells

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// CommandVersion is the version that this program writes and the only one that it applies.
const CommandVersion = 1

// MaxCommandBytes bounds an encoded command.
const MaxCommandBytes = 1 << 20

// RequestID names a proposal for all time: "<boot>-<n>". A command that is in the log twice under one ID is applied once.
type RequestID string

// Command is one entry of the log. Exactly one of the pointers is set. Whoever proposes one through monitor.Propose fills only that
// pointer: the monitor fills the header.
type Command struct {
	Version int            `json:"v"`
	Request RequestID      `json:"req"`
	By      ident.ServerID `json:"by"`
	UnixMs  int64          `json:"unix_ms"` // the proposer's wall clock; stamps events, decides nothing

	AddServer    *AddServer    `json:"add_server,omitempty"`
	RemoveServer *RemoveServer `json:"remove_server,omitempty"`
	Admit        *Admit        `json:"admit,omitempty"`
	Resume       *Resume       `json:"resume,omitempty"`
	Exclude      *Exclude      `json:"exclude,omitempty"`
	Cordon       *Cordon       `json:"cordon,omitempty"`
	ServerError  *ServerError  `json:"server_error,omitempty"`
	CreateVM     *CreateVM     `json:"create_vm,omitempty"`
	StopVM       *StopVM       `json:"stop_vm,omitempty"`
	RemoveVM     *RemoveVM     `json:"remove_vm,omitempty"`
	RemoveDisk   *RemoveDisk   `json:"remove_disk,omitempty"`
	DisksOpened  *DisksOpened  `json:"disks_opened,omitempty"`
	PartReady    *PartReady    `json:"part_ready,omitempty"`
	PartGone     *PartGone     `json:"part_gone,omitempty"`
	GiveUpPart   *GiveUpPart   `json:"give_up_part,omitempty"`
	EndVM        *EndVM        `json:"end_vm,omitempty"`
	ProtectVM    *ProtectVM    `json:"protect_vm,omitempty"`
	VMProtected  *VMProtected  `json:"vm_protected,omitempty"`
	Report       *Report       `json:"report,omitempty"`
	ResetVM      *ResetVM      `json:"reset_vm,omitempty"`
	PauseVM      *PauseVM      `json:"pause_vm,omitempty"`
	PartPaused   *PartPaused   `json:"part_paused,omitempty"`
	SaveVM       *SaveVM       `json:"save_vm,omitempty"`
	EndSave      *EndSave      `json:"end_save,omitempty"`

	StartOperation *StartOperation `json:"start_operation,omitempty"`
	EndOperation   *EndOperation   `json:"end_operation,omitempty"`
	SwitchVM       *SwitchVM       `json:"switch_vm,omitempty"`
	VMMoved        *VMMoved        `json:"vm_moved,omitempty"`
	VMResumed      *VMResumed      `json:"vm_resumed,omitempty"`
	AbandonMove    *AbandonMove    `json:"abandon_move,omitempty"`
	VCPUHanded     *VCPUHanded     `json:"vcpu_handed,omitempty"`
	PullVCPU       *PullVCPU       `json:"pull_vcpu,omitempty"`
	SetBalance     *SetBalance     `json:"set_balance,omitempty"`
	Loads          *Loads          `json:"loads,omitempty"`
	Revoke         *Revoke         `json:"revoke,omitempty"`
	VMBorrows      *VMBorrows      `json:"vm_borrows,omitempty"`
}

// ServerInfo is what a server says about itself.
type ServerInfo struct {
	Name          ident.ServerName `json:"name"`
	Cell          ident.CellName   `json:"cell"`
	Role          Role             `json:"role"`
	HostID        string           `json:"host_id"`
	Process       Process          `json:"process"`
	Addrs         Addrs            `json:"addrs"`
	Slots         int              `json:"slots"`
	MemoryBytes   ident.Bytes      `json:"memory_bytes"`
	PhysicalBytes ident.Bytes      `json:"physical_bytes,omitempty"` // that it has; of a server that lends memory only
	HostSched     bool             `json:"host_sched,omitempty"`     // it leaves vCPUs to Linux
}

// AddServer makes a server known. The leader proposes it for a join request. The result is [AddServerResult]. A name held by a dead
// server passes to the new one, and the dead one is forgotten: this is how a server that lost its disk comes back.
type AddServer struct {
	Info ServerInfo `json:"info"`
}

// AddServerResult is the result of AddServer.
type AddServerResult struct {
	ID ident.ServerID `json:"id"`
}

// RemoveServer forgets a dead server.
type RemoveServer struct {
	Name ident.ServerName `json:"name"`
}

// Admit puts a server into the view as a new incarnation. Only the server itself proposes it, and only when no worker of an older
// incarnation is left on it. It is refused unless BaseIncarnation and BaseBoot are those on record.
type Admit struct {
	Server          ident.ServerID    `json:"server"`
	BaseIncarnation ident.Incarnation `json:"base_incarnation"`
	BaseBoot        string            `json:"base_boot"`
	Info            ServerInfo        `json:"info"`
}

// Resume tells that a restarted serve process goes on as the same incarnation, with the workers it re-adopted. It is refused unless
// the server is live with BaseIncarnation and BaseBoot.
type Resume struct {
	Server          ident.ServerID    `json:"server"`
	BaseIncarnation ident.Incarnation `json:"base_incarnation"`
	BaseBoot        string            `json:"base_boot"`
	Info            ServerInfo        `json:"info"`
}

// Exclude takes servers out of the view. Only a leader proposes it, in its own term: an entry that was committed in another term than
// Term changes nothing, because the leases that the leader waited for say nothing about another term.
type Exclude struct {
	Term    uint64     `json:"term"`
	Targets []Excluded `json:"targets"` // by rising server ID
}

// Excluded names one process of one incarnation of a server, and why it is thought to be gone.
type Excluded struct {
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Boot        string            `json:"boot"`
	Proof       bool              `json:"proof"` // its processes are known to be gone, as against: its lease lapsed
	Cause       string            `json:"cause"`
}

// Cordon keeps new VM parts off a server or off a whole cell, or lets them on again. Exactly one of Server and Cell is set.
type Cordon struct {
	Server ident.ServerName `json:"server,omitempty"`
	Cell   ident.CellName   `json:"cell,omitempty"`
	On     bool             `json:"on"`
}

// ServerError records the last error of a server that an operator should know of; "" clears it.
type ServerError struct {
	Server ident.ServerID `json:"server"`
	Text   string         `json:"text"`
}

// CreateVM places a VM and enters it into the registry. The result is the [VM].
type CreateVM struct {
	Spec   VMSpec `json:"spec"`
	Secret string `json:"secret"` // 64 hex digits, random
}

// StopVM stops a VM at an operator's wish. VM is used if nonzero, else Name.
type StopVM struct {
	VM     ident.VMID `json:"vm,omitempty"`
	Name   string     `json:"name,omitempty"`
	Reason string     `json:"reason,omitempty"` // "" means "stopped by an operator"
}

// RemoveVM forgets a VM that has ended.
type RemoveVM struct {
	VM   ident.VMID `json:"vm,omitempty"`
	Name string     `json:"name,omitempty"`
}

// PartReady says that a part's worker waits for its start.
type PartReady struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	PID         int               `json:"pid"`
	StartTime   uint64            `json:"start_time"`
	Addr        string            `json:"addr"`
	ReplicaAddr string            `json:"replica_addr,omitempty"`
	NetAddr     string            `json:"net_addr,omitempty"`
	Level       wire.Level        `json:"level,omitempty"`
}

// ProtectVM changes how a running VM is protected.
type ProtectVM struct {
	VM               ident.VMID `json:"vm,omitempty"`
	Name             string     `json:"name,omitempty"`
	Protect          Protect    `json:"protect"`
	Replicas         int        `json:"replicas,omitempty"`
	CheckpointMillis int        `json:"checkpoint_millis,omitempty"`
}

// VMProtected is home's word that all standbys of protection Seq hold a complete checkpoint.
type VMProtected struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Seq         uint64            `json:"seq"`
}

// GiveUpPart is the word of a VM's home that another part has not answered it for long, although that one's server is in the view: the VM is to go
// on without it.
type GiveUpPart struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"` // home
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Silent      ident.Part        `json:"silent"`
	Seq         uint64            `json:"seq"` // the protection in force
	Reason      string            `json:"reason"`
}

// PartGone says that a part's worker ended by itself, or could not be started.
type PartGone struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	PID         int               `json:"pid,omitempty"`
	Reason      string            `json:"reason"`
}

// EndVM says that a VM ended as seen by the worker of one part.
type EndVM struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	State       VMState           `json:"state"` // exited, failed or lost
	ExitStatus  uint32            `json:"exit_status"`
	Reason      string            `json:"reason,omitempty"`
	Registers   string            `json:"registers,omitempty"`
	Host        bool              `json:"host,omitempty"` // the worker or its host failed, not the guest

	Crash    bool         `json:"crash,omitempty"`     // the guest failed by itself; it may be restarted in place
	Booted   ident.Epoch  `json:"booted,omitempty"`    // of a crash: the boot that it ended
	UpMicros ident.Micros `json:"up_micros,omitempty"` // of a crash: how long the guest had run since
}

// ResetVM restarts a VM's guest in place at an operator's wish. VM is used if nonzero, else Name.
type ResetVM struct {
	VM     ident.VMID `json:"vm,omitempty"`
	Name   string     `json:"name,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// VMResumed is home's word that all members of a VM that went back to a checkpoint have begun its new epoch.
type VMResumed struct {
	VM     ident.VMID        `json:"vm"`
	Epoch  ident.Epoch       `json:"epoch"`
	Text   string            `json:"text"` // of the event
	Fields map[string]string `json:"fields,omitempty"`
}

// Report adds an event.
type Report struct {
	Kind    EventKind         `json:"kind"`
	Subject string            `json:"subject"`
	Text    string            `json:"text"`
	Fields  map[string]string `json:"fields,omitempty"`
	Cause   uint64            `json:"cause,omitempty"`
}

// Code classifies a Fault for programs.
type Code string

// Codes of faults.
const (
	CodeInvalid    Code = "invalid"     // the request itself is wrong
	CodeNotFound   Code = "not-found"   // it names something that is not there
	CodeExists     Code = "exists"      // a name in use
	CodeNoCapacity Code = "no-capacity" // nothing fits
	CodeConflict   Code = "conflict"    // not in the state that the request needs
	CodeUnknown    Code = "unknown"     // a command or version that this program does not know
	CodeNoQuorum   Code = "no-quorum"   // the deadline passed, and no quorum was in reach
	CodeDeadline   Code = "deadline"    // the deadline passed; the command may still be applied later
)

// Fault is why a command was refused. Text is for operators.
type Fault struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// Error returns the text for operators.
func (f *Fault) Error() string { return f.Text }

func faultf(code Code, format string, args ...any) *Fault {
	return &Fault{Code: code, Text: fmt.Sprintf(format, args...)}
}

// ErrCommandTooLarge is returned for a command that exceeds MaxCommandBytes.
var ErrCommandTooLarge = errors.New("cells: command too large")

// EncodeCommand returns the bytes of a log entry.
func EncodeCommand(c *Command) ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("cells: encode command %s: %w", c.Request, err)
	}
	if len(b) > MaxCommandBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrCommandTooLarge, len(b), MaxCommandBytes)
	}
	return b, nil
}

// DecodeCommand reads the bytes of a log entry. A command of another version comes back with its header only and a Fault.
func DecodeCommand(b []byte) (*Command, *Fault) {
	if len(b) > MaxCommandBytes {
		return &Command{}, faultf(CodeInvalid, "command of %d bytes exceeds %d", len(b), MaxCommandBytes)
	}
	c := new(Command)
	if err := json.Unmarshal(b, c); err != nil {
		return &Command{}, faultf(CodeInvalid, "command cannot be read: %v", err)
	}
	if c.Version != CommandVersion {
		head := &Command{Version: c.Version, Request: c.Request, By: c.By, UnixMs: c.UnixMs}
		return head, faultf(CodeUnknown, "command version %d is not known here: this program applies version %d", c.Version, CommandVersion)
	}
	return c, nil
}
