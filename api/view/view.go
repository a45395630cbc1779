// Package view gives the messages of the control API the form in which `-o json` prints them. Its field names are an interface that scripts
// depend on: they are documented in docs/json.md and kept by a golden test; fields are only added.
//
// Sizes are numbers of bytes, times are RFC 3339 with microseconds in UTC, states are lower-case words. A list is never null. A time that has
// not come yet is null.
package view

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
)

// Status is `status -o json`.
type Status struct {
	Epoch        uint64 `json:"epoch"`
	Quorum       bool   `json:"quorum"`
	Leader       string `json:"leader"`
	ServersLive  uint32 `json:"servers_live"`
	ServersTotal uint32 `json:"servers_total"`
	CellsLive    uint32 `json:"cells_live"`
	CellsTotal   uint32 `json:"cells_total"`
	VMsRunning   uint32 `json:"vms_running"`
	VMsTotal     uint32 `json:"vms_total"`
	ClusterID    string `json:"cluster_id"`
	ClusterName  string `json:"cluster_name"`
	Server       string `json:"server"`
	ServerState  string `json:"server_state"`
	Version      string `json:"version"`
}

// OfStatus converts the answer to Status.
func OfStatus(s *api.StatusResponse) Status {
	return Status{
		Epoch: s.GetEpoch(), Quorum: s.GetQuorum(), Leader: s.GetLeader(),
		ServersLive: s.GetServersLive(), ServersTotal: s.GetServersTotal(),
		CellsLive: s.GetCellsLive(), CellsTotal: s.GetCellsTotal(),
		VMsRunning: s.GetVmsRunning(), VMsTotal: s.GetVmsTotal(),
		ClusterID: s.GetClusterId(), ClusterName: s.GetClusterName(),
		Server: s.GetServer(), ServerState: s.GetServerState().Word(), Version: s.GetVersion(),
	}
}

// Server is an entry of `server ls -o json`.
type Server struct {
	Name        string `json:"name"`
	Cell        string `json:"cell"`
	PID         uint32 `json:"pid"`
	State       string `json:"state"`
	Addr        string `json:"addr"`
	Role        string `json:"role"`
	ID          uint64 `json:"id"`
	API         string `json:"api"`
	Incarnation uint64 `json:"incarnation"`
	Voter       bool   `json:"voter"`
	Leader      bool   `json:"leader"`
	Slots       uint32 `json:"slots"`
	SlotsUsed   uint32 `json:"slots_used"`
	Memory      uint64 `json:"memory_bytes"`
	MemoryUsed  uint64 `json:"memory_used_bytes"`
	Cordoned    bool   `json:"cordoned"`
	Unfit       string `json:"unfit_reason"`
	Version     string `json:"version"`

	BorrowsFrom []string `json:"borrows_from,omitempty"`
	LendsTo     []string `json:"lends_to,omitempty"`
}

// OfServer converts one server.
func OfServer(s *api.Server) Server {
	return Server{
		Name: s.GetName(), Cell: s.GetCell(), PID: s.GetPid(), State: s.GetState().Word(), Addr: s.GetAddr(),
		Role: s.GetRole().Word(), ID: s.GetId(), API: s.GetApiAddr(), Incarnation: s.GetIncarnation(),
		Voter: s.GetVoter(), Leader: s.GetLeader(), Slots: s.GetSlots(), SlotsUsed: s.GetSlotsUsed(),
		Memory: s.GetMemoryBytes(), MemoryUsed: s.GetMemoryUsedBytes(), Cordoned: s.GetCordoned(),
		Unfit: s.GetUnfitReason(), Version: s.GetVersion(), BorrowsFrom: s.GetBorrowsFrom(), LendsTo: s.GetLendsTo(),
	}
}

// Cell is an entry of `cell ls -o json`.
type Cell struct {
	Name        string   `json:"name"`
	State       string   `json:"state"`
	Servers     []string `json:"servers"`
	ServersLive uint32   `json:"servers_live"`
	Slots       uint32   `json:"slots"`
	SlotsUsed   uint32   `json:"slots_used"`
	Memory      uint64   `json:"memory_bytes"`
	MemoryUsed  uint64   `json:"memory_used_bytes"`
	VMs         uint32   `json:"vms"`
	Cordoned    bool     `json:"cordoned"`
}

// OfCell converts one cell.
func OfCell(c *api.Cell) Cell {
	return Cell{
		Name: c.GetName(), State: c.GetState().Word(), Servers: list(c.GetServers()), ServersLive: c.GetServersLive(),
		Slots: c.GetSlots(), SlotsUsed: c.GetSlotsUsed(), Memory: c.GetMemoryBytes(), MemoryUsed: c.GetMemoryUsedBytes(),
		VMs: c.GetVms(), Cordoned: c.GetCordoned(),
	}
}

// VM is an entry of `vm ls -o json`, and `vm show -o json`.
type VM struct {
	Name           string     `json:"name"`
	State          string     `json:"state"`
	Reason         string     `json:"reason"`
	ExitStatus     uint32     `json:"exit_status"`
	VCPUs          uint32     `json:"vcpus"`
	Memory         uint64     `json:"memory_bytes"`
	Cells          []string   `json:"cells"`
	Home           string     `json:"home"`
	Protect        string     `json:"protect"`
	Protection     string     `json:"protection"`
	Mirroring      string     `json:"mirroring"`
	CheckpointMs   uint32     `json:"checkpoint_ms"`
	Recoveries     uint64     `json:"recoveries"`
	Restarts       uint64     `json:"restarts"`
	RebootOnCrash  bool       `json:"reboot_on_crash"`
	CrashLimit     uint32     `json:"crash_limit"`
	Restart        string     `json:"restart"`
	StartWanted    bool       `json:"start_wanted"`
	Workers        []Worker   `json:"workers"`
	ID             uint64     `json:"id"`
	Payload        string     `json:"payload"`
	Args           string     `json:"args"`
	Span           []string   `json:"span"`
	OnLoss         string     `json:"on_loss"`
	Epoch          uint64     `json:"epoch"`
	ConsoleBytes   uint64     `json:"console_bytes"`
	OutputRecords  uint64     `json:"output_records"`
	ConsoleDropped uint64     `json:"console_dropped_bytes"`
	OutputDropped  uint64     `json:"output_dropped_records"`
	CreatedAt      *time.Time `json:"created_at"`
	StartedAt      *time.Time `json:"started_at"`
	EndedAt        *time.Time `json:"ended_at"`
	Registers      string     `json:"registers,omitempty"`
	Weight         uint32     `json:"weight"`

	Linux       *Linux       `json:"linux,omitempty"`
	Checkpoints *Checkpoints `json:"checkpoints,omitempty"`
}

// Checkpoints is what a VM's protection does, over all its members.
type Checkpoints struct {
	Made          uint64 `json:"made"`
	EveryUs       uint64 `json:"every_us"`
	PauseUs       uint64 `json:"pause_us"`
	PauseMedianUs uint64 `json:"pause_median_us"`
	PauseP99Us    uint64 `json:"pause_p99_us"`
	SafeAfterUs   uint64 `json:"safe_after_us"`
	LagUs         uint64 `json:"lag_us"`
	HeldBytes     uint64 `json:"held_bytes"`
	Pages         uint64 `json:"pages"`
	PagesWhole    uint64 `json:"pages_whole"`
	PagesChanged  uint64 `json:"pages_changed"`
	PagesZero     uint64 `json:"pages_zero"`
	PagesSame     uint64 `json:"pages_same"`
	Bytes         uint64 `json:"bytes"`
}

// OfCheckpoints adds up what the members of a VM count; nil if none does.
func OfCheckpoints(v *api.VM) *Checkpoints {
	var out *Checkpoints
	for _, w := range v.GetWorkers() {
		c := w.GetCounters().GetShares()
		if c == nil {
			continue
		}
		if out == nil {
			out = &Checkpoints{}
		}
		if home := w.GetCounters(); w.GetServer() == v.GetHome() {
			out.Made, out.EveryUs, out.PauseUs = home.GetCheckpoints(), home.GetCheckpointEveryMicros(), home.GetCheckpointPauseMicros()
			out.LagUs, out.HeldBytes = home.GetCheckpointLagMicros(), home.GetHeldBytes()
			out.PauseMedianUs, out.PauseP99Us, out.SafeAfterUs = c.GetPauseMedianMicros(), c.GetPauseP99Micros(), c.GetSafeAfterMicros()
		}
		out.Pages += c.GetPages()
		out.PagesWhole += c.GetPagesWhole()
		out.PagesChanged += c.GetPagesChanged()
		out.PagesZero += c.GetPagesZero()
		out.PagesSame += c.GetPagesSame()
		out.Bytes += c.GetBytes()
	}
	return out
}

// Worker is an entry of a VM's workers.
type Worker struct {
	Server   string    `json:"server"`
	PID      uint32    `json:"pid"`
	VCPUs    int       `json:"vcpus"`
	VCPUIDs  []uint32  `json:"vcpu_ids"`
	Cell     string    `json:"cell"`
	Addr     string    `json:"addr"`
	Ready    bool      `json:"ready"`
	Lost     bool      `json:"lost"`
	Standby  bool      `json:"standby"`
	Mirror   bool      `json:"mirror"`
	Counters *Counters `json:"counters,omitempty"`
}

// Counters are a worker's page traffic.
type Counters struct {
	RemoteReads  uint64 `json:"remote_reads"`
	RemoteWrites uint64 `json:"remote_writes"`
	LocalFaults  uint64 `json:"local_faults"`
	PagesIn      uint64 `json:"pages_in"`
	PagesOut     uint64 `json:"pages_out"`
	Resident     uint64 `json:"resident_bytes"`
	VCPUExits    uint64 `json:"vcpu_exits"`
	RunMicros    uint64 `json:"run_micros"`
	SlotMicros   uint64 `json:"slot_micros"`
	CPUMicros    uint64 `json:"cpu_micros"`

	Paging *Paging `json:"paging,omitempty"`
	Scrub  *Scrub  `json:"scrub,omitempty"`

	Locality *Locality `json:"locality,omitempty"`
}

// OfVM converts one VM.
func OfVM(v *api.VM) VM {
	out := VM{
		Name: v.GetName(), State: v.GetState().Word(), Reason: v.GetReason(), ExitStatus: v.GetExitStatus(),
		VCPUs: v.GetVcpus(), Memory: v.GetMemoryBytes(), Cells: list(v.GetCells()), Home: v.GetHome(),
		Protect: v.GetProtect(), Workers: []Worker{}, ID: v.GetId(), Payload: v.GetPayload(), Args: v.GetArgs(),
		Span: list(v.GetSpan()), OnLoss: v.GetOnLoss().Word(), Epoch: v.GetEpoch(),
		ConsoleBytes: v.GetConsoleBytes(), OutputRecords: v.GetOutputRecords(), ConsoleDropped: v.GetConsoleDroppedBytes(), OutputDropped: v.GetOutputDroppedRecords(),
		CreatedAt: at(v.GetCreatedAt()), StartedAt: at(v.GetStartedAt()), EndedAt: at(v.GetEndedAt()),
		Linux: ofLinux(v), Registers: v.GetRegisters(), Protection: v.GetProtection(), Mirroring: v.GetMirroring(), CheckpointMs: v.GetCheckpointMs(), Recoveries: v.GetRecoveries(),
		Restarts: v.GetRestarts(), RebootOnCrash: v.GetRebootOnCrash(), CrashLimit: v.GetCrashLimit(),
		Restart: v.GetRestart(), StartWanted: v.GetStartWanted(),
		Checkpoints: OfCheckpoints(v),
		Weight:      v.GetWeight(),
	}
	if out.Protection == "" {
		out.Protection = "none"
	}
	if out.Mirroring == "" {
		out.Mirroring = "none"
	}
	if out.Restart == "" {
		out.Restart = "no"
	}
	if out.Protect == "" {
		out.Protect = "none"
	}
	for _, w := range v.GetWorkers() {
		out.Workers = append(out.Workers, ofWorker(w))
	}
	return out
}

func ofWorker(w *api.Worker) Worker {
	out := Worker{
		Server: w.GetServer(), PID: w.GetPid(), VCPUs: len(w.GetVcpus()), VCPUIDs: list(w.GetVcpus()),
		Cell: w.GetCell(), Addr: w.GetAddr(), Ready: w.GetReady(), Lost: w.GetLost(), Standby: w.GetStandby(), Mirror: w.GetMirror(),
	}
	if c := w.GetCounters(); c != nil {
		out.Counters = &Counters{
			RemoteReads: c.GetRemoteReads(), RemoteWrites: c.GetRemoteWrites(), LocalFaults: c.GetLocalFaults(),
			PagesIn: c.GetPagesIn(), PagesOut: c.GetPagesOut(), Resident: c.GetResidentBytes(),
			VCPUExits: c.GetVcpuExits(), RunMicros: c.GetRunMicros(), SlotMicros: c.GetSlotMicros(), CPUMicros: c.GetCpuMicros(), Paging: ofPaging(c.GetPaging()), Scrub: ofScrub(c.GetScrub()),
			Locality: ofLocality(c.GetLocality()),
		}
	}
	return out
}

// Event is a line of `events -o json`.
type Event struct {
	Seq         uint64            `json:"seq"`
	Time        *time.Time        `json:"time"`
	Type        string            `json:"type"`
	Epoch       uint64            `json:"epoch"`
	Cell        string            `json:"cell,omitempty"`
	Server      string            `json:"server,omitempty"`
	VM          string            `json:"vm,omitempty"`
	Message     string            `json:"message"`
	RecordedBy  string            `json:"recorded_by"`
	LogIndex    uint64            `json:"log_index"`
	Stage       string            `json:"stage,omitempty"`
	StageMicros uint64            `json:"stage_micros,omitempty"`
	CauseSeq    uint64            `json:"cause_seq,omitempty"`
	Fields      map[string]string `json:"fields,omitempty"`
}

// OfEvent converts one event.
func OfEvent(e *api.Event) Event {
	return Event{
		Seq: e.GetSeq(), Time: at(e.GetTime()), Type: e.GetType(), Epoch: e.GetEpoch(), Cell: e.GetCell(),
		Server: e.GetServer(), VM: e.GetVm(), Message: e.GetMessage(), RecordedBy: e.GetRecordedBy(),
		LogIndex: e.GetLogIndex(), Stage: e.GetStage(), StageMicros: e.GetStageMicros(), CauseSeq: e.GetCauseSeq(),
		Fields: e.GetFields(),
	}
}

// Map converts every element of a list; the result is never nil.
func Map[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, a := range in {
		out = append(out, f(a))
	}
	return out
}

func list[T any](in []T) []T {
	if in == nil {
		return []T{}
	}
	return in
}

func at(t *timestamppb.Timestamp) *time.Time {
	if t == nil || t.AsTime().IsZero() || t.AsTime().Unix() == 0 {
		return nil
	}
	utc := t.AsTime().UTC().Truncate(time.Microsecond)
	return &utc
}
