package cells

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Role says what a server is for.
type Role string

// Roles.
const (
	RoleServer  Role = "server"  // runs VM parts
	RoleWitness Role = "witness" // only votes: the third voter of a cluster of two cells
)

// ServerState is where a server is in its life. The strings are shown to users.
type ServerState string

// States of a server.
const (
	ServerJoining ServerState = "joining" // known, never yet admitted
	ServerLive    ServerState = "live"    // in the view
	ServerDead    ServerState = "dead"    // excluded from the view
)

// Addrs are the addresses, host:port, at which other servers reach one server.
type Addrs struct {
	Peer   string `json:"peer"`   // monitor messages
	API    string `json:"api"`    // control API
	Gossip string `json:"gossip"` // membership gossip
}

// Process identifies one run of a server's serve process.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // field 22 of /proc/PID/stat: tells a reused PID from this process
	Boot      string `json:"boot"`       // random, new with each start of serve; "" before the first
}

// Server is what the cluster knows about one server.
type Server struct {
	ID            ident.ServerID    `json:"id"`
	Name          ident.ServerName  `json:"name"`
	Cell          ident.CellName    `json:"cell"`
	Role          Role              `json:"role"`
	HostID        string            `json:"host_id"` // equal for servers on one host, where one can see whether the other's processes are gone
	Process       Process           `json:"process"`
	Addrs         Addrs             `json:"addrs"`
	Slots         int               `json:"slots"` // vCPUs of one VM that it can run at once
	MemoryBytes   ident.Bytes       `json:"memory_bytes"`
	PhysicalBytes ident.Bytes       `json:"physical_bytes,omitempty"` // that it has; of a server that lends memory only
	HostSched     bool              `json:"host_sched,omitempty"`     // it leaves vCPUs to Linux
	Incarnation   ident.Incarnation `json:"incarnation"`              // 0 before the first admission
	State         ServerState       `json:"state"`
	Cordoned      bool              `json:"cordoned"`
	LastError     string            `json:"last_error,omitempty"`
	Left          ident.Epoch       `json:"left,omitempty"` // epoch of the view that excluded it, if dead
}

// Member is a live server in a view.
type Member struct {
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
}

// View is the agreed set of live servers.
type View struct {
	Epoch ident.Epoch `json:"epoch"`
	Live  []Member    `json:"live"` // by rising server ID
}

// Has tells whether this incarnation of the server is in the view.
func (v View) Has(s ident.ServerID, inc ident.Incarnation) bool {
	return slices.Contains(v.Live, Member{s, inc})
}

// OnLoss says what happens to an unprotected VM that loses a part.
type OnLoss string

// Choices of OnLoss.
const (
	OnLossStop  OnLoss = "stop"  // the VM is stopped at once
	OnLossTouch OnLoss = "touch" // it runs until it touches what is gone
)

// Protect says how a VM is protected against the loss of a cell.
type Protect string

// Choices of Protect.
const (
	ProtectNone    Protect = "none"
	ProtectReplica Protect = "replica"
)

// VMState is where a VM is in its life. The strings are shown to users.
type VMState string

// States of a VM.
const (
	VMStarting VMState = "starting" // placed; its workers are being started
	VMRunning  VMState = "running"
	VMStopped  VMState = "stopped" // by an operator
	VMExited   VMState = "exited"  // the guest ended itself
	VMLost     VMState = "lost"    // a server or cell that it depended on failed
	VMFailed   VMState = "failed"  // the guest or one of its workers failed
)

// Active tells whether a VM in this state has workers.
func (s VMState) Active() bool { return s == VMStarting || s == VMRunning }

// VMSpec is what an operator asks for.
type VMSpec struct {
	Name          string           `json:"name"`
	Builtin       string           `json:"builtin,omitempty"`        // name of a built-in payload, or:
	PayloadSHA256 string           `json:"payload_sha256,omitempty"` // hash (hex) of a payload file
	PayloadServer ident.ServerID   `json:"payload_server,omitempty"` // and the server that holds it
	PayloadBytes  ident.Bytes      `json:"payload_bytes,omitempty"`
	Args          string           `json:"args,omitempty"`
	VCPUs         int              `json:"vcpus"`
	MemoryBytes   ident.Bytes      `json:"memory_bytes"`
	Span          []ident.CellName `json:"span,omitempty"`    // cells to spread over; empty lets placement choose
	OnLoss        OnLoss           `json:"on_loss"`           // "" means stop
	Protect       Protect          `json:"protect"`           // "" means none
	Restart       string           `json:"restart,omitempty"` // RestartNo, RestartAlways

	Replicas         int `json:"replicas,omitempty"`          // with protect replica: copies in other cells, 0 means 1
	CheckpointMillis int `json:"checkpoint_millis,omitempty"` // between cuts, 0 means adaptive

	// RebootOnCrash restarts the guest in place when it crashes, until CrashLimit crashes in a row came within CrashWindow of their boot; 0 is no limit.
	RebootOnCrash bool       `json:"reboot_on_crash,omitempty"`
	CrashLimit    int        `json:"crash_limit,omitempty"`
	Weight        int        `json:"weight,omitempty"` // share of time on the slots; 0 means DefaultWeight
	Linux         *LinuxSpec `json:"linux,omitempty"`  // the payload file is a Linux kernel

	Disks []DiskSpec `json:"disks,omitempty"`

	Saved *SavedSpec `json:"saved,omitempty"` // the guest goes on from a saved VM; a later boot is from the image

	// Options are settings for tests and measurements, passed to the workers as they are.
	Options map[string]string `json:"options,omitempty"`
}

// VMPart is one VM's share on one server.
type VMPart struct {
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	ServerName  ident.ServerName  `json:"server_name"`
	Cell        ident.CellName    `json:"cell"`
	Incarnation ident.Incarnation `json:"incarnation"`
	VCPUs       []ident.VCPU      `json:"vcpus"`
	PID         int               `json:"pid,omitempty"` // of the worker, once ready
	StartTime   uint64            `json:"start_time,omitempty"`
	Addr        string            `json:"addr,omitempty"` // page plane, once ready
	Ready       bool              `json:"ready"`
	Gone        bool              `json:"gone,omitempty"`         // its server was excluded; the VM goes on without it (on-loss touch)
	Standby     bool              `json:"standby,omitempty"`      // holds a replica and runs nothing
	ReplicaAddr string            `json:"replica_addr,omitempty"` // replica plane, once ready
	NetAddr     string            `json:"net_addr,omitempty"`     // of its ports on the built-in switch, once ready
	Level       wire.Level        `json:"level,omitempty"`        // what its worker knows, once ready
	Idle        int               `json:"idle,omitempty"`         // of its vCPUs, so many idle, on average of late
	PausedSeq   uint64            `json:"paused_seq,omitempty"`   // the VM's last change of its pauses that it has carried out
	Origin      ident.ServerID    `json:"origin,omitempty"`       // a drain took it from there, and nobody has decided since that it stays where it is
	Holds       bool              `json:"holds,omitempty"`        // of a standby: home lets no output leave before this one has the checkpoint after it
	Mirror      bool              `json:"mirror,omitempty"`       // of a standby: it holds the VM's disks only, and Holds says that they are in step
}

// VM is one virtual machine in the registry.
type VM struct {
	ID         ident.VMID  `json:"id"`
	Spec       VMSpec      `json:"spec"`
	State      VMState     `json:"state"`
	Reason     string      `json:"reason,omitempty"`
	ExitStatus uint32      `json:"exit_status"`
	Registers  string      `json:"registers,omitempty"`
	Epoch      ident.Epoch `json:"epoch"`   // VM epoch: view epoch at which its member set last changed
	Created    ident.Epoch `json:"created"` // VM epoch at its creation; names the workers' directories
	Home       ident.Part  `json:"home"`
	Parts      []VMPart    `json:"parts"` // by part
	Secret     string      `json:"secret"`
	CreatedMs  int64       `json:"created_ms"`           // Unix time, milliseconds
	StartedMs  int64       `json:"started_ms,omitempty"` // when all parts first ran
	EndedMs    int64       `json:"ended_ms,omitempty"`

	ProtectSeq uint64     `json:"protect_seq,omitempty"` // rises with every change of the ready standbys
	SafeSeq    uint64     `json:"safe_seq,omitempty"`    // the last ProtectSeq that home reported complete
	Restored   bool       `json:"restored,omitempty"`    // Epoch began from a replica, that of part Image
	Resumed    bool       `json:"resumed,omitempty"`     // and all members have begun it: until then the image is still whole
	Image      ident.Part `json:"image,omitempty"`
	LastPart   ident.Part `json:"last_part,omitempty"` // the index given last
	Recoveries uint64     `json:"recoveries,omitempty"`

	Booted   ident.Epoch `json:"booted,omitempty"`   // VM epoch in which the guest was last restarted in place, 0 if never
	Restarts uint64      `json:"restarts,omitempty"` // in place, by crashes and by operators
	Crashes  int         `json:"crashes,omitempty"`  // in a row, each within CrashWindow of its boot
	Start    Start       `json:"start,omitzero"`

	Paused   bool   `json:"paused,omitempty"`    // an operator wants its guest to stand still
	Saving   Saving `json:"saving,omitzero"`     // who is saving it, which holds it, too
	PauseSeq uint64 `json:"pause_seq,omitempty"` // rises with each change of these two

	Borrows []Borrow `json:"borrows,omitempty"` // servers that hold memory for its parts; see Loans

	Move  *Move `json:"move,omitempty"` // the move that is under way
	Moved Moved `json:"moved,omitzero"` // the last one that was switched over

	MovedMs int64 `json:"moved_ms,omitempty"` // Unix time of that one, milliseconds

	Hand    *Hand  `json:"hand,omitempty"`     // the vCPU that is on its way from part to part
	HandSeq uint64 `json:"hand_seq,omitempty"` // number of the last one

	PulledMs int64 `json:"pulled_ms,omitempty"` // when it was last told that a vCPU went to where its pages are; Unix time, milliseconds
}

// Cells lists the cells that the VM depends on, sorted.
func (v *VM) Cells() []ident.CellName {
	out := v.OwnCells()
	for _, b := range v.Loans() {
		if !slices.Contains(out, b.Cell) {
			out = append(out, b.Cell)
		}
	}
	slices.Sort(out)
	return out
}

// PartOn returns the VM's part on this incarnation of a server, or nil.
func (v *VM) PartOn(s ident.ServerID, inc ident.Incarnation) *VMPart {
	for i := range v.Parts {
		if p := &v.Parts[i]; p.Server == s && p.Incarnation == inc && !p.Gone {
			return p
		}
	}
	return nil
}

// EventKind names what happened. The strings are shown to users and scripted against: they are kept.
type EventKind string

// Kinds of events.
const (
	EventServerAdded    EventKind = "server-added"
	EventServerLive     EventKind = "server-live"
	EventServerDead     EventKind = "server-dead"
	EventServerResumed  EventKind = "server-resumed" // serve restarted, workers kept
	EventServerRemoved  EventKind = "server-removed"
	EventServerError    EventKind = "server-error"
	EventServerCordon   EventKind = "server-cordon"
	EventServerHealth   EventKind = "server-health" // its hardware shows signs of failure
	EventCellLost       EventKind = "cell-lost"     // its last live server was excluded
	EventCellLive       EventKind = "cell-live"     // its first live server was admitted
	EventVMCreated      EventKind = "vm-created"
	EventVMRunning      EventKind = "vm-running"
	EventVMStopped      EventKind = "vm-stopped"
	EventVMExited       EventKind = "vm-exited"
	EventVMLost         EventKind = "vm-lost"
	EventVMProtect      EventKind = "vm-protect"
	EventVMProtected    EventKind = "vm-protected"
	EventVMUnprotected  EventKind = "vm-unprotected"
	EventVMRecovering   EventKind = "vm-recovering"
	EventVMRecovered    EventKind = "vm-recovered"
	EventVMMoving       EventKind = "vm-moving"  // its parts are to go elsewhere: a copy is made there
	EventVMMoved        EventKind = "vm-moved"   // it runs there
	EventVCPUMoved      EventKind = "vcpu-moved" // one of its vCPUs runs on another of its servers
	EventVMFailed       EventKind = "vm-failed"
	EventVMStartedAgain EventKind = "vm-again"     // from its spec, after it was lost
	EventVMRestarted    EventKind = "vm-restarted" // in place: its guest crashed, or an operator reset it
	EventVMDegraded     EventKind = "vm-degraded"  // on-loss touch: goes on without some parts
	EventVMPaused       EventKind = "vm-paused"    // an operator, or whoever saves it, lets its guest stand still
	EventVMUnpaused     EventKind = "vm-resumed"   // it goes on after that
	EventVMStalled      EventKind = "vm-stalled"   // too much of its output is held back
	EventVMUnstalled    EventKind = "vm-unstalled"
	EventVMShort        EventKind = "vm-short" // a part holds more memory than it may: its paging file has no room, or fails
	EventVMFits         EventKind = "vm-fits"
	EventVMBorrows      EventKind = "vm-borrows"
	EventVMRemoved      EventKind = "vm-removed"
	EventRecoveryStages EventKind = "recovery-stages"
	EventVotersChanged  EventKind = "voters-changed"
	EventBalanceMode    EventKind = "balance-mode"
	EventBalanceSuggest EventKind = "balance-suggested" // the load is uneven, and what could be done
	EventOpStarted      EventKind = "op-started"
	EventOpStep         EventKind = "op-step" // one of its steps could not be taken, or has to be taken again
	EventOpDone         EventKind = "op-done"
	EventOpFailed       EventKind = "op-failed"
	EventOpCancelled    EventKind = "op-cancelled"
	EventRevoked        EventKind = "ca-revoked" // certificates were taken back
)

// Event is one thing that happened, in the order of the log. Events are replicated: every server has the same ones under the same
// sequence numbers, so that a follower of the stream can go on at another server.
type Event struct {
	Seq     uint64            `json:"seq"` // from 1, rising by one
	UnixMs  int64             `json:"unix_ms"`
	Kind    EventKind         `json:"kind"`
	Epoch   ident.Epoch       `json:"epoch"`   // of the view in force
	Subject string            `json:"subject"` // "server a-1", "cell b", "vm web"
	Text    string            `json:"text"`
	Fields  map[string]string `json:"fields,omitempty"`
	Cause   uint64            `json:"cause,omitempty"` // sequence number of the event that led to this one, 0 if none
}

// MaxEvents is how many events are kept.
const MaxEvents = 10_000

// State is the replicated state. It is a value of plain data: equal logs give equal states, byte for byte in JSON.
type State struct {
	ClusterID string   `json:"cluster_id"`
	Applied   uint64   `json:"applied"` // log index
	View      View     `json:"view"`
	Servers   []Server `json:"servers"` // by rising ID
	VMs       []VM     `json:"vms"`     // by rising ID
	NextSeq   uint64   `json:"next_seq"`

	Operations []Operation `json:"operations,omitempty"` // by rising ID
	Disks      []Disk      `json:"disks,omitempty"`      // in the order of their creation
	Balance    BalanceMode `json:"balance,omitempty"`    // "" means off

	Revoked []RevokedCert `json:"revoked,omitempty"` // certificates that are refused, by serial; never changed in place
}

// Server returns the server with this ID, or nil.
func (s *State) Server(id ident.ServerID) *Server {
	i, ok := slices.BinarySearchFunc(s.Servers, id, func(x Server, id ident.ServerID) int {
		switch {
		case x.ID < id:
			return -1
		case x.ID > id:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &s.Servers[i]
}

// ServerNamed returns the server with this name, or nil.
func (s *State) ServerNamed(name ident.ServerName) *Server {
	for i := range s.Servers {
		if s.Servers[i].Name == name {
			return &s.Servers[i]
		}
	}
	return nil
}

// VM returns the VM with this ID, or nil.
func (s *State) VM(id ident.VMID) *VM {
	for i := range s.VMs {
		if s.VMs[i].ID == id {
			return &s.VMs[i]
		}
	}
	return nil
}

// VMNamed returns the VM with this name, or nil.
func (s *State) VMNamed(name string) *VM {
	for i := range s.VMs {
		if s.VMs[i].Spec.Name == name {
			return &s.VMs[i]
		}
	}
	return nil
}

// Cells lists the cells that have servers, sorted.
func (s *State) Cells() []ident.CellName {
	var out []ident.CellName
	for i := range s.Servers {
		if c := s.Servers[i].Cell; c != "" && !slices.Contains(out, c) { // a witness is in none
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}
