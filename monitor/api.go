package monitor

import (
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Config describes one server to its core.
type Config struct {
	ClusterID string
	Server    ident.ServerID
	Info      cells.ServerInfo // Process.Boot must be random and new at each start of the process

	// Initial lists the servers of a cluster that starts for the first time. It is looked at only when Stored is empty. A server that
	// joined a running cluster (see JoinRequest) leaves it empty.
	Initial []cells.InitialServer

	Stored cells.Stored // what was read from disk
	Timing cells.Timing // the zero value means cells.DefaultTiming()
	Seed   uint64       // of the election timers

	// UnixMsAtZero is the Unix time in milliseconds at which the clock passed to Step read zero. It only stamps events.
	UnixMsAtZero int64

	// SnapshotEvery is the number of log entries between snapshots; 0 means 1000.
	SnapshotEvery uint64

	// Canary plants a bug, for tests of the simulator. "" in production.
	Canary string
}

// Event is something that happened to the server.
type Event interface{ event() }

// Tick says only that time has passed. The shell sends one when NextDeadline passes.
type Tick struct{}

// PeerMessage is a message from another server's core, as it came out of Message.Bytes there. From is the sender that the connection
// belongs to (0 if the shell does not know); a message that claims another sender is refused.
type PeerMessage struct {
	From  ident.ServerID
	Bytes []byte
}

// JoinRequested is a JoinRequest that came in on a connection. The answer is a Message with the same Conn.
type JoinRequested struct {
	Conn  uint64
	Bytes []byte
}

// Propose asks for a command to be agreed on. It is sent again until it is applied or the deadline passes. Only the one command pointer
// is filled in. Exactly one Response with this ID follows.
type Propose struct {
	ID       uint64
	Command  cells.Command
	Deadline ident.Micros
}

// Hint says that a server may be gone. It decides nothing: it makes the core ask for proof, and lets an election start early.
type Hint struct {
	Server ident.ServerID
	Source string // "gossip", "connection reset", "page plane"
}

// ProcessGone is proof that a server's serve process and all workers of its incarnation are gone. The shell must have seen that no
// process with this PID and start time runs on this host, and that no worker process of that server does. It may be sent for servers
// with the same HostID only, normally as the answer to SuspectCheck.
type ProcessGone struct {
	Server      ident.ServerID
	Incarnation ident.Incarnation
	Boot        string
	Detail      string // for people: "pid 4711 is gone"
}

// Adopted tells, once after start, which workers of this server are still alive. Until then nothing is done about workers.
type Adopted struct {
	Workers []AdoptedWorker
}

// AdoptedWorker is a worker that an earlier run of serve started.
type AdoptedWorker struct {
	Incarnation ident.Incarnation
	Ready       wire.WorkerReady
}

// WorkerReady is a worker's first message on its control connection.
type WorkerReady struct {
	Incarnation ident.Incarnation // from the WorkerSpec that it was started with
	Ready       wire.WorkerReady
}

// WorkerEnded is a worker's report that its VM ended.
type WorkerEnded struct {
	VM    ident.VMID
	Ended wire.WorkerEnded
}

// WorkerDisks is a worker's word on its copies of disks.
type WorkerDisks struct {
	VM    ident.VMID
	Disks wire.WorkerDisks
}

// WorkerHint is a worker's report that a peer part does not answer.
type WorkerHint struct {
	VM   ident.VMID
	Hint wire.WorkerHint
}

// WorkerProtected is a home worker's report that the VM's standbys hold a complete checkpoint.
type WorkerProtected struct {
	VM        ident.VMID
	Protected wire.WorkerProtected
}

// WorkerRestored is a new home worker's report that the VM runs again.
type WorkerRestored struct {
	VM       ident.VMID
	Restored wire.WorkerRestored
}

// WorkerShort is a worker's report that its part holds more memory than it may, because pages cannot be written to its paging file, or no longer does.
type WorkerShort struct {
	VM              ident.VMID
	On              bool
	Reason          string
	Resident, Limit ident.Bytes
}

// WorkerStalled is a home worker's report that held-back output pauses the guest, or no longer does.
type WorkerStalled struct {
	VM      ident.VMID
	Stalled wire.WorkerStalled
}

// WorkerSwitched is a home worker's report that the VM stands still at a checkpoint that its standbys hold.
type WorkerSwitched struct {
	VM       ident.VMID
	Switched wire.WorkerSwitched
}

// WorkerPaused is a worker's report that its guest stands still, or goes on, as it was told.
type WorkerPaused struct {
	VM  ident.VMID
	Seq uint64
}

// WorkerHanded is a home worker's report that a hand-over of a vCPU has ended.
type WorkerHanded struct {
	VM     ident.VMID
	Handed wire.WorkerHanded
}

// WorkerWished is a home worker's wish that a vCPU goes to another part.
type WorkerWished struct {
	VM   ident.VMID
	Wish wire.WorkerWish
}

// WorkerGone says that a worker process has ended, or could not be started or was stopped before it came up (PID 0).
type WorkerGone struct {
	VM     ident.VMID
	PID    int
	Reason string // "killed by signal 9", "exit status 1: …"
}

// WorkersKilled answers KillWorkers: none with an incarnation up to this one is left.
type WorkersKilled struct {
	UpTo ident.Incarnation
}

// ClockSet corrects Config.UnixMsAtZero after the wall clock was set.
type ClockSet struct {
	UnixMsAtZero int64
}

func (Tick) event()            {}
func (PeerMessage) event()     {}
func (JoinRequested) event()   {}
func (Propose) event()         {}
func (Hint) event()            {}
func (ProcessGone) event()     {}
func (Adopted) event()         {}
func (WorkerReady) event()     {}
func (WorkerEnded) event()     {}
func (WorkerHint) event()      {}
func (WorkerDisks) event()     {}
func (WorkerGone) event()      {}
func (WorkerProtected) event() {}
func (WorkerRestored) event()  {}
func (WorkerSwitched) event()  {}
func (WorkerHanded) event()    {}
func (WorkerWished) event()    {}
func (WorkerStalled) event()   {}
func (WorkerPaused) event()    {}
func (WorkerShort) event()     {}
func (WorkersKilled) event()   {}
func (ClockSet) event()        {}

// Ready is what the shell must carry out before it calls Advance. See the package comment for the order.
type Ready struct {
	Persist   *cells.Persist // nil if there is nothing to write
	Messages  []Message
	Actions   []Action
	Responses []Response
	Events    []cells.Event // newly replicated, in order
}

// Message goes to another server's core (To) or answers a JoinRequested (Conn). Bytes is at most MaxMessageBytes.
type Message struct {
	To    ident.ServerID
	Conn  uint64
	Bytes []byte
}

// Response ends a Propose.
type Response struct {
	ID     uint64
	Result []byte       // JSON, as documented at the command; nil if refused
	Fault  *cells.Fault // why it was refused, or nil
}

// Action is something the shell must do for the core.
type Action interface{ action() }

// StartWorker starts a worker (paused: it reports WorkerReady and waits for members). PayloadPath and ListenHost of the spec are the
// shell's to fill. The shell fetches the payload from Payload.Server first if this part is home and the payload is a file.
// A second StartWorker for a VM whose worker runs or is being started is to be ignored.
type StartWorker struct {
	Spec    wire.WorkerSpec
	Created ident.Epoch // names the worker's directory, with Spec.VM
	Payload Payload
}

// Payload says where a VM's payload file is kept, and with a Linux kernel its initial RAM disk.
type Payload struct {
	SHA256      string
	Bytes       ident.Bytes
	Server      ident.ServerID
	Initrd      string // SHA-256, "" for none
	InitrdBytes ident.Bytes
	Saved       string // SHA-256 of the saved VM that the guest goes on from, "" for none
	SavedBytes  ident.Bytes
}

// SendMembers passes the members to a worker: the first time it starts the VM.
type SendMembers struct {
	VM      ident.VMID
	Members wire.WorkerMembers
}

// SendProtect tells a worker which standbys the VM has. Later ones, with a higher Seq, replace earlier ones.
type SendProtect struct {
	VM      ident.VMID
	Protect wire.WorkerProtect
}

// SendPause lets a worker's guest stand still, or go on.
type SendPause struct {
	VM    ident.VMID
	Pause wire.WorkerPause
}

// SendSwitch asks a VM's home worker for a switchover under protection Seq.
type SendSwitch struct {
	VM  ident.VMID
	Seq uint64
}

// SendHand asks a VM's home worker to hand a vCPU over.
type SendHand struct {
	VM   ident.VMID
	Hand wire.WorkerHand
}

// StopWorker ends a worker in good order; the shell kills it if it does not end within a second or so. WorkerGone follows.
type StopWorker struct {
	VM     ident.VMID
	Reason string
	Final  bool // see wire.WorkerStop
}

// KillWorkers kills every worker with an incarnation up to this one; one that is still being started for such an incarnation must not
// come up. WorkersKilled follows when none is left.
type KillWorkers struct {
	UpTo ident.Incarnation
}

// Lease is to be passed to all workers of this incarnation, and to each new one when it connects. It replaces the former one.
type Lease struct {
	Incarnation ident.Incarnation
	Until       ident.Micros // on the clock passed to Step
}

// SuspectCheck asks for proof that a server's processes are gone, if it is on this host: the answer, if there is one, is ProcessGone.
type SuspectCheck struct {
	Server      ident.ServerID
	Incarnation ident.Incarnation
	Process     cells.Process
	HostID      string
}

// RemoveFiles says that a VM was removed: what is kept of it on disk here can go.
type RemoveFiles struct {
	VM ident.VMID
}

// Forgotten says that the cluster removed this server: it can come back only as a new one, with an empty data directory.
type Forgotten struct {
	By ident.ServerID // who said so
}

func (StartWorker) action()  {}
func (SendMembers) action()  {}
func (SendProtect) action()  {}
func (SendSwitch) action()   {}
func (SendPause) action()    {}
func (SendHand) action()     {}
func (StopWorker) action()   {}
func (KillWorkers) action()  {}
func (Lease) action()        {}
func (SuspectCheck) action() {}
func (RemoveFiles) action()  {}
func (Forgotten) action()    {}

// Phase is where a server stands; see the package comment.
type Phase string

// Phases.
const (
	PhaseCatchingUp Phase = "catching-up"
	PhaseFencing    Phase = "fencing"
	PhaseAdmitting  Phase = "admitting"
	PhaseActing     Phase = "acting"
)

// Status is where this server stands now.
type Status struct {
	Server      ident.ServerID
	Phase       Phase
	Incarnation ident.Incarnation // 0 unless acting
	Epoch       ident.Epoch       // of the last view known here
	Leader      ident.ServerID    // 0 if none is known
	Term        uint64
	Quorum      bool         // a lease is held: what is known here was recently confirmed by a quorum
	LeaseUntil  ident.Micros // 0 if there never was one
	Voters      []ident.ServerID
	Learners    []ident.ServerID
}

// Counters count what was refused and done since start.
type Counters struct {
	RefusedGarbage     uint64 // could not be decoded
	RefusedCluster     uint64 // another cluster's
	RefusedSender      uint64 // claims to be someone else, or is unknown here
	RefusedIncarnation uint64 // from outside the view, or from an incarnation that is not in it
	RefusedVotes       uint64 // (pre)votes asked for while a leader was heard
	RefusedReads       uint64 // requests for leases from servers being excluded
	Proposals          uint64
	Resent             uint64
	Elections          uint64
	Views              uint64
	Leases             uint64
}
